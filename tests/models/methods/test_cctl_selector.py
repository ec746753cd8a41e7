"""The selector of CCTL: when and whither it moves, its weights, its rewards."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models.method import MAIN  # isort: skip
from models.methods.cctl import SOURCE  # isort: skip
from models.training import strategy  # isort: skip
from models.training.checkpoint import Checkpoints, RunState  # isort: skip
from tests.models.methods.cctl_data import (  # isort: skip
    assert_equal,
    batches,
    bce,
    cctl,
    differs,
    force,
    mean_prob,
    method_state,
    run,
    values,
)

SURE = 1e4  # sigmoid(1e4) is 1 in float32


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
