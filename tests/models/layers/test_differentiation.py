import math

import numpy as np
import pytest
import tensorflow as tf

from models.layers import differentiation
from models.layers.differentiation import DifferentiationNet, SoftDifferentiation
from tests.models.layers import twins


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def twin(net, x):
    """Values [K, N, units] in float64."""
    x = twins.array(x) @ twins.array(net.hidden_kernel) + twins.array(net.hidden_bias)
    kernel, bias = twins.array(net.kernel), twins.array(net.bias)
    return net.scale * sigmoid(twins.relu(x) @ kernel + bias[:, None])


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(6, 4)).astype("f")


@pytest.mark.parametrize("networks", [1, 3])
def test_gate_and_its_root_equal_the_formula_in_float64(x, networks):
    net = DifferentiationNet(5, hidden_units=7, num_networks=networks, scale=3.0)
    net(x)
    twins.randomise(net)
    expected = twin(net, x)
    assert expected.shape == (networks, 6, 5)
    np.testing.assert_allclose(net(x), expected, rtol=1e-4)
    np.testing.assert_allclose(net(x, root=True), np.sqrt(expected), rtol=1e-4)
    twins.check_config(net)


def test_scales_are_roots_of_products_of_the_two_embeddings_gates():
    rng = np.random.default_rng(1)
    vectors, soft = rng.normal(size=(3, 4)), rng.normal(size=(6, 4))
    layer = SoftDifferentiation(2, (5, 3), hidden_units=7)
    own, other = [0, 1, 2, 2, 0, 1], [2, 2, 2, 0, 1, 1]
    inputs = [tf.constant(v, tf.float32) for v in (vectors, soft)]
    domains = [tf.constant(own), tf.constant(other)]
    layer(*inputs, domains)
    twins.randomise(layer)
    scales = layer(*inputs, domains)
    for given, domain in zip(scales, (own, other), strict=True):
        for net, gamma in zip(layer.nets, given, strict=True):
            expected = np.sqrt(twin(net, vectors[domain]) * twin(net, soft))
            np.testing.assert_allclose(gamma, expected, rtol=1e-4)
    twins.check_config(layer)


def test_shared_networks_get_one_scale(x):
    layer = SoftDifferentiation(4, (5,), share_networks=True)
    ((gamma,),) = layer(x[:2], x, [tf.zeros([6], tf.int32)])
    assert gamma.shape == [1, 6, 5]


@pytest.mark.parametrize("units", [1, 7, 64])
def test_zero_last_layer_gives_exactly_one(units):
    net = DifferentiationNet(units)
    x = tf.random.stateless_normal([9, 4], [1, 2])
    net(x)
    net.kernel.assign(tf.zeros_like(net.kernel))
    np.testing.assert_array_equal(net(x), np.ones([1, 9, units]))
    np.testing.assert_array_equal(net(x, root=True), np.ones([1, 9, units]))


def test_root_has_a_finite_gradient_where_the_sigmoid_underflows():
    x = tf.constant([-1e4, -300.0, -90.0, -3.0, 0.0, 2.0, 90.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        root = differentiation.root_gate(x, 2.0)
    gradient = tape.gradient(root, x).numpy()
    assert np.isfinite(root).all()
    assert np.isfinite(gradient).all()
    assert float(root[2]) == pytest.approx(math.sqrt(2.0) * math.exp(-45.0), rel=1e-4)
    wide = x[2:6].numpy().astype("f8")
    exact = 0.5 * np.sqrt(2 * sigmoid(wide)) * sigmoid(-wide)
    np.testing.assert_allclose(gradient[2:6], exact, rtol=1e-5)


def test_rows_of_a_table_and_their_gradient_equal_a_gather():
    table = tf.random.stateless_normal([2, 3, 5], [1, 2])
    index = tf.constant([2, 0, 2, 2])
    up = tf.random.stateless_normal([2, 4, 5], [3, 4])
    results = []
    for take in (differentiation.take_rows, lambda t, i: tf.gather(t, i, axis=1)):
        with tf.GradientTape() as tape:
            tape.watch(table)
            value = tf.reduce_sum(take(table, index) * up)
        gradient = tf.convert_to_tensor(tape.gradient(value, table))
        results.append((value.numpy(), gradient.numpy()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)
