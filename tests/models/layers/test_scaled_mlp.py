import numpy as np
import pytest
import tensorflow as tf

from models.layers import normalise
from models.layers.scaled_mlp import ScaledMLP
from tests.models.layers import twins

K, N = 3, 6


def normal(shape, seed):
    return tf.random.stateless_normal(shape, [seed, 1])


def made(units=(5, 4), **settings):
    layer = ScaledMLP(K, units, **settings)
    x = normal([N, 7], 1)
    layer([x])
    twins.randomise(layer)
    return layer, x


def scales(seed, units=(5, 4)):
    return [tf.exp(normal([K, N, u], seed + i)) for i, u in enumerate(units)]


def twin(layer, x, gammas, k):
    """Network k in float64, the scale before the ReLU."""
    x = twins.array(x)
    for i in range(len(layer.hidden_units)):
        args = [twins.array(w[i])[k] for w in (layer.kernels, layer.biases)]
        if layer.norm == "layer":
            args += [twins.array(w[i])[k] for w in (layer.gammas, layer.betas)]
        x = twins.block(x, *args, activation=lambda v: v)
        x = twins.relu(x * twins.array(gammas[i])[k])
    return x


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_sets_with_one_input_equal_networks_scaled_before_the_relu(norm):
    layer, x = made(norm=norm)
    given = [scales(10), scales(20)]
    out = layer([x], given)
    assert len(out) == 2
    for values, gammas in zip(out, given, strict=True):
        for k in range(K):
            expected = twin(layer, x, gammas, k)
            np.testing.assert_allclose(values[k], expected, rtol=1e-3, atol=1e-3)
    twins.check_config(layer)


def test_scale_before_and_after_the_relu_is_the_same_to_the_bit():
    x, gamma, beta = normal([K, N, 5], 1), normal([K, 1, 5], 2), normal([K, 1, 5], 3)
    (scale,) = scales(4, (5,))
    x = normalise.centre(x)
    after = normalise.scale_norm(x, gamma, beta, activation="relu") * scale
    before = tf.nn.relu(normalise.scale_norm(x, gamma, beta) * scale)
    np.testing.assert_array_equal(before, after)


def test_output_layer_is_linear_and_not_scaled():
    layer, x = made((5,), norm="none", output_units=2)
    (out,) = layer([x], [scales(10, (5,))])
    hidden = np.stack([twin(layer, x, scales(10, (5,)), k) for k in range(K)])
    expected = hidden @ twins.array(layer.kernels[1])
    expected += twins.array(layer.biases[1])[:, None]
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


def test_batch_statistics_are_those_of_the_first_sets_valid_rows():
    layer, x = made((5,), norm="batch")
    other = 100.0 * normal([N, 7], 9)
    valid = tf.constant([True] * 5 + [False])
    out = layer([x, other], training=True, valid=valid)
    kernel, bias = twins.array(layer.kernels[0]), twins.array(layer.biases[0])
    (norm,) = layer.batch_norms
    gamma, beta = (twins.array(v).reshape(K, 5) for v in (norm.gamma, norm.beta))
    for k in range(K):
        real = twins.array(x)[:5] @ kernel[k] + bias[k]
        for values, rows in zip(out, (x, other), strict=True):
            z = twins.array(rows) @ kernel[k] + bias[k] - real.mean(0)
            z = z / np.sqrt(real.var(0) + 1e-3) * gamma[k] + beta[k]
            np.testing.assert_allclose(values[k], twins.relu(z), rtol=1e-3, atol=1e-3)
        mean = norm.moving_mean.numpy().reshape(K, 5)[k]
        np.testing.assert_allclose(mean, real.mean(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_gradient_of_a_frozen_set_passes_the_weights_by(norm):
    layer, x = made((5,), norm=norm, output_units=2)
    other = normal([N, 7], 9)
    results = []
    for frozen in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(other)
            out = layer([x, other], training=True, frozen=(False, frozen))
            value = tf.reduce_sum(out[1] ** 2)
        wanted = [other, *layer.trainable_variables]
        results.append((value.numpy(), tape.gradient(value, wanted)))
    (value, (own, *weights)), (same, (own_too, *none)) = results
    assert value == same
    np.testing.assert_allclose(own, own_too, rtol=1e-5)
    assert all(g is not None for g in weights)
    assert none == [None] * len(none)


def test_dropout_of_sets_differs_and_is_off_at_inference():
    layer, x = made((64,), dropout=0.5)
    ones = [[tf.ones([K, N, 64])]] * 2
    first, second = (v.numpy() == 0 for v in layer([x], ones, training=True))
    assert (first != second).any()
    np.testing.assert_array_equal(*layer([x], ones))


def test_networks_without_any_layer_are_refused():
    with pytest.raises(ValueError, match="at least one width"):
        ScaledMLP(K, ())
