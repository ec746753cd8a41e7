import numpy as np
import pytest
import tensorflow as tf

from models.layers.source_network import SemanticAlign
from tests.models.layers import twins

SOURCE = {"user": 3, "item": 4, "context": 0}
TARGET = {"user": 5, "item": 2, "context": 6}


def make(num_sources=2, hidden=(7,)):
    layer = SemanticAlign(num_sources, SOURCE, TARGET, hidden)
    layer(tf.zeros([1, 7]), tf.zeros([1], tf.int32))
    twins.randomise(layer)
    return layer


def twin(layer, x, source):
    """Source by source and token by token, in float64."""
    out = np.zeros([len(x), sum(TARGET.values())])
    for s in range(layer.num_sources):
        own, parts = x[source == s], []
        for token, part in (("user", own[:, :3]), ("item", own[:, 3:])):
            *hidden, last = layer.networks[token]
            for dense in hidden:
                part = twins.block(part, dense.kernel[s], dense.bias[s])
            parts.append(part @ twins.array(last.kernel[s]) + twins.array(last.bias[s]))
        constant = twins.array(layer.constants["context"][s])
        parts.append(np.tile(constant, (len(own), 1)))
        out[source == s] = np.concatenate(parts, axis=1)
    return out


@pytest.mark.parametrize("rows", [9, 700])  # 700: rows are put in source order
@pytest.mark.parametrize("hidden", [(7,), (), (6, 5)])
def test_each_source_and_token_has_its_own_network(rows, hidden):
    layer, rng = make(hidden=hidden), np.random.default_rng(1)
    x, source = rng.normal(size=(rows, 7)), rng.integers(0, 2, rows)
    got = layer(tf.constant(x, tf.float32), tf.constant(source, tf.int32))
    assert got.shape == [rows, sum(TARGET.values())]
    np.testing.assert_allclose(got, twin(layer, x, source), rtol=1e-4, atol=1e-4)


def test_rows_of_a_source_leave_the_networks_of_the_other_alone():
    layer = make()
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(tf.ones([5, 7]), tf.fill([5], 1)) ** 2)
    for gradient in tape.gradient(value, layer.trainable_variables):
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert not np.any(gradient[0])
        assert np.any(gradient[1])


def test_token_that_the_target_has_not_is_refused():
    with pytest.raises(ValueError, match=r"source_widths\['item'\] must be 0"):
        SemanticAlign(1, SOURCE, TARGET | {"item": 0})


def test_config_round_trip():
    twins.check_config(SemanticAlign(2, SOURCE, TARGET, (4,)))
