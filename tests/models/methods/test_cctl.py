"""The fifteen properties of CCTL, and what its settings do."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models import losses  # isort: skip
from models.cctl.model import tower_logits  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.cctl import SOURCE, CCTLConfig  # isort: skip
from models.training import strategy  # isort: skip
from models.training.checkpoint import Checkpoints, RunState  # isort: skip
from tests.models.methods import data  # isort: skip

SURE = 1e4  # sigmoid(1e4) is 1 and sigmoid(-1e4) is 0 in float32


def cctl(schema=None, **settings):
    settings = {"ren_weight": 0.0, "window": 5} | settings
    return data.make_method("cctl", schema or data.make_schema(), **settings)


def batches(method, rows=32, seed=0):
    return data.feed(method, data.make_batch(method.schema, rows, seed=seed))


def run(method, steps, first=1, step=None):
    """Steps first..steps of a run, with the event at the end of each window."""
    (event,) = method.periodic_events()
    rewards = []
    for i in range(first, steps + 1):
        metrics = (step or method.train_step)(batches(method, seed=i))
        rewards.append(float(metrics["reward"]))
        if i % event.every_steps == 0:
            event.run()
    return rewards


def values(variables):
    return [v.numpy() for v in variables]


def assert_equal(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def differs(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def twin_state(method):
    """Weights, slots and counters of the mixed and of the pure side."""
    found = []
    for variables in method.model.twins():
        state = values(variables)
        for optimizer in method.optimizers.values():
            for variable in variables:
                if any(variable is v for v in optimizer.model_variables):
                    state += values(optimizer.slots(variable).values())
                    state.append(optimizer.iterations.numpy())
        found.append(state)
    return found


def force(monkeypatch, method, logits):
    """The selector gives these logits: one for all rows, or one each."""
    own = type(method.model.selector).call
    monkeypatch.setattr(
        method.model.selector,
        "call",
        lambda x, source: (
            0.0 * own(method.model.selector, x, source)
            + tf.constant(logits, tf.float32)
        ),
    )


def gradients_of(method, part, given, variables):
    with tf.GradientTape() as tape:
        value = getattr(method._parts(given), part)
    found = tape.gradient(value, variables)
    return [None if g is None else tf.convert_to_tensor(g).numpy() for g in found]


# ------------------------------------------------------------------ 1, 2: towers


@pytest.mark.parametrize("embedding", ["shared", "separate"])
def test_sync_makes_pure_the_twin_of_mixed_to_the_bit(embedding):
    method = cctl(scn_embedding=embedding)
    assert_equal(*twin_state(method))
    run(method, 3)
    assert differs(*twin_state(method))
    method.sync()
    assert_equal(*twin_state(method))
    if embedding == "shared":
        assert len(twin_state(method)[0]) == 6 * 4  # kernel or bias, m, v, counter
        assert method.model.pure_target is method.model.target
    else:
        assert len(twin_state(method)[0]) == 7 * 4


@pytest.mark.parametrize("why", ["weight", "padding"])
def test_towers_stay_twins_and_reward_is_zero_without_source_weight(why, monkeypatch):
    method = cctl(window=1000)
    if why == "weight":
        force(monkeypatch, method, -SURE)
    for seed in range(3):
        given = batches(method, seed=seed)
        if why == "padding":
            given[SOURCE] = tf.nest.map_structure(tf.zeros_like, given[SOURCE])
        assert float(method.train_step(given)["reward"]) == 0.0
        assert_equal(*twin_state(method))


# ------------------------------------------------- 3, 4, 5: who teaches whom


def test_source_row_of_no_weight_changes_no_gradient(monkeypatch):
    method = cctl()
    given = batches(method, 24)
    row = int(np.flatnonzero(given[SOURCE].valid.numpy())[0])
    logits = np.zeros(24)
    logits[row] = -SURE
    force(monkeypatch, method, logits)
    variables = method.model.trainable_variables
    found = []
    for item in (3, 40):
        source = given[SOURCE]
        items = source.features["item"].numpy()
        items[row] = item
        labels = source.labels.numpy()
        labels[row] = item % 2
        source = source._replace(
            features=source.features | {"item": tf.constant(items)},
            labels=tf.constant(labels),
        )
        grads = gradients_of(method, "source", given | {SOURCE: source}, variables)
        found.append([g for g in grads if g is not None])
    assert_equal(*found)
    assert any(np.any(g) for g in found[0])


def test_gradient_of_source_rows_is_linear_in_their_weights(monkeypatch):
    method = cctl()
    given, variables = batches(method, 16), method.model.trainable_variables
    probs = np.random.default_rng(0).uniform(0.1, 0.9, 16)

    def source_gradient(p):
        logits = np.where(p == 0, -SURE, np.where(p == 1, SURE, 0.0))
        inside = (p > 0) & (p < 1)
        logits[inside] = np.log(p[inside] / (1 - p[inside]))
        force(monkeypatch, method, logits)
        grads = gradients_of(method, "source", given, variables)
        return [g for g in grads if g is not None]

    expected = None
    for row in range(16):
        one = source_gradient(np.eye(16)[row])
        scaled = [probs[row] * g for g in one]
        expected = (
            scaled
            if expected is None
            else [a + b for a, b in zip(expected, scaled, strict=True)]
        )
    for got, want in zip(source_gradient(probs), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_loss_never_reaches_the_selector_and_score_nothing_else():
    method = cctl(data.make_schema(), source_features=("user", "item", "price"))
    given = batches(method)
    own = method.model.selector.trainable_variables
    rest = [v for v in method.model.trainable_variables if not any(v is w for w in own)]
    assert method.model.align is not None
    for part in ("pure", "target", "source", "ren"):
        assert gradients_of(method, part, given, own) == [None] * len(own)
    assert gradients_of(method, "score", given, rest) == [None] * len(rest)
    assert all(np.any(g) for g in gradients_of(method, "score", given, own))


def test_pure_loss_never_reaches_source_tables_and_alignment():
    method = cctl(source_features=("user", "item", "price"))
    model, given = method.model, batches(method)
    away = [*model.source.variables, *model.align.variables, *model.mixed.variables]
    assert gradients_of(method, "pure", given, away) == [None] * len(away)
    own = [*model.pure.trainable_variables, *model.target.trainable_variables]
    assert all(np.any(g) for g in gradients_of(method, "pure", given, own))
    taught = [*model.source.variables, *model.align.variables]
    assert all(np.any(g) for g in gradients_of(method, "source", given, taught))


def test_pure_tower_does_not_depend_on_the_source_batch():
    found = []
    for seed in (0, 50):
        method = cctl(scn_embedding="separate", window=1000)
        for step in range(2):
            given = batches(method, seed=step)
            given[SOURCE] = batches(method, seed=seed + step)[SOURCE]
            method.train_step(given)
        found.append([values(side) for side in method.model.twins()])
    assert_equal(found[0][1], found[1][1])
    assert differs(found[0][0], found[1][0])


def test_shared_target_tables_learn_as_from_one_target_loss():
    method = cctl()  # the towers are twins
    given, tables = batches(method), method.model.target.variables
    parts = [gradients_of(method, part, given, tables) for part in ("pure", "target")]
    main = given[MAIN]
    with tf.GradientTape() as tape:
        logits = tower_logits(method.model.pure, method.model.target(main.features))
        rows = losses.bce(logits, main.labels) * main.label_mask
        value = tf.reduce_sum(rows) / tf.reduce_sum(main.weight)
    alone = tf.convert_to_tensor(tape.gradient(value, tables)[0]).numpy()
    assert np.any(alone)
    np.testing.assert_allclose(parts[0][0] + parts[1][0], alone, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------ 7, 8: the selector


def mean_prob(method, given):
    return float(method._parts(given).mean_prob)


def selector_step(method, given, reward):
    """Steps with a constant reward, then the end of the window."""
    own = method.model.selector.trainable_variables
    for _ in range(4):
        with tf.GradientTape() as tape:
            score = method._parts(given).score
        scores = [tf.convert_to_tensor(g) for g in tape.gradient(score, own)]
        method.reinforce.observe(tf.constant(reward), scores, tf.constant(True))
    method.end_window()


@pytest.mark.parametrize("reward", [0.25, -0.25])
def test_constant_reward_without_baseline_moves_weights_in_its_direction(reward):
    method = cctl(baseline="none")
    given = batches(method)
    before = mean_prob(method, given)
    selector_step(method, given, reward)
    assert (mean_prob(method, given) - before) * reward > 1e-4


def test_constant_reward_at_a_converged_baseline_moves_nothing():
    method = cctl(baseline="ema")
    method.reinforce.baseline.assign(0.25)
    given, own = batches(method), method.model.selector.trainable_variables
    before = values(own)
    selector_step(method, given, 0.25)
    assert_equal(before, values(own))


def test_selector_changes_exactly_at_window_ends():
    method = cctl(window=3)
    step = tf.function(method.train_step, autograph=False)
    own = method.model.selector.trainable_variables
    for i in range(1, 8):
        before = values(own)
        run(method, i, first=i, step=step)
        assert differs(before, values(own)) == (i % 3 == 0)
        assert int(method.reinforce.num_steps) == i % 3
    assert step.experimental_get_tracing_count() == 1


def test_alpha_multiplies_the_selectors_learning_rate_alone():
    method = cctl(alpha=0.25)
    rates = {k: float(o.learning_rate) for k, o in method.optimizers.items()}
    assert rates == pytest.approx(
        {"embedding": 0.03, "mixed": 0.01, "pure": 0.01, "selector": 0.0025}
    )


def test_bernoulli_draws_are_zero_or_one_and_new_in_each_step(monkeypatch):
    method = cctl(mode="bernoulli")
    force(monkeypatch, method, 0.0)
    draws = []
    for _ in range(2):
        drawn = method.companion._draw(tf.fill([4000], 0.3)).numpy()
        np.testing.assert_array_equal(
            drawn, method.companion._draw(tf.fill([4000], 0.3)).numpy()
        )
        draws.append(drawn)
        method.companion.next_draws()
    assert set(np.unique(draws)) == {0.0, 1.0}
    assert np.mean(draws) == pytest.approx(0.3, abs=0.02)
    assert not np.array_equal(*draws)


# --------------------------------------------------------------- 10: the reward


def bce(logits, labels):
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    return np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - z * y


def test_reward_is_the_summed_loss_difference_on_the_same_target_rows():
    method = cctl(window=1000)
    run(method, 3)
    given = batches(method, seed=9)
    main = given[MAIN]
    rows = main.valid.numpy()
    means = {
        name: bce(
            np.stack(list(method.tower_model(name)(main.features).values()), axis=1),
            main.labels,
        )[rows].mean(axis=0)
        for name in ("pure", "mixed")
    }
    expected = (means["pure"] - means["mixed"]).sum()  # over both tasks
    assert abs(expected) > 1e-4
    assert strategy.generators(method.model) == {}  # no dropout: nothing to differ by
    twice = [method._parts(given) for _ in range(2)]
    for parts in twice:
        assert float(parts.pure - parts.target) == pytest.approx(expected, abs=1e-6)
    assert float(twice[0].target) == float(twice[1].target)


def test_source_loss_is_a_weighted_mean_times_the_ratio_of_batch_sizes():
    method = cctl()
    given = batches(method, 40)
    source, short = given[SOURCE], data.take(given[MAIN], range(10))
    parts = method._parts({MAIN: short, SOURCE: source})
    index = method.model.source_index(source.features)
    x = method.model.source_rows(source.features, index)
    probs = 1 / (1 + np.exp(-method.model.selector(x, index).numpy().astype("f8")))
    rows = source.valid.numpy()
    weighted = probs[:, None] * bce(tower_logits(method.model.mixed, x), source.labels)
    expected = 40 / 10 * weighted[rows].mean(axis=0).sum()
    assert float(parts.source) == pytest.approx(expected, rel=1e-5)
    assert float(parts.mean_prob) == pytest.approx(probs[rows].mean(), rel=1e-5)


# ------------------------------------------------- 12: fields of source and target


def test_equal_fields_need_no_alignment():
    method = cctl()
    assert method.model.align is None
    assert method.variable_groups()["dense"] == []


def test_alignment_gives_source_rows_the_target_token_widths():
    method = cctl(
        target_features=("user", "item", "tags"), source_features=("user", "price")
    )
    model, given = method.model, batches(method)
    assert model.source.width == 5
    assert model.target.widths == {"user": 4, "item": 8, "context": 0}
    index = model.source_index(given[SOURCE].features)
    assert model.source_rows(given[SOURCE].features, index).shape == [32, 12]
    assert np.isfinite(method.train_step(given)["loss"])


def test_every_source_has_tables_heads_and_rows_of_its_own():
    method = cctl(source_domains=("d2", "d1"))
    assert method.streams()[SOURCE].domains == ("d1", "d2")
    assert method.streams()[MAIN].domains == ("d0",)
    one, two = cctl(source_domains=("d1",)), method
    assert (
        one.model.source.variables[0].shape[0] * 2
        == (two.model.source.variables[0].shape[0])
    )
    before = two.model.source.variables[0].numpy()
    given = batches(two)
    source = given[SOURCE]
    given[SOURCE] = data.of_domains(two.schema, source, ["d2"])
    two.train_step(given)
    moved = np.any(two.model.source.variables[0].numpy() != before, axis=1)
    sizes = {"user": 90, "item": 50, "tags": 9}
    start = 0
    for size in sizes.values():
        assert not moved[start : start + size].any()
        assert moved[start + size : start + 2 * size].any()
        start += 2 * size


def test_without_sources_it_is_two_equal_target_models():
    method = data.make_method("cctl", data.make_schema(num_domains=1), window=2)
    assert list(method.streams()) == [MAIN]
    assert run(method, 3) == [0.0] * 3
    assert_equal(*twin_state(method))


# ------------------------------------------------------------------ 13: resuming


def method_state(method):
    found = values(method.model.variables)
    for _, optimizer in sorted(method.optimizers.items()):
        found.append(optimizer.iterations.numpy())
        for variable in optimizer.model_variables:
            found += values(optimizer.slots(variable).values())
    for _, part in sorted(method.extra_state().items()):
        found += values([part] if isinstance(part, tf.Variable) else part.variables)
    return found


@pytest.mark.parametrize("mode", ["soft", "bernoulli"])
def test_resume_inside_a_window_continues_to_the_bit(mode, tmp_path):
    def make(seed):
        return cctl(
            mode=mode,
            window=3,
            ren_weight=0.1,
            reward="delta",
            audit_feature="item",
            seed=seed,
        )

    method, state = make(1), RunState(step=5)
    run(method, 5)
    assert any(np.any(c) for c in method.reinforce.credit)
    Checkpoints(tmp_path, method, state, keep=1).save()
    run(method, 6, first=6)
    other = make(2)
    assert Checkpoints(tmp_path, other, RunState(), keep=1).restore()
    assert int(other.reinforce.num_steps) == 2
    run(other, 6, first=6)
    assert_equal(method_state(method), method_state(other))


# ------------------------------------------------------------------- 14: export


@pytest.mark.parametrize("serve", ["pure", "synced"])
def test_export_holds_one_tower_and_its_tables_only(serve, tmp_path):
    method = cctl(scn_embedding="separate", serve=serve, ren_weight=0.1)
    run(method, 2)
    model, allowed = method.model, method.serving_variables()
    side = model.mixed if serve == "synced" else model.pure
    tables = model.target if serve == "synced" else model.pure_target
    assert {v.ref() for v in allowed} == {
        v.ref() for v in (*side.variables, *tables.variables)
    }
    for variable in allowed:
        assert not any(
            word in variable.name
            for word in ("source", "selector", "align", "mixed", "constant")
        )
    given = batches(method, seed=8)[MAIN]
    pure, mixed = (
        method.tower_model(name)(given.features)["t0"].numpy()
        for name in ("pure", "mixed")
    )
    assert not np.array_equal(pure, mixed)
    served = method.serving_model()(given.features)["t0"].numpy()
    np.testing.assert_array_equal(served, mixed if serve == "synced" else pure)
    method.sync()  # what is served is now what both towers say
    for name in ("pure", "mixed"):
        scores = method.tower_model(name)(given.features)["t0"].numpy()
        np.testing.assert_array_equal(scores, mixed)
    batch = data.make_batch(method.schema, 20)
    data.check_export(method, method.serving_model(), allowed, batch, tmp_path)


@pytest.mark.parametrize("serve", ["pure", "synced"])
def test_target_alone_is_served_by_its_own_path(serve):
    method = cctl(serve=serve)
    run(method, 2)
    assert method.serving_domains() == ("d0",)
    batch = data.served(method, data.make_batch(method.schema, 30))
    np.testing.assert_array_equal(
        method.model(batch.features)["t1"], method.serving_model()(batch.features)["t1"]
    )


# ------------------------------------------------------------------ 15: alpha = 0


def test_alpha_of_zero_is_joint_training_on_all_rows(monkeypatch):
    joint, sure = cctl(alpha=0.0, seed=3), cctl(seed=3)
    assert joint.model.selector is None
    assert joint.variable_groups()["selector"] == []
    assert joint.reinforce is None
    force(monkeypatch, sure, SURE)
    names = ("mixed", "pure", "target", "source")
    for name in names:  # the selector's draws come before some of these
        for a, b in zip(
            getattr(sure.model, name).variables,
            getattr(joint.model, name).variables,
            strict=True,
        ):
            a.assign(b)
    for step in range(3):
        metrics = joint.train_step(batches(joint, seed=step))
        sure.train_step(batches(sure, seed=step))
        assert float(metrics["source_weight"]) == 1.0
    joint.end_window()
    sure.end_window()
    for name in names:
        assert_equal(*(values(getattr(m.model, name).variables) for m in (joint, sure)))


# ------------------------------------------------------------------------ others


def test_audit_keeps_the_mean_weight_by_source_and_value(tmp_path):
    method = cctl(audit_feature="item")
    given = batches(method)
    method.train_step(given)
    source, parts = given[SOURCE], method._parts(given)
    assert method.scalars().keys() >= {"weight/d1", "weight/d2", "reward/std"}
    lines = method.audit.table()
    rows = source.valid.numpy()
    for line in lines:
        mine = rows & (source.domain.numpy() == int(line["source"][1]))
        if line["value"] is not None:
            mine &= source.features["item"].numpy() == line["value"]
        assert line["rows"] == mine.sum() > 0
    assert sum(line["rows"] for line in lines) == 2 * rows.sum()
    assert not np.allclose(parts.probs, 0.5)


def test_window_event_reports_weights_and_does_nothing_twice():
    method = cctl(window=2)
    (event,) = method.periodic_events()
    assert event.every_steps == 2
    for seed in range(2):
        method.train_step(batches(method, seed=seed))
    reported = event.run()
    assert reported.keys() == {"weight/d1", "weight/d2", "baseline"}
    before = method_state(method)
    assert event.run() == {}
    assert_equal(before, method_state(method))


def test_impossible_settings_are_refused_in_words():
    for bad in ({"alpha": 1.5}, {"window": 0}, {"gamma": -0.1}, {"norm": "batch"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            CCTLConfig.parse(bad)
    with pytest.raises(ConfigError, match="mixed"):
        CCTLConfig.parse({"optimizer": {"groups": {"pure": {"learning_rate": 1.0}}}})
    with pytest.raises(LookupError, match=r"CCTL.audit_feature must be one of"):
        cctl(audit_feature="price")
    with pytest.raises(LookupError, match=r"CCTL.target_domain must be one of d0"):
        cctl(target_domain="")
