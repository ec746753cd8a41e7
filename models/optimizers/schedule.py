"""Learning rate as a pure function of the step, so that it needs no checkpoint."""

import math
from typing import Literal

import pydantic
import tensorflow as tf

from features.config import Config


class ScheduleConfig(Config):
    """How the learning rate moves: linear warm-up, then constant or decay.

    Attributes:
      kind: `constant`; `cosine` down to `final_fraction` over `decay_steps`;
        `exponential`: times `decay_rate` every `decay_steps`, smoothly, never below
        `final_fraction`.
      warmup_steps: Steps of linear rise from 1/warmup_steps to 1; 0 = none.
      decay_steps: Steps after the warm-up; needed by `cosine` and `exponential`.
      decay_rate: In (0, 1]; `exponential` only.
      final_fraction: Lowest share of the learning rate, in [0, 1].
    """

    kind: Literal["constant", "cosine", "exponential"] = "constant"
    warmup_steps: int = pydantic.Field(default=0, ge=0)
    decay_steps: int = pydantic.Field(default=0, ge=0)
    decay_rate: float = pydantic.Field(default=0.9, gt=0, le=1)
    final_fraction: float = pydantic.Field(default=0.0, ge=0, le=1)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ScheduleConfig":
        if self.kind != "constant" and self.decay_steps == 0:
            raise ValueError(
                f"decay_steps must be > 0 with kind {self.kind!r}; got 0. "
                "Say over how many steps the learning rate falls."
            )
        return self


def learning_rate(base: float, schedule: ScheduleConfig, step: tf.Tensor) -> tf.Tensor:
    """Returns the learning rate of a step, float32 scalar.

    Args:
      base: Learning rate before the schedule, > 0.
      schedule: What scales it.
      step: Steps already done, float32 scalar (0 at the first).
    """
    share = tf.constant(1.0)
    decayed = step - float(schedule.warmup_steps)
    if schedule.kind == "cosine":
        done = tf.clip_by_value(decayed / schedule.decay_steps, 0.0, 1.0)
        wave = 0.5 * (1.0 + tf.cos(math.pi * done))
        share = schedule.final_fraction + (1.0 - schedule.final_fraction) * wave
    elif schedule.kind == "exponential":
        done = tf.maximum(decayed, 0.0) / schedule.decay_steps
        share = tf.exp(math.log(schedule.decay_rate) * done)
        share = tf.maximum(share, schedule.final_fraction)
    if schedule.warmup_steps:
        share *= tf.minimum((step + 1.0) / schedule.warmup_steps, 1.0)
    return base * share
