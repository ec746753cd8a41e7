import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models.layers.mlp import MLP  # isort: skip
from models.optimizers.groups import (  # isort: skip
    GroupConfig,
    OptimizerConfig,
    apply_gradients,
    make_optimizers,
)
from models.sync import copy_training_state  # isort: skip


def two_networks(**groups):
    networks = [MLP([4], output_units=1, norm="batch") for _ in range(2)]
    for network in networks:
        network(tf.zeros([2, 3]))
    config = OptimizerConfig(groups={k: GroupConfig(kind=v) for k, v in groups.items()})
    optimizers = make_optimizers(
        config, {n: w.trainable_variables for n, w in zip("ab", networks, strict=True)}
    )
    return networks, optimizers


def train(network, optimizer, seed, steps=1):
    x = tf.random.stateless_normal([8, 3], [seed, 0])
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(network(x, training=True) ** 2)
        apply_gradients(tape, loss, {"one": optimizer})


def test_weights_statistics_slots_and_counter_are_copied_to_the_bit():
    (a, b), optimizers = two_networks()
    train(a, optimizers["a"], 1, steps=3)
    train(b, optimizers["b"], 2)
    copy_training_state(a.variables, b.variables, optimizers)
    assert len(a.non_trainable_variables) == 3  # moving mean and variance, updates
    assert int(optimizers["b"].iterations) == 3
    for x, y in zip(a.variables, b.variables, strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(a.trainable_variables, b.trainable_variables, strict=True):
        for name, slot in optimizers["a"].slots(x).items():
            assert np.any(slot), name
            np.testing.assert_array_equal(slot, optimizers["b"].slots(y)[name])
    # Twins go on as twins: the next step needs all of it.
    for network, name in ((a, "a"), (b, "b")):
        train(network, optimizers[name], 3)
    for x, y in zip(a.variables, b.variables, strict=True):
        np.testing.assert_array_equal(x, y)


def test_unlike_parts_are_refused():
    (a, b), optimizers = two_networks()
    with pytest.raises(ValueError, match="must have the shapes of source"):
        copy_training_state(a.variables, b.variables[:-1], optimizers)
    (a, b), optimizers = two_networks(b="sgd")
    with pytest.raises(ValueError, match="got SGD for Adam"):
        copy_training_state(a.variables, b.variables, optimizers)
