"""The head that adds crossed inputs to the outputs of AREAD's experts."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import tf_keras as keras  # isort: skip

from models.layers.cross_head import CrossHead  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.methods.aread_data import aread  # isort: skip


def test_head_is_a_linear_layer_on_crossed_inputs_and_one_on_the_inputs():
    keras.utils.set_random_seed(3)
    head = CrossHead(4, 2, num_layers=2)
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("f")
    found = head(x).numpy()
    assert found.shape == (4, 5, 2)
    for variable in head.variables:  # biases too
        rng = np.random.default_rng(variable.shape.rank)
        variable.assign(rng.normal(size=variable.shape).astype("f"))
    first = crossed = x.astype("f8")
    for cross in head.crosses.crosses:
        kernel, bias = (w.numpy().astype("f8") for w in cross.weights)
        crossed = first * (crossed @ kernel + bias) + crossed
    each = crossed @ head.each.kernel.numpy().astype("f8")
    kernel, bias = (w.numpy().astype("f8") for w in head.wide.weights)
    wide = first @ kernel + bias
    for row in range(5):
        for output in range(4):
            np.testing.assert_allclose(
                head(x).numpy()[output, row],
                each[row].reshape(4, 2)[output] + wide[row],
                rtol=1e-4,
                atol=1e-4,
            )


def test_aread_adds_the_head_to_the_outputs_of_all_experts():
    method = aread(head="dcn")
    model, batch = method.model, data.make_batch(method.schema, 12)
    outputs, _ = model.all_outputs(batch.features, training=False)
    inputs, added = model.base(batch.features)
    experts, _ = model.hierarchy(inputs, batch.domain)
    np.testing.assert_allclose(outputs, experts + added, rtol=1e-6)
    x = model.embeddings({k: v for k, v in batch.features.items() if k != "valid"})
    np.testing.assert_array_equal(added, model.head(x))
    assert np.abs(added).max() > 1e-3
