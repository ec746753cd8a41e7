"""What the star method promises beyond the contract of all methods."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models.method import MAIN  # isort: skip
from tests.models.layers import twins  # isort: skip
from tests.models.methods import data  # isort: skip


def star(schema=None, **settings):
    return data.make_method("star", schema or data.make_schema(), **settings)


def twin(method, batch):
    """Partitioned norm by moving averages, star layers, auxiliary network."""
    model = method.model
    x = twins.array(model.embeddings(batch.features))
    domain = batch.domain.numpy()
    h = x
    if model.norm is not None:
        norm = model.norm
        mean, variance = (
            twins.array(v)[domain] for v in (norm.moving_mean, norm.moving_variance)
        )
        scale = twins.array(norm.gamma) * twins.array(norm.own_gamma)[domain]
        shift = twins.array(norm.beta) + twins.array(norm.own_beta)[domain]
        h = scale * (h - mean) / np.sqrt(variance + 1e-3) + shift
    for layer in [*model.stars, model.head]:
        kernel = twins.array(layer.kernel) * twins.array(layer.own_kernel)[domain]
        bias = twins.array(layer.bias) + twins.array(layer.own_bias)[domain]
        h = np.einsum("bi,bio->bo", h, kernel) + bias
        h = h if layer is model.head else twins.relu(h)
    if model.auxiliary is not None:
        hidden, last = model.auxiliary.blocks
        side = twins.block(x, hidden.kernel, hidden.bias)
        h = h + side @ twins.array(last.kernel) + twins.array(last.bias)
    return h


@pytest.mark.parametrize("auxiliary_units", [(8,), ()])
@pytest.mark.parametrize("partitioned_norm", [True, False])
def test_logits_equal_the_formula_in_float64(partitioned_norm, auxiliary_units):
    method = star(partitioned_norm=partitioned_norm, auxiliary_units=auxiliary_units)
    batch = data.make_batch(method.schema, 40)
    method.train_step({MAIN: batch})  # moves the averages
    rng = np.random.default_rng(0)
    for variable in method.model.trainable_variables:
        if "embedding" not in variable.name:
            variable.assign(rng.normal(size=variable.shape))
    expected = twin(method, batch)
    got = data.logits(method, batch)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-2)
    assert np.abs(expected).max() > 1


def test_without_own_weights_norm_and_auxiliary_it_is_one_shared_mlp():
    schema = data.without_indicator()
    method = star(schema, partitioned_norm=False, auxiliary_units=())
    mlp = data.make_method("mlp", schema, norm="none", seed=2)
    blocks = mlp.model.network.blocks
    for layer, block in zip(
        [*method.model.stars, method.model.head], blocks, strict=True
    ):
        block.kernel.assign(layer.kernel)
        block.bias.assign(layer.bias)
    mlp.model.embeddings.set_weights(method.model.embeddings.get_weights())
    batch = data.make_batch(schema, 30)
    np.testing.assert_allclose(
        data.logits(method, batch), data.logits(mlp, batch), rtol=1e-4, atol=1e-6
    )


def test_own_weights_start_neutral_so_that_layers_start_shared():
    for layer in [*star().model.stars, star().model.head]:
        np.testing.assert_array_equal(layer.own_kernel, tf.ones_like(layer.own_kernel))
        assert not np.any(layer.own_bias)


def test_auxiliary_network_reads_the_domain_and_adds_one_logit():
    method = star()
    model = method.model
    batch = data.make_batch(method.schema, 10, domain=[0] * 10)
    whole = data.logits(method, batch)
    x = model.embeddings(batch.features)
    side = model.auxiliary(x).numpy()
    for weight in model.auxiliary.blocks[-1].weights:
        weight.assign(tf.zeros_like(weight))
    np.testing.assert_allclose(data.logits(method, batch), whole - side, atol=1e-5)
    other = dict(batch.features, domain=tf.fill([10], 2))
    assert not np.allclose(model.embeddings(other), x)


def test_training_statistics_are_those_of_the_rows_own_domain():
    """Rows of another domain, whatever they hold, move nothing of this one's."""
    batches = [
        data.make_batch(data.make_schema(), 30, domain=[0] * 20 + [1] * 10, seed=s)
        for s in (1, 1)
    ]
    shifted = dict(batches[1].features)
    shifted["price"] = shifted["price"] + tf.constant([0.0] * 20 + [50.0] * 10)
    batches[1] = batches[1]._replace(features=shifted)
    states = []
    for batch in batches:
        method = star()
        logits = data.logits(method, batch, training=True)
        states.append((logits[:20], method.model.norm.moving_mean.numpy()))
    np.testing.assert_allclose(states[0][0], states[1][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(states[0][1][[0, 2]], states[1][1][[0, 2]], rtol=1e-6)
    assert not np.allclose(states[0][1][1], states[1][1][1])
