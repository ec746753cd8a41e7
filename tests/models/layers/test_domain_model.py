import numpy as np
import pytest
import tensorflow as tf

from features.schema import FeatureInfo, ModelSchema
from models.layers.domain_model import DomainModel

SCHEMA = ModelSchema(
    (
        FeatureInfo("item", "item", "id", "item", 50, 2),
        FeatureInfo("indicator", "domain", "id", "indicator", 3, 2),
    ),
    ("a", "b", "c"),
    ("click", "like"),
)


class Echo(DomainModel):
    """Logits that say which row and domain the model worked on."""

    seen = None

    def logits(self, x, domain, rows, training, valid):
        self.seen = {"x": x, "valid": valid, "rows": rows, "training": training}
        return tf.stack([x[:, 0], tf.cast(domain, x.dtype)], axis=1)


def features(rows, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "item": tf.constant(rng.integers(2, 50, rows), tf.int32),
        "domain": tf.constant(rng.integers(0, 3, rows), tf.int32),
    }


@pytest.mark.parametrize("rows", [1, 10, 800])
def test_logits_come_back_by_task_in_the_order_of_the_rows(rows):
    model, inputs = Echo(SCHEMA, embedding_stddev=1.0), features(rows)
    out = model(inputs)
    assert list(out) == ["click", "like"]
    assert model.seen["rows"].early == (rows == 800)
    table = model.embeddings.tables[0].numpy()
    np.testing.assert_array_equal(out["click"], table[inputs["item"].numpy(), 0])
    np.testing.assert_array_equal(out["like"], inputs["domain"])
    assert {v.dtype for v in out.values()} == {tf.float32}


@pytest.mark.parametrize("rows", [10, 800])
def test_rows_that_statistics_may_count_are_the_valid_ones(rows):
    model, inputs = Echo(SCHEMA, embedding_stddev=1.0), features(rows)
    valid = tf.constant(np.random.default_rng(1).random(rows) < 0.5)
    model(inputs | {"valid": valid}, training=True)
    assert model.seen["training"]
    counted = model.seen["valid"].numpy()
    assert counted.sum() == valid.numpy().sum()
    first = np.sort(model.seen["x"].numpy()[counted, 0])
    table = model.embeddings.tables[0].numpy()
    expected = np.sort(table[inputs["item"].numpy()[valid.numpy()], 0])
    np.testing.assert_array_equal(first, expected)


def test_domain_indicator_can_be_left_out():
    with_it = Echo(SCHEMA, embedding_stddev=1.0)
    without = Echo(SCHEMA, embedding_stddev=1.0, use_domain_feature=False)
    assert with_it.embeddings.width == 4
    assert without.embeddings.width == 2


def test_model_without_logits_says_so():
    with pytest.raises(TypeError, match="DomainModel.logits must be written"):
        DomainModel(SCHEMA, embedding_stddev=1.0)(features(3))
