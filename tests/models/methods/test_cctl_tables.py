"""CCTL whose source rows are read by the target's tables."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models.methods.cctl import SOURCE  # isort: skip
from tests.models.methods import data  # isort: skip


def cctl(**settings):
    settings = {"ren_weight": 0.0, "source_embedding": "target"} | settings
    return data.make_method("cctl", data.make_schema(), **settings)


def batches(method, seed=0):
    return data.feed(method, data.make_batch(method.schema, 32, seed=seed))


def gradient_of(method, part, given, variables):
    with tf.GradientTape() as tape:
        value = getattr(method._parts(given), part)
    grads = tape.gradient(value, variables)
    return [None if g is None else tf.convert_to_tensor(g).numpy() for g in grads]


def test_source_rows_teach_the_tables_that_the_target_reads():
    method = cctl()
    (table, *_) = method.model.target.variables
    assert np.any(gradient_of(method, "source", batches(method), [table])[0])
    own = cctl(source_embedding="own")
    (table, *_) = own.model.target.variables
    assert gradient_of(own, "source", batches(own), [table]) == [None]


def test_there_is_no_second_set_of_tables():
    def size(method):
        return sum(int(np.prod(v.shape)) for v in method.model.trainable_variables)

    own, shared = cctl(source_embedding="own"), cctl()
    tables = sum(int(np.prod(v.shape)) for v in own.model.source.trainable_variables)
    assert size(own) - size(shared) == tables


def test_separate_pure_tables_hear_of_source_rows_at_the_sync_only():
    found = []
    for seed in (0, 50):
        method = cctl(scn_embedding="separate", window=1000)
        for step in range(2):
            given = batches(method, step)
            given[SOURCE] = batches(method, seed + step)[SOURCE]
            method.train_step(given)
        before = [v.numpy() for v in method.model.pure_target.variables]
        method.sync()
        found.append((before, [v.numpy() for v in method.model.pure_target.variables]))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(*p) for p in zip(*(f[1] for f in found), strict=True))


def test_source_row_scores_as_a_target_row_in_the_mixed_tower():
    """One reading for all rows: the same ids give the same logits."""
    method = cctl()
    batch = data.make_batch(method.schema, 12, domain=[0] * 12)
    index = method.model.source_index(batch.features)
    np.testing.assert_array_equal(
        method.model.source_rows(batch.features, index),
        method.model.target(batch.features),
    )


def test_enhancement_needs_tables_of_two_kinds():
    with pytest.raises(ConfigError, match="ren_weight must be 0 with source_embedding"):
        cctl(ren_weight=0.1)


def test_rows_of_other_features_cannot_be_read_by_the_targets_tables():
    with pytest.raises(ValueError, match="source_embedding can be `target` only"):
        cctl(source_features=("user", "item"))
