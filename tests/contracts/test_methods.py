"""What every registered method promises.  A new method is tested by its line there."""

import functools

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip
import tf_keras as keras  # isort: skip

from models import registry  # isort: skip
from tests.models.methods import data  # isort: skip

NAMES = sorted(registry.METHODS)
SHARE_EVERYTHING = {"cctl", "din", "ecat", "eta", "mlp"}
# Optimiser groups that the loss must not reach.
NOT_BY_LOSS = {"cctl": ("selector",)}  # learns from the reward


@pytest.fixture(autouse=True)
def _float32():
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def schema():
    return data.make_schema()


@functools.cache
def untrained(name):
    """One method for all tests that only read it: making them is a minute of theirs."""
    return data.make_method(name, data.make_schema())


@pytest.mark.parametrize("rows", [1, 7])
def test_logits_are_float32_one_per_row_by_task(name, schema, rows):
    method = untrained(name)
    out = method.model(data.make_batch(schema, rows).features)
    assert list(out) == list(schema.tasks)
    for value in out.values():
        assert value.shape == [rows]
        assert value.dtype == tf.float32


def test_gradient_reaches_every_trainable_variable(name, schema):
    method = data.make_method(name, schema)
    _, gradients = data.gradients(method, data.make_batch(schema, 64))
    apart = [v for g in NOT_BY_LOSS.get(name, ()) for v in method.variable_groups()[g]]
    for (key, gradient), variable in zip(
        gradients.items(), method.model.trainable_variables, strict=True
    ):
        assert np.any(gradient) != any(variable is v for v in apart), key
    assert all(np.isfinite(g).all() for g in gradients.values())


def test_every_trainable_variable_is_in_one_group(name):
    method = untrained(name)
    grouped = [v.ref() for g in method.variable_groups().values() for v in g]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {v.ref() for v in method.model.trainable_variables}


def test_table_gradients_stay_sparse(name, schema):
    method = data.make_method(name, schema)
    tables = method.variable_groups()["embedding"]
    with tf.GradientTape() as tape:
        loss, _ = method.loss(data.feed(method, data.make_batch(schema, 8)))
    assert tables
    for gradient in tape.gradient(loss, tables):
        assert isinstance(gradient, tf.IndexedSlices)


def test_memorises_64_rows_with_one_trace(name, schema):
    method = data.make_method(name, schema, loss="row_mean")
    step = tf.function(method.train_step, autograph=False)
    batches = data.feed(method, data.make_batch(schema, 64))
    first = float(step(batches)["loss"])
    for _ in range(120):
        last = float(step(batches)["loss"])
    assert last < 0.1 * first
    step(data.feed(method, data.make_batch(schema, 64, seed=5)))
    assert step.experimental_get_tracing_count() == 1


def test_stacked_weights_differ_at_start(name):
    method = untrained(name)
    for variable in method.model.trainable_variables:
        values = variable.numpy()
        if values.ndim < 3 or len(np.unique(values)) == 1:
            continue  # not a stack, or one that starts constant on purpose
        flat = values.reshape(-1, *values.shape[-2:])
        assert len({kernel.tobytes() for kernel in flat}) == len(flat), variable.name


def test_zero_weight_padding_rows_change_nothing(name, schema):
    method = data.make_method(name, schema)
    batch = data.make_batch(schema, 12)
    padding = tf.nest.map_structure(
        lambda x: tf.zeros([5, *x.shape[1:]], x.dtype), batch
    )
    padded = tf.nest.map_structure(lambda a, b: tf.concat([a, b], 0), batch, padding)
    loss, gradients = data.gradients(method, batch)
    state = [v.numpy() for v in method.model.non_trainable_variables]
    method = data.make_method(name, schema)
    padded_loss, padded_gradients = data.gradients(method, padded)
    assert padded_loss == pytest.approx(loss, rel=1e-5)
    # By position: Keras numbers the names of a second model on.
    pairs = zip(gradients.items(), padded_gradients.values(), strict=True)
    for (key, value), padded_value in pairs:
        np.testing.assert_allclose(
            padded_value, value, rtol=1e-3, atol=1e-5, err_msg=key
        )
    for a, b in zip(state, method.model.non_trainable_variables, strict=True):
        np.testing.assert_allclose(b.numpy(), a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [40, 600])
def test_permuting_rows_permutes_logits(name, schema, rows):
    method = untrained(name)
    batch = data.make_batch(schema, rows)
    order = np.random.default_rng(3).permutation(rows)
    np.testing.assert_allclose(
        data.logits(method, data.take(batch, order)),
        data.logits(method, batch)[order],
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_row_scores_the_same_alone_and_in_a_batch(name, schema):
    method = data.make_method(name, schema)
    method.train_step(data.feed(method, data.make_batch(schema, 32, seed=9)))
    batch = data.make_batch(schema, 300)
    together = data.logits(method, batch)
    for row in (0, 150, 299):
        alone = data.logits(method, data.take(batch, [row]))
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(data.logits(method, batch), together)


def test_unknown_batch_size_gives_the_same_logits(name, schema):
    method = untrained(name)
    batch = data.make_batch(schema, 300)
    specs = {
        k: tf.TensorSpec([None, *v.shape[1:]], v.dtype)
        for k, v in batch.features.items()
    }
    call = tf.function(method.model, input_signature=[specs], autograph=False)
    for rows in (1, 300):
        part = data.take(batch, range(rows))
        out = np.stack([v.numpy() for v in call(part.features).values()], axis=1)
        np.testing.assert_allclose(out, data.logits(method, part), rtol=1e-4, atol=1e-6)


def test_saved_weights_give_equal_logits(name, schema, tmp_path):
    batch = data.make_batch(schema, 16)
    method = data.make_method(name, schema)
    method.train_step(data.feed(method, batch))
    path = tf.train.Checkpoint(model=method.model).write(str(tmp_path / "weights"))
    other = data.make_method(name, schema, seed=2)
    assert not np.allclose(data.logits(other, batch), data.logits(method, batch))
    status = tf.train.Checkpoint(model=other.model).read(path)
    status.assert_consumed()
    np.testing.assert_array_equal(data.logits(other, batch), data.logits(method, batch))


def test_same_seed_gives_same_numbers(name, schema):
    batch = data.make_batch(schema, 16)
    runs = []
    for _ in range(2):
        method = data.make_method(name, schema)
        for _ in range(2):
            method.train_step(data.feed(method, batch))
        runs.append(data.logits(method, batch))
    np.testing.assert_array_equal(*runs)


def test_rows_of_one_domain_leave_other_domains_weights_alone(name):
    schema = data.make_schema(num_domains=5)
    method = data.make_method(name, schema)
    _, gradients = data.gradients(method, data.make_batch(schema, 16, domain=[1] * 16))
    own = {
        k: g for k, g in gradients.items() if g.shape[0] == 5 and "embedding" not in k
    }
    if name not in SHARE_EVERYTHING:
        assert own
    for key, gradient in own.items():
        assert not np.any(np.delete(gradient, 1, axis=0)), key
        assert np.any(gradient[1]), key


@pytest.mark.parametrize(("domains", "tasks"), [(1, 1), (1, 2), (3, 1), (30, 2)])
def test_any_number_of_domains_and_tasks(name, domains, tasks):
    schema = data.make_schema(domains, tasks)
    method = data.make_method(name, schema)
    metrics = method.train_step(data.feed(method, data.make_batch(schema, 40)))
    assert np.isfinite(metrics["loss"])
    out = data.logits(method, data.make_batch(schema, 40))
    assert out.shape == (40, tasks)
    assert np.isfinite(out).all()


def test_absent_domain_gives_finite_step(name, schema):
    method = data.make_method(name, schema)
    batch = data.make_batch(schema, 9, domain=[2] * 9)
    method.train_step(data.feed(method, batch))
    assert np.isfinite(data.logits(method, data.make_batch(schema, 20))).all()
    for variable in method.model.variables:
        assert np.isfinite(variable.numpy()).all(), variable.name


def test_ids_outside_their_table_score_as_unknown(name, schema):
    method = untrained(name)
    batch = data.make_batch(schema, 4)
    for bad in (-3, 10**6):
        outside, unknown = (
            dict(batch.features, item=tf.fill([4], value)) for value in (bad, 1)
        )
        for task in schema.tasks:
            np.testing.assert_array_equal(
                method.model(outside)[task], method.model(unknown)[task]
            )


def test_bfloat16_policy_trains_with_float32_logits(name, schema):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    method = data.make_method(name, schema)
    batch = data.make_batch(schema, 24)
    batches = data.feed(method, batch)
    losses = [float(method.train_step(batches)["loss"]) for _ in range(8)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert method.model(batch.features)[schema.tasks[0]].dtype == tf.float32


def test_step_compiles_with_xla(name, schema):
    # Adagrad's first step is nearly linear in the gradient; Adam's is its sign, which
    # rounding decides where the gradient is next to 0.
    adagrad = {"embedding": {"kind": "adagrad"}, "dense": {"kind": "adagrad"}}
    method, twin = (data.make_method(name, schema, optimizer=adagrad) for _ in range(2))
    batch = data.make_batch(schema, 24)
    step = tf.function(method.train_step, jit_compile=True, autograph=False)
    batches = data.feed(method, batch)
    compiled, plain = step(batches)["loss"], twin.train_step(batches)["loss"]
    assert float(compiled) == pytest.approx(float(plain), rel=1e-5)
    np.testing.assert_allclose(
        data.logits(method, batch), data.logits(twin, batch), rtol=1e-2, atol=1e-3
    )


def test_exported_model_gives_equal_scores(name, schema, tmp_path):
    method = data.make_method(name, schema)
    batch = data.make_batch(schema, 20)
    method.train_step(data.feed(method, batch))
    data.check_export(
        method, method.export_model(), method.serving_variables(), batch, tmp_path
    )
