"""Values of variables come back bit for bit, slots and counters too."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models.optimizers import groups  # isort: skip
from models.snapshot import VariableSnapshot  # isort: skip


def test_restore_puts_back_weights_slots_and_counters_after_training():
    table = tf.Variable(np.random.default_rng(0).normal(size=(7, 2)), dtype=tf.float32)
    dense = tf.Variable([[0.5], [-0.25]])
    optimizers = groups.make_optimizers(
        groups.OptimizerConfig(), {"embedding": [table], "dense": [dense]}
    )

    def train():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.matmul(tf.gather(table, [1, 4, 1]), dense) ** 2)
        groups.apply_gradients(tape, loss, optimizers)

    train()
    everything = [table, dense, *(v for o in optimizers.values() for v in o.variables)]
    before = [v.numpy() for v in everything]
    snapshot = VariableSnapshot(everything)
    for _ in range(2):  # the copy is not what training writes into
        train()
        train()
        assert len(snapshot.changed()) == len(everything)
        snapshot.restore()
        assert snapshot.changed() == []
        for variable, value in zip(everything, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)


def test_changed_tells_bits_apart_that_compare_equal():
    zero, nan = tf.Variable([0.0]), tf.Variable([np.nan], name="nan")
    snapshot = VariableSnapshot([zero, nan])
    assert snapshot.changed() == []
    zero.assign([-0.0])
    assert snapshot.changed() == [zero.name]


@pytest.mark.parametrize("value", [[True, False], [1, 2], [1.5, 2.5]])
def test_any_dtype_comes_back(value):
    variable = tf.Variable(value)
    snapshot = VariableSnapshot([variable])
    variable.assign(tf.zeros_like(variable))
    snapshot.restore()
    assert variable.numpy().tolist() == value


def test_retake_takes_the_values_of_now():
    variable = tf.Variable(1.0)
    snapshot = VariableSnapshot([variable])
    variable.assign(2.0)
    snapshot.retake()
    variable.assign(3.0)
    snapshot.restore()
    assert variable.numpy() == 2.0


def test_variable_listed_twice_is_refused():
    variable = tf.Variable(1.0, name="w")
    with pytest.raises(ValueError, match="each variable once; got 'w:0' twice"):
        VariableSnapshot([variable, variable])
