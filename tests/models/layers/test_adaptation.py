import numpy as np
import pytest
import tensorflow as tf

from models.layers.adaptation import (
    Adapter,
    Discriminator,
    EntropyHead,
    SigmoidGate,
    binary_entropy,
    cosine,
)
from tests.models.layers import twins

X = tf.constant(np.random.default_rng(0).normal(size=(6, 5)), tf.float32)


def test_entropy_equals_its_formula_in_bits():
    logits = np.linspace(-12, 12, 25)
    p = 1 / (1 + np.exp(-logits))
    expected = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    np.testing.assert_allclose(
        binary_entropy(tf.constant(logits, tf.float32)), expected, rtol=1e-4, atol=1e-7
    )
    assert float(binary_entropy(tf.constant(0.0))) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("logit", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_entropy_and_its_gradient_are_finite_for_any_logit(logit):
    x = tf.constant(logit)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = binary_entropy(x)
    assert 0 <= float(value) <= 1 + 1e-6
    assert np.isfinite(tape.gradient(value, x))


def test_cosine_by_hand_and_of_zero_vectors():
    a = tf.constant([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [2.0, 2.0]])
    b = tf.constant([[4.0, 3.0], [-5.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        value = cosine(a, b)
        total = tf.reduce_sum(value)
    np.testing.assert_allclose(value, [0.96, -1, 0, 0], rtol=1e-6)
    for gradient in tape.gradient(total, [a, b]):
        assert np.isfinite(gradient.numpy()).all()
    assert cosine(tf.cast(a, tf.bfloat16), tf.cast(b, tf.bfloat16)).dtype == tf.float32


def test_adapter_equals_two_layers_in_float64():
    layer = Adapter()
    assert layer(X).shape == X.shape
    twins.randomise(layer)
    first, last = layer.network.blocks
    hidden = twins.block(X, first.kernel, first.bias)
    expected = twins.block(hidden, last.kernel, last.bias, activation=lambda x: x)
    np.testing.assert_allclose(layer(X), expected, rtol=1e-3, atol=1e-3)


def test_gate_is_one_number_between_0_and_1():
    layer = SigmoidGate((4,))
    layer(X)
    twins.randomise(layer)
    out = layer(X)
    assert out.shape == [6, 1]
    assert out.dtype == tf.float32
    assert np.all((out > 0) & (out < 1))
    assert len(np.unique(out)) == 6


@pytest.mark.parametrize("layer", [Discriminator((4,)), EntropyHead(2)])
def test_discriminator_and_entropy_head_teach_nothing_below_them(layer):
    with tf.GradientTape() as tape:
        tape.watch(X)
        value = tf.reduce_sum(layer(X) ** 2)
    gradient, *own = tape.gradient(value, [X, *layer.trainable_variables])
    assert gradient is None
    assert all(np.any(g) for g in own)


@pytest.mark.parametrize(
    "layer", [Adapter(), SigmoidGate((4,)), Discriminator((3, 2)), EntropyHead(2)]
)
def test_config_round_trip(layer):
    twins.check_config(layer)
