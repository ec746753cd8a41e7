"""What the shared_bottom method promises beyond the contract of all methods."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from tests.models.layers import twins  # isort: skip
from tests.models.methods import data  # isort: skip


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_one_head_is_an_mlp_of_the_same_depth(norm):
    schema = data.make_schema(1, 1)
    method = data.make_method("shared_bottom", schema, norm=norm)
    mlp = data.make_method("mlp", schema, norm=norm, hidden_units=(16, 8, 8), seed=2)
    twins.randomise(method.model)
    ours, blocks = method.model, mlp.model.network.blocks
    hidden = ours.towers.hidden
    pairs = [(ours.embeddings.weights, mlp.model.embeddings.weights)]
    pairs += [
        (a.weights, b.weights)
        for a, b in zip(ours.bottom.blocks, blocks[:2], strict=True)
    ]
    pairs += [(hidden.weights, blocks[2].weights)]
    pairs += [([ours.towers.kernel, ours.towers.bias], blocks[3].weights)]
    for sources, targets in pairs:
        for source, target in zip(sources, targets, strict=True):
            target.assign(tf.reshape(source, target.shape))
    batch = data.make_batch(schema, 30)
    np.testing.assert_allclose(
        data.logits(method, batch), data.logits(mlp, batch), rtol=1e-4, atol=1e-5
    )


def test_equal_towers_make_the_domain_id_irrelevant():
    method = data.make_method("shared_bottom", data.without_indicator())
    batch = data.make_batch(method.schema, 9, domain=[0] * 9)
    other = batch._replace(features=batch.features | {"domain": tf.fill([9], 2)})
    assert not np.allclose(data.logits(method, batch), data.logits(method, other))
    for variable in method.model.towers.trainable_variables:
        variable.assign(tf.repeat(variable[:1], 3, axis=0))
    np.testing.assert_allclose(
        data.logits(method, batch), data.logits(method, other), atol=1e-6
    )


def test_domains_share_the_bottom_and_own_their_towers():
    method = data.make_method("shared_bottom", data.make_schema())
    _, gradients = data.gradients(
        method, data.make_batch(method.schema, 12, domain=[1] * 12)
    )
    bottom = {v.ref() for v in method.model.bottom.trainable_variables}
    towers = {v.ref() for v in method.model.towers.trainable_variables}
    pairs = zip(method.model.trainable_variables, gradients.values(), strict=True)
    for variable, gradient in pairs:
        if variable.ref() in bottom:
            assert np.any(gradient)
        if variable.ref() in towers:
            assert np.any(gradient[1])
            assert not np.any(gradient[[0, 2]])
    assert len(bottom) == 8
    assert len(towers) == 6
