"""Adam, whole variables or single rows."""

import math
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from models.optimizers import base
from models.optimizers.base import RowOptimizer, Scalars


class Adam(RowOptimizer):
    """Adam; with `lazy`, only looked-up rows of a table move.

    `m += (1-b1)(g-m); v += (1-b2)(g^2-v); w -= lr * m' / (sqrt(v') + epsilon)`, with
    the bias corrections `m' = m/(1-b1^t)`, `v' = v/(1-b2^t)`, t = steps done + 1.

    Source: Kingma and Ba, ICLR 2015, Algorithm 1.
    Differs: lazily, a row's moments neither decay nor move in steps that do not look
      it up, while t counts all steps; where every row is looked up in every step it
      is plain Adam.  Epsilon is outside the bias correction as in the paper and in
      PyTorch (Keras puts it inside).
    """

    slot_names: ClassVar[tuple[str, ...]] = ("m", "v")

    def __init__(
        self,
        variables: Any,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        **settings: Any,
    ) -> None:
        """Creates the optimiser; `settings` are those of `RowOptimizer`.

        Args:
          variables: What it updates.
          beta_1: Decay of the first moment, in [0, 1).
          beta_2: Decay of the second moment, in [0, 1).
          epsilon: Added to the root of the corrected second moment, > 0.
          **settings: See `RowOptimizer`.
        """
        super().__init__(variables, **settings)
        # One rounded value everywhere: the kernel's 1 - beta and the bias correction
        # must cancel exactly in the first step.
        self.beta_1 = float(np.float32(beta_1))
        self.beta_2 = float(np.float32(beta_2))
        self.epsilon = epsilon

    def scalars(self) -> Scalars:
        """Returns `learning_rate`, and step size and epsilon with bias correction."""
        scalars = super().scalars()
        step = tf.cast(self.iterations, tf.float32) + 1.0
        root = tf.sqrt(_one_minus_power(self.beta_2, step))
        scalars["rate"] = (
            scalars["learning_rate"] * root / _one_minus_power(self.beta_1, step)
        )
        scalars["epsilon"] = self.epsilon * root
        return scalars

    def update_dense(
        self, gradient: tf.Tensor, variable: tf.Variable, scalars: Scalars
    ) -> None:
        """Updates the whole variable by one fused kernel."""
        slots = self.slots(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=slots["m"].handle,
            v=slots["v"].handle,
            beta1_power=0.0,  # the correction is in `rate`, more exactly
            beta2_power=0.0,
            lr=scalars["rate"],
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=scalars["epsilon"],
            grad=gradient,
        )

    def update_rows(
        self,
        ids: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        scalars: Scalars,
    ) -> None:
        """Updates rows `ids` of the variable and of both moments."""
        slots = self.slots(variable)
        m, v = base.read_rows(slots["m"], ids), base.read_rows(slots["v"], ids)
        m += (1.0 - self.beta_1) * (gradient - m)
        v += (1.0 - self.beta_2) * (tf.square(gradient) - v)
        base.write_rows(slots["m"], ids, m)
        base.write_rows(slots["v"], ids, v)
        base.subtract_rows(
            variable, ids, scalars["rate"] * m / (tf.sqrt(v) + scalars["epsilon"])
        )

    def update_masked(
        self,
        present: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        scalars: Scalars,
    ) -> None:
        """Updates rows where `present` is 1."""
        slots = self.slots(variable)
        m, v = slots["m"], slots["v"]
        m = m.assign_add(present * ((1.0 - self.beta_1) * (gradient - m)))
        v = v.assign_add(present * ((1.0 - self.beta_2) * (tf.square(gradient) - v)))
        step = scalars["rate"] * m / (tf.sqrt(v) + scalars["epsilon"])
        variable.assign_sub(present * step)


def _one_minus_power(beta: float, step: tf.Tensor) -> tf.Tensor:
    """1 - beta^step without the cancellation of float32 near beta = 1."""
    if beta == 0.0:
        return tf.ones_like(step)
    return -tf.math.expm1(math.log(beta) * step)
