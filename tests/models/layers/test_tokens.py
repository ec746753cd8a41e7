import numpy as np
import pytest
import tensorflow as tf

from features.schema import FeatureInfo
from models.layers.tokens import TokenEmbeddings, scale_gradient
from tests.models.layers import twins

FIELDS = (
    FeatureInfo("item", "item", "id", "item", 6, 2),
    FeatureInfo("user", "user", "id", "user", 5, 3),
    FeatureInfo("history", "sequence", "sequence", "item", 6, 2, 3),
    FeatureInfo("hour", "context", "number"),
)


def make(num_sources=1):
    layer = TokenEmbeddings(FIELDS, num_sources=num_sources, stddev=1.0)
    layer.build(None)
    return layer


def features():
    return {
        "item": tf.constant([2, 5, 0, 4]),
        "user": tf.constant([3, 1, 4, 99]),
        "history": tf.constant([[2, 0, 3], [0, 0, 0], [5, 5, 4], [-1, 2, 0]]),
        "hour": tf.constant([0.1, 0.2, 0.3, 0.4]),
    }


def test_fields_are_joined_token_by_token():
    layer = make()
    assert layer.widths == {"user": 5, "item": 2, "context": 1}
    assert layer.width == 8
    x, fields = layer(features()).numpy(), layer.by_field(features())
    for name, columns in (
        ("user", slice(0, 3)),
        ("history", slice(3, 5)),
        ("item", slice(5, 7)),
        ("hour", slice(7, 8)),
    ):
        np.testing.assert_array_equal(x[:, columns], fields[name])


def test_each_source_reads_its_own_part_of_the_tables():
    layer = make(num_sources=3)
    source = np.array([0, 2, 1, 2])
    fields = layer.by_field(features(), tf.constant(source, tf.int32))
    items = layer.fields.lookup("item", tf.range(18)[tf.newaxis])[0].numpy()
    users = layer.fields.lookup("user", tf.range(15)[tf.newaxis])[0].numpy()
    np.testing.assert_array_equal(fields["item"][0], items[2])
    np.testing.assert_array_equal(fields["item"][1], items[2 * 6 + 5])
    np.testing.assert_array_equal(fields["item"][2], [0, 0])  # PAD_ID: zero for all
    np.testing.assert_array_equal(fields["user"][2], users[5 + 4])
    # An id outside the table is the unknown id of its own source, not another's row.
    np.testing.assert_array_equal(fields["user"][3], users[2 * 5 + 1])
    mean = (items[6 + 5] * 2 + items[6 + 4]) / 3
    np.testing.assert_allclose(fields["history"][2], mean, rtol=1e-6)
    np.testing.assert_allclose(
        fields["history"][3], (items[12 + 1] + items[12 + 2]) / 2, rtol=1e-6
    )
    np.testing.assert_array_equal(fields["history"][1], [0, 0])


def test_rows_of_a_source_give_no_gradient_to_tables_of_another():
    layer = make(num_sources=2)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(features(), tf.fill([4], 1)))
    for gradient in tape.gradient(value, layer.trainable_variables):
        assert isinstance(gradient, tf.IndexedSlices)
        rows = np.flatnonzero(np.any(tf.convert_to_tensor(gradient), axis=1))
        assert rows.min() >= gradient.dense_shape[0] // 2


def test_config_round_trip():
    twins.check_config(TokenEmbeddings(FIELDS, num_sources=2, stddev=0.5))


def test_domain_indicator_is_no_token():
    bad = FeatureInfo("where", "domain", "id", "where", 3, 2)
    with pytest.raises(ValueError, match="got 'where' of role 'domain'"):
        TokenEmbeddings([*FIELDS, bad])


def test_scale_gradient_keeps_the_value_and_scales_the_gradient():
    x = tf.Variable([1.0, -3.0])
    with tf.GradientTape() as tape:
        y = scale_gradient(x, 0.5)
        value = tf.reduce_sum(y * y)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(tape.gradient(value, x), [1.0, -3.0])
