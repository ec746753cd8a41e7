"""What the mlp method promises beyond the contract of all methods."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.mlp import MLPConfig  # isort: skip
from tests.models.methods import data  # isort: skip


def count(method):
    return sum(int(tf.size(v)) for v in method.model.trainable_variables)


def test_mixed_model_reads_the_domain_only_as_a_feature():
    schema = data.make_schema()
    batch = data.make_batch(schema, 9, domain=[0] * 9)
    other = batch._replace(features=batch.features | {"domain": tf.fill([9], 2)})
    method = data.make_method("mlp", schema)
    assert not np.allclose(data.logits(method, batch), data.logits(method, other))
    method = data.make_method("mlp", schema, domain_feature=False)
    np.testing.assert_array_equal(
        data.logits(method, batch), data.logits(method, other)
    )


def test_mixed_model_of_one_domain_is_the_single_domain_model():
    """Forms are runs over fewer domains: D = 1 has no weights of its own."""
    settings = {"domain_feature": False}
    single = data.make_method("mlp", data.make_schema(1), **settings)
    mixed = data.make_method("mlp", data.make_schema(3), **settings)
    batch = data.make_batch(data.make_schema(1), 12)
    assert count(single) == count(mixed)
    np.testing.assert_array_equal(data.logits(single, batch), data.logits(mixed, batch))
    for method in (single, mixed):
        method.train_step({MAIN: batch})
    np.testing.assert_array_equal(data.logits(single, batch), data.logits(mixed, batch))


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_number_of_weights_follows_the_formula(norm):
    method = data.make_method("mlp", data.make_schema(), norm=norm)
    width, scale = method.model.embeddings.width, 0 if norm == "none" else 2
    tables = 4 * (90 + 50 + 9 + 3)
    blocks = width * 16 + 16 + 16 * 8 + 8 + scale * (16 + 8)
    assert count(method) == tables + blocks + 8 * 2 + 2


@pytest.mark.parametrize("rank", [None, 4])
def test_cross_layers_make_it_dcn_v2_trained_by_every_weight(rank):
    method = data.make_method(
        "mlp", data.make_schema(), cross_layers=2, cross_rank=rank
    )
    width = method.model.embeddings.width
    each = width * width if rank is None else 2 * width * rank
    plain = data.make_method("mlp", data.make_schema())
    assert count(method) == count(plain) + 2 * (each + width)
    batch = data.make_batch(method.schema, 64)
    _, gradients = data.gradients(method, batch)
    assert all(np.any(g) for g in gradients.values())
    losses = [float(method.train_step({MAIN: batch})["loss"]) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_dcn_v2_exports_with_its_cross_weights(tmp_path):
    method = data.make_method("mlp", data.make_schema(), cross_layers=1)
    batch = data.make_batch(method.schema, 20)
    data.check_export(
        method, method.serving_model(), method.serving_variables(), batch, tmp_path
    )


def test_impossible_settings_are_refused():
    for bad in ({"cross_rank": 0}, {"cross_layers": -1}, {"norm": "group"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            MLPConfig.parse(bad)
