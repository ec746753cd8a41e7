"""SSCTL's network against its equations in float64."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from tests.models.layers import twins  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.methods.ssctl_data import seen_and_classes, ssctl  # isort: skip


def mlp_twin(layer, x, k, gammas=None):
    """Network k of a ScaledMLP on one row; hidden layers scaled before the ReLU."""
    for i, kernel in enumerate(layer.kernels):
        hidden = i < len(layer.hidden_units)
        args = [twins.array(w[i])[k] for w in (layer.kernels, layer.biases)]
        if hidden:
            args += [twins.array(w[i])[k] for w in (layer.gammas, layer.betas)]
        x = twins.block(x, *args, activation=lambda v: v)
        if hidden:
            x = twins.relu(x * (1 if gammas is None else gammas[i][k]))
        assert x.shape == kernel.shape[2:]
    return x


def gamma_twin(net, e_d, e_w):
    """sqrt(DN(e_d) DN(e_w)), [K, units]."""

    def dn(e):
        h = e @ twins.array(net.hidden_kernel) + twins.array(net.hidden_bias)
        a = twins.relu(h) @ twins.array(net.kernel) + twins.array(net.bias)
        return net.scale / (1 + np.exp(-a))

    return np.sqrt(dn(e_d) * dn(e_w))


def logits_twin(method, x, context, d, combination):
    """Logits [T] of one row looked at in domain d, by Eq. (1)-(8) in float64."""
    model, network = method.model, method.model.network
    z = x
    for block in model.classifier.blocks[:-1]:
        z = twins.block(z, block.kernel, block.bias, block.gamma, block.beta)
    last = model.classifier.blocks[-1]
    p = twins.softmax(z @ twins.array(last.kernel) + twins.array(last.bias))
    table = twins.array(model.domain_table.embeddings)
    e_d, e_w = table[d], p @ table[1:]
    nets = network.differentiation["experts"].nets
    gammas = [gamma_twin(net, e_d, e_w) for net in nets]
    count = network.num_experts
    h = [mlp_twin(network.experts, x, k, gammas) for k in range(count)]
    stack, s = network.specific.stack, x
    for i in range(len(stack.kernels)):
        names = ("kernels", "biases", "gammas", "betas")
        s = twins.block(s, *(twins.array(getattr(stack, n)[i])[d, 0] for n in names))
    logits = []
    for t in range(method.schema.num_tasks):
        side = np.concatenate([context, e_d])
        w = twins.softmax(mlp_twin(network.gates, side, t))
        mixed = sum(w[i] * h[i] for i in range(count))
        z = mixed + w[count] * s if combination == "cgc" else np.append(mixed, s)
        logits.append(mlp_twin(network.towers, z, t)[0])
    return logits


@pytest.mark.parametrize("combination", ["concat", "cgc"])
def test_logits_in_own_and_other_domains_equal_the_formula_in_float64(combination):
    method = ssctl(combination=combination)
    rng = np.random.default_rng(0)
    for variable in method.model.trainable_variables:
        variable.assign(variable + 0.3 * rng.normal(size=variable.shape))
    batch = data.make_batch(method.schema, 6)
    others = [(d + 1) % 3 for d in batch.domain.numpy()]
    seen, z = seen_and_classes(method, batch)
    own, other = method.model.look(seen, z, [tf.constant(others)], training=False)
    np.testing.assert_array_equal(data.logits(method, batch), own)
    for looked, domains in ((own, batch.domain.numpy()), (other, others)):
        for row, d in enumerate(domains):
            x, context = twins.array(seen.x)[row], twins.array(seen.context)[row]
            expected = logits_twin(method, x, context, d, combination)
            np.testing.assert_allclose(looked[row], expected, rtol=2e-3, atol=2e-3)
