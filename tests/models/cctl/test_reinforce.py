import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models.cctl.reinforce import WindowedReinforce  # isort: skip

STEPS, GAMMA = 20, 0.8


def make(**settings):
    variables = [tf.Variable(tf.zeros([3, 2])), tf.Variable(tf.zeros([2]))]
    return WindowedReinforce(variables, gamma=GAMMA, **settings)


def history(seed=0):
    rng = np.random.default_rng(seed)
    rewards = rng.normal(0.3, 1.0, STEPS)
    return rewards, [rng.normal(size=(STEPS, 3, 2)), rng.normal(size=(STEPS, 2))]


def play(reinforce, rewards, scores, seen=None):
    for i, reward in enumerate(rewards):
        reinforce.observe(
            tf.constant(reward, tf.float32),
            [tf.constant(s[i], tf.float32) for s in scores],
            tf.constant(True if seen is None else bool(seen[i])),
        )


def double_sum(advantages, scores):
    """sum_k g_k sum_{j > k} gamma^(j-k-1) a_j, term by term."""
    return [
        sum(
            GAMMA ** (j - k - 1) * advantages[j] * score[k]
            for k in range(STEPS)
            for j in range(k + 1, STEPS)
        )
        for score in scores
    ]


def test_trace_gives_the_double_sum_over_a_window():
    reinforce, (rewards, scores) = make(baseline="none", scale="none"), history()
    play(reinforce, rewards, scores)
    for credit, expected in zip(
        reinforce.credit, double_sum(rewards, scores), strict=True
    ):
        np.testing.assert_allclose(credit, expected, rtol=1e-4, atol=1e-5)
    assert int(reinforce.num_steps) == STEPS


@pytest.mark.parametrize("baseline", ["ema", "none"])
@pytest.mark.parametrize("reward", ["level", "delta"])
def test_credit_with_baseline_and_scale_equals_a_float64_loop(baseline, reward):
    reinforce = make(baseline=baseline, reward=reward, decay=0.9)
    rewards, scores = history(1)
    advantages, mean, square, before = [], 0.0, 0.0, 0.0
    for n, value in enumerate(rewards):
        x, before = (value - before if reward == "delta" else value), value
        rate = max(1 / (n + 1), 0.1)
        square += rate * ((x - mean) ** 2 - square)
        advantages.append((x - mean) / np.sqrt(square))
        mean += rate * (x - mean) if baseline == "ema" else 0.0
    play(reinforce, rewards, scores)
    for credit, expected in zip(
        reinforce.credit, double_sum(advantages, scores), strict=True
    ):
        np.testing.assert_allclose(credit, expected, rtol=1e-3, atol=1e-4)
    assert float(reinforce.baseline) == pytest.approx(mean, rel=1e-5)


def test_end_of_window_forgets_credit_but_not_the_averages():
    reinforce, (rewards, scores) = make(), history()
    play(reinforce, rewards, scores)
    kept = float(reinforce.baseline), float(reinforce.square)
    reinforce.end_window()
    forgotten = (*reinforce.credit, *reinforce.trace, reinforce.previous)
    assert not any(np.any(v) for v in (*forgotten, reinforce.num_steps))
    assert (float(reinforce.baseline), float(reinforce.square)) == kept
    assert int(reinforce.num_rewards) == STEPS


def test_step_without_target_rows_gives_no_credit_and_moves_no_average():
    reinforce, (rewards, scores) = make(baseline="none", scale="none"), history()
    seen = np.arange(STEPS) % 3 > 0
    rewards = np.where(seen, rewards, 1e6)
    play(reinforce, rewards, scores, seen)
    expected = double_sum(np.where(seen, rewards, 0.0), scores)
    for credit, value in zip(reinforce.credit, expected, strict=True):
        np.testing.assert_allclose(credit, value, rtol=1e-4, atol=1e-5)
    assert int(reinforce.num_rewards) == seen.sum()


def test_rewards_of_zero_then_a_small_one_give_no_spike():
    reinforce = make()
    scores = [np.ones([STEPS, 3, 2]), np.ones([STEPS, 2])]
    play(reinforce, np.r_[np.zeros(STEPS - 1), 1e-3], scores)
    # The trace is below 1 / (1 - gamma); the advantage is the root of 20 at most.
    assert 1.0 < float(reinforce.credit[1][0]) < 5 * np.sqrt(STEPS)
