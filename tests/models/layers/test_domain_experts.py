import numpy as np
import pytest
import tensorflow as tf

from models.layers.domain_experts import DomainExperts
from models.layers.domain_rows import DomainRows
from tests.models.layers import twins

D = 3
OWN, OTHER = [0, 1, 0, 0, 1, 2], [1, 2, 2, 1, 0, 0]


def run(layer, x, training=False, valid=None, domains=(OWN, OTHER)):
    domains = [tf.constant(d, tf.int32) for d in domains]
    rows = [DomainRows(d, D) for d in domains]
    for layout in rows:
        layout.early = False
    x = tf.constant(x, tf.float32)
    return layer([x] * len(domains), rows, domains, training=training, valid=valid)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(6, 4))


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_rows_go_through_the_network_of_the_domain_of_each_set(x, norm):
    layer = DomainExperts(D, (5, 3), norm=norm)
    run(layer, x)
    twins.randomise(layer)
    stack = layer.stack
    for out, domain in zip(run(layer, x), (OWN, OTHER), strict=True):
        for row, d in enumerate(domain):
            h = x[row]
            for i in range(2):
                args = [stack.kernels[i], stack.biases[i]]
                args += [stack.gammas[i], stack.betas[i]] if norm == "layer" else []
                h = twins.block(h, *(twins.array(a)[d, 0] for a in args))
            np.testing.assert_allclose(out[row], h, rtol=1e-3, atol=1e-3)
    twins.check_config(layer)


def test_batch_statistics_are_those_of_the_domains_own_real_rows(x):
    layer = DomainExperts(D, (5,), norm="batch")
    run(layer, x)
    twins.randomise(layer)
    (linear,), (norm,) = layer.linears, layer.norms
    norm.moving_mean.assign(np.full([D, 5], 0.25))
    out = run(layer, x, training=True)
    kernel, bias = twins.array(linear.kernel), twins.array(linear.bias)
    gamma, beta = twins.array(norm.own_gamma), twins.array(norm.own_beta)
    for values, domain in zip(out, (OWN, OTHER), strict=True):
        for row, d in enumerate(domain):
            real = x[np.array(OWN) == d] @ kernel[d] + bias[d]
            # Domain 2 has a single real row: its moving averages stand in.
            mean, var = (real.mean(0), real.var(0)) if len(real) > 1 else (0.25, 1.0)
            z = (x[row] @ kernel[d] + bias[d] - mean) / np.sqrt(var + 1e-3)
            expected = twins.relu(z * gamma[d] + beta[d])
            np.testing.assert_allclose(values[row], expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(norm.moving_mean[2], np.full(5, 0.25))
    assert [w.shape[0] for w in layer.trainable_variables] == [D] * 4


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_copies_of_a_domain_teach_its_network_alone(x, norm):
    layer = DomainExperts(D, (5, 3), norm=norm)
    domains = (OWN, [1] * 6)
    run(layer, x, domains=domains)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(run(layer, x, training=True, domains=domains)[1] ** 2)
    for gradient in tape.gradient(value, layer.trainable_variables):
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert not np.any(gradient[[0, 2]])
        assert np.isfinite(gradient).all()
