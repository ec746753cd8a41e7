"""A step in passes over parts of its batch is the step of the whole batch."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models import registry  # isort: skip
from models.method import MAIN  # isort: skip
from tests.models.methods import data  # isort: skip

# Their loss, or their norm, is of the whole batch.
WHOLE_BATCH = {"aread", "cctl", "ecat", "ssctl", "star"}
# Plain steps: Adam would make much of a rounding error in a gradient near 0.
PLAIN = {
    "embedding": {"kind": "sgd", "learning_rate": 0.5},
    "dense": {"kind": "sgd", "learning_rate": 0.1},
}


def masked_batch(schema, rows=24):
    """Rows with weights, hidden labels and, at the end, padding."""
    rng = np.random.default_rng(3)
    batch = data.make_batch(schema, rows)
    valid = np.arange(rows) < rows - 4
    mask = rng.integers(0, 2, (rows, schema.num_tasks)) * valid[:, None]
    return batch._replace(
        label_mask=tf.constant(mask, tf.float32),
        weight=tf.constant(rng.random(rows) * valid, tf.float32),
        valid=tf.constant(valid),
    )


def trained(name, batch, *, steps=2, **settings):
    method = data.make_method(name, data.make_schema(), **settings)
    step = tf.function(method.train_step, autograph=False)
    return method, [float(step({MAIN: batch})["loss"]) for _ in range(steps)]


# The shares of a loss are the base's: one method tells for all.
@pytest.mark.parametrize(
    ("name", "loss"),
    [(name, "row_mean") for name in sorted(set(registry.METHODS) - WHOLE_BATCH)]
    + [("mlp", "cell_mean")],
)
def test_steps_in_passes_equal_steps_on_the_whole_batch(name, loss):
    batch = masked_batch(data.make_schema())
    settings = {"optimizer": PLAIN, "loss": loss}
    whole, losses = trained(name, batch, **settings)
    passes, same = trained(name, batch, rows_per_pass=10, **settings)
    np.testing.assert_allclose(same, losses, rtol=1e-5)
    variables = whole.model.trainable_variables
    start = data.make_method(name, data.make_schema(), **settings)
    moved = 0
    for old, a, b in zip(
        start.model.trainable_variables,
        variables,
        passes.model.trainable_variables,
        strict=True,
    ):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
        moved += not np.array_equal(old, a)
    assert moved > len(variables) / 2


def test_several_passes_are_one_step_that_moves_only_rows_of_the_batch():
    batch = masked_batch(data.make_schema(), rows=12)
    whole, _ = trained("mlp", batch, steps=1)
    passes, _ = trained("mlp", batch, steps=1, rows_per_pass=5)
    steps = {k: int(o.iterations) for k, o in passes.optimizers.items()}
    assert steps == {"embedding": 1, "dense": 1}
    start = data.make_method("mlp", data.make_schema())
    for old, a, b in zip(
        start.variable_groups()["embedding"],
        whole.variable_groups()["embedding"],
        passes.variable_groups()["embedding"],
        strict=True,
    ):
        np.testing.assert_array_equal(a != old, b != old)
    assert np.any(a != old)


def test_a_pass_has_at_most_the_rows_asked_for():
    batch = masked_batch(data.make_schema())
    method = data.make_method("mlp", data.make_schema(), rows_per_pass=10)
    plain, seen = method.stacked_logits, []

    def logits(part, *, training):
        seen.append(part.domain.shape[0])
        return plain(part, training=training)

    method.stacked_logits = logits
    tf.function(method.train_step, autograph=False)({MAIN: batch})
    assert seen == [10, 10, 4]


def ancestors(op):
    """All operations that must have run before `op`."""
    found, open_ends = set(), [op]
    while open_ends:
        op = open_ends.pop()
        before = [x.op for x in op.inputs] + list(op.control_inputs)
        open_ends += [o for o in before if o not in found]
        found.update(before)
    return found


def test_a_pass_begins_after_the_gradients_of_the_one_before():
    batch = masked_batch(data.make_schema())
    method = data.make_method("mlp", data.make_schema(), rows_per_pass=10)
    plain, logits = method.stacked_logits, []

    def recorded(part, *, training):
        logits.append(plain(part, training=training))
        return logits[-1]

    method.stacked_logits = recorded
    step = tf.function(method.train_step, autograph=False)
    step.get_concrete_function({MAIN: batch})
    earlier, later = ancestors(logits[0].op), ancestors(logits[1].op)
    assert logits[0].op in later
    assert any(o.type == "ReluGrad" for o in later)
    assert not any(o.type == "ReluGrad" for o in earlier)


def test_fusion_step_takes_passes_too():
    batch = masked_batch(data.make_schema())
    weights = []
    for rows in (0, 9):
        method = data.make_method(
            "m3oe",
            data.make_schema(),
            optimizer=PLAIN,
            fusion_update="alternate",
            rows_per_pass=rows,
        )
        before = method.model.fusion.values()
        method.fusion_step({MAIN: batch})
        weights.append(list(method.model.fusion.values().values()))
        assert weights[-1] != list(before.values())
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(WHOLE_BATCH))
def test_methods_whose_rows_depend_on_each_other_refuse_passes(name):
    with pytest.raises(ValueError, match="rows_per_pass must be 0 .*whole batch"):
        data.make_method(name, data.make_schema(), rows_per_pass=8)


def test_batch_normalisation_refuses_passes():
    with pytest.raises(ValueError, match="MLP normalises by statistics"):
        data.make_method("mlp", data.make_schema(), norm="batch", rows_per_pass=8)


def test_star_without_its_norm_takes_passes():
    batch = masked_batch(data.make_schema())
    settings = {"partitioned_norm": False, "optimizer": PLAIN}
    _, whole = trained("star", batch, **settings)
    _, passes = trained("star", batch, rows_per_pass=11, **settings)
    np.testing.assert_allclose(passes, whole, rtol=1e-5)
