"""REINFORCE with an eligibility trace: credit for a window of steps, in no history."""

from collections.abc import Sequence
from typing import Literal

import tensorflow as tf

from models.state import state_variable

# Rewards are differences of float32 losses of about 1, which carry an error of 1e-7.
MIN_REWARD_STD = 1e-6


class WindowedReinforce(tf.Module):
    """Sums `G_k g_k` over the steps k of a window, at the memory of one gradient.

    g_k is the score of step k, and `G_k = sum_{j > k} gamma^(j-k-1) (r_j - b)` the
    reward that came after it inside the window.  With the trace
    `e_j = sum_{k < j} gamma^(j-1-k) g_k` that sum is `sum_j (r_j - b) e_j`: each step
    adds its reward times the trace, then its score to the trace.

    Source: Zhang et al., KDD 2023 (CCTL), Section 2.4.2, Eq. (9); Williams, 1992.
    Differs: the reward of step k itself is no credit of its score (it is measured
    before the step's update); a moving baseline and division by the rewards' deviation
    (both may be switched off); windowed, not infinite.

    Args:
      variables: Those that scores are gradients of; only their shapes are read.
      gamma: Discount, in [0, 1].
      baseline: `ema`, a moving average of the reward, or `none`.
      scale: `std`, divide by the moving deviation from the baseline, or `none`.
      decay: Of both averages, in [0, 1); the first steps are averaged evenly.
      reward: `level`, or `delta`: the change of the reward since the step before.

    Attributes:
      credit: The sum so far, a float32 variable for each of `variables`.
      trace: e, likewise.
      baseline: b.
      square: Moving square of the deviation.
      previous: Reward of the step before; 0 at the start of a window.
      num_rewards: Rewards averaged so far.
      num_steps: Steps done in this window.
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        *,
        gamma: float = 0.8,
        baseline: Literal["ema", "none"] = "ema",
        scale: Literal["std", "none"] = "std",
        decay: float = 0.99,
        reward: Literal["level", "delta"] = "level",
    ):
        super().__init__()
        self._gamma, self._decay = gamma, decay
        self._has_baseline, self._is_scaled = baseline == "ema", scale == "std"
        self._is_delta = reward == "delta"
        self.credit, self.trace = (
            [
                state_variable(tf.zeros(v.shape), f"{name}_{i}")
                for i, v in enumerate(variables)
            ]
            for name in ("credit", "trace")
        )
        self.baseline, self.square, self.previous = (
            state_variable(0.0, name) for name in ("baseline", "square", "previous")
        )
        self.num_rewards, self.num_steps = (
            state_variable(tf.constant(0, tf.int64), name)
            for name in ("num_rewards", "num_steps")
        )

    def observe(
        self, reward: tf.Tensor, scores: Sequence[tf.Tensor], is_seen: tf.Tensor
    ) -> None:
        """Takes in one step; in the step function.

        Args:
          reward: r, scalar float32, of all replicas.
          scores: g by variable, of all replicas.
          is_seen: Whether there was anything to measure the reward on.
        """
        advantage = tf.where(is_seen, self._advantage(reward, is_seen), 0.0)
        for credit, trace, score in zip(self.credit, self.trace, scores, strict=True):
            credit.assign(credit + advantage * trace)
            trace.assign(self._gamma * trace + score)
        self.num_steps.assign(self.num_steps + 1)

    def _advantage(self, reward: tf.Tensor, is_seen: tf.Tensor) -> tf.Tensor:
        value = reward - self.previous if self._is_delta else reward
        count = self.num_rewards + 1
        rate = tf.maximum(1.0 / tf.cast(count, tf.float32), 1.0 - self._decay)
        baseline, square = tf.identity(self.baseline), tf.identity(self.square)
        difference = value - baseline
        # With this step's own square: the first reward after a run of zeros would
        # else be divided by nothing.
        square += rate * (difference * difference - square)
        self._set(self.square, square, is_seen)
        if self._has_baseline:
            self._set(self.baseline, baseline + rate * difference, is_seen)
        self._set(self.previous, reward, is_seen)
        self._set(self.num_rewards, count, is_seen)
        if not self._is_scaled:
            return difference
        return difference / tf.maximum(tf.sqrt(square), MIN_REWARD_STD)

    @staticmethod
    def _set(variable: tf.Variable, value: tf.Tensor, is_seen: tf.Tensor) -> None:
        variable.assign(tf.where(is_seen, value, variable))

    def end_window(self) -> None:
        """Forgets credit and trace; baseline and deviation go on.  Between steps."""
        for variable in (*self.credit, *self.trace, self.previous, self.num_steps):
            variable.assign(tf.zeros_like(variable))
