"""What the din method promises beyond the contract of all methods."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import dataclasses  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.schema import ModelSchema  # isort: skip
from tests.models.methods import data  # isort: skip


def with_history(batch, rows):
    history = tf.constant(rows, tf.int32)
    return batch._replace(features=batch.features | {"history": history})


def din(schema=None, **settings):
    return data.make_method("din", schema or data.make_schema(), **settings)


def test_logits_are_the_network_of_fields_and_weighed_items():
    method = din()
    model, batch = method.model, data.make_batch(method.schema, 8)
    fields = model.embeddings(batch.features)
    assert fields.shape == [8, 4 * 4 + 1]  # user, item, indicator, tags; price
    items, mask = model.embeddings.sequence(batch.features, "history")
    (attention,) = model.attentions
    target = fields[:, 4:8]
    np.testing.assert_array_equal(
        target, model.embeddings.by_field(batch.features)["item"]
    )
    weights = attention.scores(target, items) * tf.cast(mask, tf.float32)
    pooled = np.einsum("bl,ble->be", weights, items)
    expected = model.network(tf.concat([fields, pooled], -1))
    np.testing.assert_allclose(
        data.logits(method, batch), expected, rtol=1e-4, atol=1e-5
    )


def test_order_of_the_history_changes_nothing_and_its_items_do():
    method = din()
    batch = data.make_batch(method.schema, 4)
    one = with_history(batch, [[3, 4, 5, 0, 0]] * 4)
    np.testing.assert_allclose(
        data.logits(method, one),
        data.logits(method, with_history(batch, [[5, 0, 3, 4, 0]] * 4)),
        rtol=1e-4,
        atol=1e-6,
    )
    other = with_history(batch, [[3, 4, 6, 0, 0]] * 4)
    assert not np.allclose(data.logits(method, one), data.logits(method, other))


def test_empty_history_leaves_the_network_of_the_fields():
    method = din()
    model = method.model
    batch = with_history(data.make_batch(method.schema, 4), [[0] * 5] * 4)
    parts = model.represent(batch.features)
    assert not np.any(parts.sequence)
    assert not np.any(parts.has_items)
    loss, gradients = data.gradients(method, batch)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("name", ["din", "eta"])
def test_schema_without_sequences_leaves_an_mlp(name):
    schema = data.make_schema()
    fields = tuple(f for f in schema.features if f.kind != "sequence")
    schema = ModelSchema(fields, schema.domains, schema.tasks)
    method, mlp = (data.make_method(n, schema) for n in (name, "mlp"))
    assert method.model.attentions == []
    pairs = zip(method.model.variables, mlp.model.variables, strict=True)
    for own, other in pairs:
        own.assign(other)
    batch = data.make_batch(schema, 12)
    np.testing.assert_array_equal(data.logits(method, batch), data.logits(mlp, batch))


def test_sequence_without_an_item_to_compare_with_is_refused():
    schema = data.make_schema()
    fields = tuple(
        dataclasses.replace(f, table="other") if f.name == "history" else f
        for f in schema.features
    )
    with pytest.raises(LookupError, match="history.*single-id field"):
        din(ModelSchema(fields, schema.domains, schema.tasks))
