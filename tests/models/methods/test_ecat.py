"""The properties of ECAT's losses, weights and fusion (1, 2, 4 to 7 of our notes).

Those of the source and of what serves are in `test_ecat_source.py`; those of the sample
selection (10) and of the daily loop (11) are tested with the jobs.
"""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models.ecat import terms  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.ecat import ECATConfig  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.methods.ecat_data import (  # isort: skip
    sigmoid,
    entropy,
    cosine,
    ecat,
    both_taps,
    feed,
    with_features,
    forward,
    parts_of,
    reached,
    shut_gates,
    set_discriminator,
    GST,
)


# ------------------------------------------------------------------- 1, 2, 5: gradients


def test_discriminator_loss_moves_the_discriminator_only():
    method = both_taps()
    batches = feed(method.schema)
    with tf.GradientTape() as tape:
        out, batch, is_target = forward(method, batches)
        logits = method.model.discriminate(out.parts)
        loss = terms.balanced_loss(logits, is_target, batch.weight)
    source = method._source.model.variables
    names = parts_of(method)
    every = [v for group in names.values() for v in group] + source
    found = reached(tape, loss, every)
    count = len(names["discriminator"])
    expected = [any(v is w for w in names["discriminator"]) for v in every]
    assert found == expected
    assert sum(found) == count == 6


def test_distillation_moves_the_adapter_and_neither_model():
    method = both_taps()
    batches = feed(method.schema)
    names = parts_of(method)
    source = method._source.model.variables
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(source)
        out, batch, _ = forward(method, batches)
        theirs = method._source.represent(batch.features)
        loss, _ = terms.distillation(out, theirs, batch.weight, method.config)
    assert all(reached(tape, loss, names.pop("adapter")))
    others = [v for group in names.values() for v in group] + source
    assert not any(reached(tape, loss, others))


def test_task_loss_moves_target_adapter_and_gate_but_not_the_source():
    method = both_taps()
    names = parts_of(method)
    source = method._source.model.variables
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(source)
        _, metrics = method.loss(feed(method.schema))
        loss = metrics["loss"]
    for name in ("target", "adapter", "gate"):
        assert all(reached(tape, loss, names[name])), name
    for name in ("entropy", "discriminator"):
        assert not any(reached(tape, loss, names[name])), name
    assert not any(reached(tape, loss, source))


def test_adapter_gives_the_target_no_gradient_through_its_input():
    """With T's own path cut, nothing of T below the tap is taught."""
    method = both_taps()
    served = method.model.served
    with tf.GradientTape() as tape:
        out, _, _ = forward(method, feed(method.schema))
        value = tf.add_n([tf.reduce_sum(v**2) for v in out.adapted.values()])
        value += tf.add_n([tf.reduce_sum(v) for v in out.gates.values()])
    assert not any(reached(tape, value, served.target.trainable_variables))


@pytest.mark.parametrize("kind", ["one_sided", "entropy", "ratio"])
def test_row_weights_are_constants_for_gradients(kind):
    logits, is_target = tf.constant([-2.0, -1.0, 0.5]), tf.constant([0.0, 1.0, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = tf.reduce_sum(terms.domain_weights(logits, is_target, kind))
    assert tape.gradient(value, logits) is None


# --------------------------------------------------------------------- 5: the weights


def test_domain_weights_by_hand():
    logits = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    q = sigmoid(logits)
    inputs = tf.constant(logits, tf.float32), tf.zeros([5])
    cases = {
        "one_sided": np.where(q < 0.5, entropy(q), 1.0),
        "entropy": entropy(q),
        "ratio": np.minimum(q / (1 - q), 1.0),
    }
    for kind, expected in cases.items():
        np.testing.assert_allclose(
            terms.domain_weights(*inputs, kind), expected, rtol=1e-5
        )


@pytest.mark.parametrize("kind", ["one_sided", "ratio"])
def test_domain_weights_rise_with_q_up_to_one_and_target_rows_have_one(kind):
    logits = tf.constant(np.linspace(-1e3, 1e3, 401), tf.float32)
    weights = terms.domain_weights(logits, tf.zeros([401]), kind).numpy()
    assert np.all(np.diff(weights) >= 0)
    assert np.all((weights >= 0) & (weights <= 1))
    middle = np.abs(logits.numpy()) <= 10
    assert np.all(np.diff(weights[middle & (logits.numpy() < 0)]) > 0)
    assert np.all(weights[logits.numpy() >= 0] == 1.0)
    target = terms.domain_weights(logits, tf.ones([401]), kind).numpy()
    np.testing.assert_array_equal(target, 1.0)


def test_intensity_by_hand():
    method = both_taps()
    own = tf.constant([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    theirs = tf.constant([[2.0, 0.0], [4.0, 3.0], [-1.0, -1.0]])
    out = forward(method, feed(method.schema, rows=3))[0]
    out = out._replace(logits=out.logits[:3])

    def given(**settings):
        config = ECATConfig(target_domain="d0", **settings)
        return terms.intensity(own, theirs, out, config)

    np.testing.assert_allclose(given(), [1.0, 0.98, 0.0], atol=1e-6)
    np.testing.assert_allclose(given(w_pow="novelty"), [0.0, 0.02, 1.0], atol=1e-6)
    np.testing.assert_array_equal(given(use_intensity=False), [1.0, 1.0, 1.0])
    expected = entropy(sigmoid(out.guess)).mean(axis=1)
    np.testing.assert_allclose(given(w_pow="entropy"), expected, rtol=1e-4)


def test_discriminators_loss_counts_both_classes_the_same():
    logits = np.array([0.3, -1.0, 2.0, 0.5])
    is_target = np.array([1.0, 0.0, 0.0, 0.0])
    weight = np.array([1.0, 1.0, 1.0, 0.0])
    losses = np.where(is_target, -np.log(sigmoid(logits)), -np.log(sigmoid(-logits)))
    expected = 0.5 * losses[0] + 0.5 * (losses[1] + losses[2]) / 2
    got = terms.balanced_loss(
        *(tf.constant(x, tf.float32) for x in (logits, is_target, weight))
    )
    assert float(got) == pytest.approx(expected, rel=1e-6)
    alone = terms.balanced_loss(tf.zeros([2]), tf.ones([2]), tf.ones([2]))
    assert float(alone) == pytest.approx(0.5 * np.log(2), rel=1e-6)


# ------------------------------------------------------------------------ the equation


@pytest.mark.parametrize("kind", ["one_sided", "entropy"])
def test_loss_is_equation_2_in_float64(kind):
    method = ecat(alpha=0.3, beta=0.7, w_da=kind)
    batches = feed(method.schema, empty=(2, 5))
    loss, metrics = method.loss(batches)
    out, batch, is_target = forward(method, batches)
    q = sigmoid(method.model.discriminate(out.parts))
    t, y = is_target.numpy(), batch.labels.numpy()
    w = entropy(q)
    if kind == "one_sided":
        w = np.where((t == 1) | (q >= 0.5), 1.0, w)

    def bce(logits):
        p = sigmoid(logits)
        return -y * np.log(p) - (1 - y) * np.log(1 - p)

    l_y = (w[:, None] * bce(out.logits)).sum() / len(t)
    own_head = bce(out.guess).sum() / len(t)
    theirs = method._source.represent(batch.features)
    has_items = (batch.features["history"].numpy() != 0).any(1)
    assert has_items.sum() == 20
    power = (1 + cosine(out.parts.sequence, theirs.sequence)) / 2
    l_di = power * (1 - cosine(out.adapted["sequence"], theirs.sequence)) * has_items
    l_da = -np.where(t == 1, np.log(q), np.log(1 - q))
    l_da = 0.5 * l_da[t == 1].mean() + 0.5 * l_da[t == 0].mean()
    expected = l_y + 0.3 * l_di.mean() + 0.7 * l_da + own_head
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(l_y, rel=1e-4)
    assert float(metrics["distillation_loss"]) == pytest.approx(l_di.mean(), rel=1e-4)
    assert float(metrics["w_da"]) == pytest.approx(w[t == 0].mean(), rel=1e-4)


def test_padding_rows_change_nothing_with_a_source():
    method = both_taps()
    batches = feed(method.schema)
    padded = {
        name: tf.nest.map_structure(
            lambda x: tf.concat([x, tf.zeros([3, *x.shape[1:]], x.dtype)], 0), batch
        )
        for name, batch in batches.items()
    }
    (loss, metrics), (other, others) = method.loss(batches), method.loss(padded)
    assert float(other) == pytest.approx(float(loss), rel=1e-5)
    for name, value in metrics.items():
        assert float(others[name]) == pytest.approx(float(value), rel=1e-4), name


def test_fusion_adds_the_gated_adaptation():
    method = both_taps()
    out, _, _ = forward(method, feed(method.schema))
    fused = {
        tap: getattr(out.parts, tap) + out.gates[tap] * out.adapted[tap]
        for tap in ("fields", "sequence")
    }
    expected = method.model.served.target.upper(fused["fields"], fused["sequence"])
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-5)
    for gate in out.gates.values():
        assert np.all((gate > 0) & (gate < 1))


# ------------------------------------------------------------- 4: what g = 0 leaves


@pytest.mark.parametrize("entropy_source", ["head", "base_pass"])
def test_shut_gate_gives_the_logits_of_the_target_model(entropy_source):
    method = ecat(entropy_source=entropy_source)
    batch = data.make_batch(method.schema, 16)
    plain = method.model.served.target(batch.features)
    assert not np.allclose(data.logits(method, batch)[:, 0], plain["t0"])
    shut_gates(method)
    for t, task in enumerate(method.schema.tasks):
        np.testing.assert_array_equal(data.logits(method, batch)[:, t], plain[task])


def test_shut_gate_and_no_other_loss_train_the_target_model_alone():
    schema = data.make_schema()
    method = ecat(schema, alpha=0.0, beta=0.0, use_da=False)
    shut_gates(method)
    alone = data.make_method("eta", schema)
    target = method.model.served.target
    for seed in range(5):
        batches = feed(schema, seed=seed)
        method.train_step(batches)
        alone.train_step({MAIN: terms.join(batches)[0]})
    pairs = zip(target.variables, alone.model.variables, strict=True)
    for own, other in pairs:
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6, err_msg=own.name)


def test_target_model_starts_the_same_with_and_without_a_source():
    schema = data.make_schema()
    plain = ecat(schema, use_distillation=False)
    method = ecat(schema)
    pairs = zip(
        plain.model.served.target.variables,
        method.model.served.target.variables,
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)


# --------------------------------------------------------- 6, 7: rows and features


@pytest.mark.parametrize("how", ["w_da", "weight"])
def test_rows_of_weight_zero_leave_the_target_model_alone(how):
    method = ecat()
    batches = feed(method.schema)
    if how == "w_da":
        set_discriminator(method, -1e4)  # sure of every row: entropy 0
    else:
        zeros = tf.zeros_like(batches[GST].weight)
        batches[GST] = batches[GST]._replace(weight=zeros)

    def gradients(batches):
        variables = method.model.served.target.trainable_variables
        with tf.GradientTape() as tape:
            loss, _ = method.loss(batches)
        found = tape.gradient(loss, variables)
        return [tf.convert_to_tensor(g).numpy() for g in found]

    before = gradients(batches)
    assert all(np.any(g) for g in before)
    other = data.make_batch(method.schema, 12, seed=33, domain=[2] * 12)
    other = other._replace(weight=batches[GST].weight)
    for a, b in zip(before, gradients(batches | {GST: other}), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_discriminator_is_blind_to_domain_specific_features():
    method = ecat(domain_specific_features=("user", "price", "history"))
    batch = data.make_batch(method.schema, 12)
    served = method.model.served

    def q(**changes):
        parts = served.target.represent(batch.features | changes)
        return method.model.discriminate(parts).numpy()

    before = q()
    roll = {k: tf.roll(v, 1, axis=0) for k, v in batch.features.items()}
    for name in ("user", "price", "history", "domain"):
        np.testing.assert_array_equal(q(**{name: roll[name]}), before)
    for name in ("item", "tags"):
        assert np.any(q(**{name: roll[name]}) != before), name
    # An item that is hidden is not seen through the history it is compared with.
    method = ecat(domain_specific_features=("item",))
    served, before = method.model.served, None
    for item in (batch.features["item"], roll["item"]):
        now = q(item=item)
        before = now if before is None else before
        np.testing.assert_array_equal(now, before)


def test_source_rows_like_the_target_get_more_weight():
    """Half of the source rows have the target's prices, half have others."""
    schema = data.make_schema()
    method = ecat(schema, use_distillation=False)
    step = tf.function(method.train_step, autograph=False)
    like = np.arange(64) < 32

    def rows(seed):
        batches = feed(schema, rows=64, seed=seed)
        shift = {MAIN: 1.5, GST: tf.constant(np.where(like, 1.5, -1.5), tf.float32)}
        return {
            name: with_features(batch, price=batch.features["price"] + shift[name])
            for name, batch in batches.items()
        }

    for seed in range(0, 120, 2):
        step(rows(seed))
    out, _, is_target = forward(method, rows(1000))
    logits = method.model.discriminate(out.parts)
    weights = terms.domain_weights(logits, is_target, "one_sided").numpy()[64:]
    assert weights[:32].mean() > weights[32:].mean() + 0.3
