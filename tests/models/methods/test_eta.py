"""What the eta method promises beyond the contract of all methods."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models.methods.eta import ETAConfig  # isort: skip
from models.optimizers.adagrad import Adagrad, AdagradDecay  # isort: skip
from models.optimizers.groups import GroupConfig, make_optimizer  # isort: skip
from tests.models.methods import data  # isort: skip


def eta(schema=None, **settings):
    return data.make_method("eta", schema or data.make_schema(), **settings)


def with_history(batch, rows):
    history = tf.constant(rows, tf.int32)
    return batch._replace(features=batch.features | {"history": history})


def test_top_k_of_the_whole_history_is_full_attention():
    method, full = eta(top_k=5), eta(top_k=99)
    batch = data.make_batch(method.schema, 16)
    np.testing.assert_array_equal(data.logits(method, batch), data.logits(full, batch))
    # Three of five: another model.
    assert not np.allclose(data.logits(eta(top_k=3), batch), data.logits(full, batch))


def test_short_histories_are_not_hashed():
    method = eta(short_length=5)
    assert not [v for v in method.model.variables if "hash" in v.name]
    assert method.model.represent(
        data.make_batch(method.schema, 2).features
    ).sequence.shape == [2, 8]
    method = eta(short_length=4)
    (matrix,) = [v for v in method.model.variables if "hash" in v.name]
    assert not matrix.trainable
    assert matrix.shape == [4, 8]


def test_hash_matrix_is_the_same_for_a_seed_and_never_moves():
    method = eta()
    (matrix,) = method.model.non_trainable_variables
    before = matrix.numpy()
    np.testing.assert_array_equal(eta().model.non_trainable_variables[0], before)
    batch = data.make_batch(method.schema, 32)
    for _ in range(3):
        method.train_step(data.feed(method, batch))
    np.testing.assert_array_equal(matrix, before)
    assert any(v is matrix for v in method.serving_variables())


def test_table_rows_of_items_not_attended_to_get_no_gradient():
    method = eta(top_k=2, short_length=1)
    history = [[11, 12, 13, 14, 15]]
    batch = with_history(data.make_batch(method.schema, 1), history)
    model = method.model
    (attention,) = model.attentions
    parts = model.represent(batch.features)
    start, end = model.embeddings.columns["item"]
    items = model.embeddings.lookup("history", tf.constant(history))
    index = attention.long.nearest(
        parts.fields[:, start:end], items, tf.ones([1, 5], tf.bool)
    )
    taken = {11 + int(i) for i in index.numpy().ravel()} | {15}
    (table,) = method.variable_groups()["embedding"]
    with tf.GradientTape() as tape:
        loss, _ = method.loss(data.feed(method, batch))
    gradient = tape.gradient(loss, table)
    _, offset, _ = model.embeddings.table_rows()["item"]
    rows = {int(i) - offset for i in gradient.indices.numpy()}
    assert rows & set(range(11, 16)) == taken


def test_rows_without_history_have_finite_loss_and_gradients():
    method = eta()
    batch = with_history(data.make_batch(method.schema, 8), [[0] * 5] * 8)
    loss, gradients = data.gradients(method, batch)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradients.values())
    assert not np.any(method.model.represent(batch.features).sequence)


def test_defaults_are_those_of_ecats_experiments():
    config = ETAConfig()
    assert config.hidden_units == (1024, 512, 256)
    for group in (config.optimizer.embedding, config.optimizer.dense):
        assert (group.kind, group.learning_rate) == ("adagrad_decay", 0.01)
        assert group.accumulator_decay_rate == 0.9
        assert group.accumulator_decay_steps == 100_000
        assert group.initial_accumulator == 0.1


def run_optimizer(kind, steps, **settings):
    """A table, with all rows in even steps and one row in odd ones."""
    variable = tf.Variable(tf.ones([4, 2]))
    config = GroupConfig(kind=kind, learning_rate=0.1, **settings)
    optimizer = make_optimizer(config, [variable], "group")
    for step in range(steps):
        rows = [1] if step % 2 else [0, 1, 2, 3]
        values = tf.fill([len(rows), 2], 0.1 * (step + 1))
        gradient = tf.IndexedSlices(values, tf.constant(rows), tf.constant([4, 2]))
        optimizer.apply_gradients([(gradient, variable)])
    return variable.numpy(), optimizer


def test_adagrad_decay_of_rate_1_is_adagrad():
    settings = {"accumulator_decay_rate": 1.0, "accumulator_decay_steps": 2}
    decayed, optimizer = run_optimizer("adagrad_decay", 6, **settings)
    plain, reference = run_optimizer("lazy_adagrad", 6)
    assert (type(optimizer), type(reference)) == (AdagradDecay, Adagrad)
    np.testing.assert_allclose(decayed, plain, rtol=1e-6)


@pytest.mark.parametrize(("sum_before", "expected"), [(2.0, 1.8), (0.105, 0.1)])
def test_accumulators_decay_by_the_rate_down_to_the_floor(sum_before, expected):
    variable = tf.Variable([[1.0]])
    config = GroupConfig(kind="adagrad_decay", accumulator_decay_steps=3)
    optimizer = make_optimizer(config, [variable], "group")
    accumulator = optimizer.slots(variable)["accumulator"]
    for step in range(4):
        if step == 3:
            accumulator.assign([[sum_before]])
        zero = tf.IndexedSlices(tf.zeros([1, 1]), tf.constant([0]), tf.constant([1, 1]))
        optimizer.apply_gradients([(zero, variable)])
        if step == 2:  # three steps done, none of them a multiple of three yet
            np.testing.assert_allclose(accumulator, [[0.1]])
    np.testing.assert_allclose(accumulator, [[expected]], rtol=1e-6)
