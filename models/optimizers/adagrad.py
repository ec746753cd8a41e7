"""Adagrad, whole variables or single rows, with an accumulator that may decay."""

import math
from typing import Any, ClassVar

import tensorflow as tf

from models.optimizers import base
from models.optimizers.base import RowOptimizer, Scalars


class Adagrad(RowOptimizer):
    """Adagrad: `a += g^2; w -= lr * g / (sqrt(a) + epsilon)`.

    Source: Duchi et al., JMLR 2011, section 1 (diagonal form).
    Differs: the accumulator starts above 0 (industry's 0.1), so first steps are
      small; epsilon.
    """

    slot_names: ClassVar[tuple[str, ...]] = ("accumulator",)

    def __init__(
        self,
        variables: Any,
        *,
        initial_accumulator: float = 0.1,
        epsilon: float = 1e-8,
        **settings: Any,
    ) -> None:
        """Creates the optimiser; `settings` are those of `RowOptimizer`.

        Args:
          variables: What it updates.
          initial_accumulator: Start of the sum of squares, >= 0.
          epsilon: Added to its root, > 0.
          **settings: See `RowOptimizer`.
        """
        self.initial_accumulator = initial_accumulator
        self.epsilon = epsilon
        super().__init__(variables, **settings)

    def new_slot(self, slot: str, variable: tf.Variable) -> tf.Variable:
        """Returns a new slot variable at its start value."""
        if slot != "accumulator":
            return super().new_slot(slot, variable)
        start = tf.fill(variable.shape, tf.constant(self.initial_accumulator))
        return self.add_variable_from_reference(variable, slot, initial_value=start)

    def update_dense(
        self, gradient: tf.Tensor, variable: tf.Variable, scalars: Scalars
    ) -> None:
        """Updates the whole variable by one fused kernel."""
        tf.raw_ops.ResourceApplyAdagradV2(
            var=variable.handle,
            accum=self.slots(variable)["accumulator"].handle,
            lr=scalars["learning_rate"],
            epsilon=self.epsilon,
            grad=gradient,
        )

    def update_rows(
        self,
        ids: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        scalars: Scalars,
    ) -> None:
        """Updates rows `ids` of the variable and of the accumulator."""
        accumulator = self.slots(variable)["accumulator"]
        total = base.read_rows(accumulator, ids) + tf.square(gradient)
        base.write_rows(accumulator, ids, total)
        base.subtract_rows(variable, ids, self._step(total, gradient, scalars))

    def update_masked(
        self,
        present: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        scalars: Scalars,
    ) -> None:
        """Updates rows where `present` is 1; the gradient is 0 elsewhere anyway."""
        accumulator = self.slots(variable)["accumulator"]
        total = accumulator.assign_add(tf.square(gradient))
        variable.assign_sub(present * self._step(total, gradient, scalars))

    def _step(
        self, total: tf.Tensor, gradient: tf.Tensor, scalars: Scalars
    ) -> tf.Tensor:
        return scalars["learning_rate"] * gradient / (tf.sqrt(total) + self.epsilon)


class AdagradDecay(Adagrad):
    """Adagrad whose accumulator is multiplied by `decay_rate` every `decay_steps`.

    Decays that are due come before the squares of the step; the accumulator never
    falls below its start value.  Each row counts the decays it has had, so a row that
    was absent for long gets all of them when it is next looked up, which equals
    decaying the table at every multiple of `decay_steps`.

    Source: `AdagradDecayV2` of the DeepRec project, as ECAT uses it (no paper).
    Differs: several missed decays are all made up for; dense variables follow the
      same rule as rows.
    """

    slot_names: ClassVar[tuple[str, ...]] = ("accumulator", "decays")

    def __init__(
        self,
        variables: Any,
        *,
        decay_rate: float = 0.9,
        decay_steps: int = 100_000,
        **settings: Any,
    ) -> None:
        """Creates the optimiser; `settings` are those of `Adagrad`.

        Args:
          variables: What it updates.
          decay_rate: In (0, 1].
          decay_steps: Steps between two decays, >= 1.
          **settings: See `Adagrad`.
        """
        super().__init__(variables, **settings)
        self.decay_rate = decay_rate
        self.decay_steps = decay_steps

    def new_slot(self, slot: str, variable: tf.Variable) -> tf.Variable:
        """Returns a new slot variable; `decays` has one whole number a row."""
        if slot != "decays":
            return super().new_slot(slot, variable)
        # float32 like the variable; whole numbers stay exact up to 16 million decays.
        shape = list(variable.shape[:1]) + [1] * (variable.shape.rank - 1)
        return self.add_variable_from_reference(variable, slot, shape=shape)

    def scalars(self) -> Scalars:
        """Returns `learning_rate` and `due`, the decays due by the coming step."""
        due = tf.cast(self.iterations // self.decay_steps, tf.float32)
        return {**super().scalars(), "due": due}

    def update_dense(
        self, gradient: tf.Tensor, variable: tf.Variable, scalars: Scalars
    ) -> None:
        """Updates the whole variable."""
        slots = self.slots(variable)
        decayed = self._decayed(slots["accumulator"], slots["decays"], scalars)
        slots["accumulator"].assign(decayed)
        slots["decays"].assign(tf.ones_like(slots["decays"]) * scalars["due"])
        super().update_dense(gradient, variable, scalars)

    def update_rows(
        self,
        ids: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        scalars: Scalars,
    ) -> None:
        """Updates rows `ids` of the variable and of both slots."""
        slots = self.slots(variable)
        decays = base.read_rows(slots["decays"], ids)
        decayed = self._decayed(
            base.read_rows(slots["accumulator"], ids), decays, scalars
        )
        total = decayed + tf.square(gradient)
        base.write_rows(slots["decays"], ids, tf.ones_like(decays) * scalars["due"])
        base.write_rows(slots["accumulator"], ids, total)
        base.subtract_rows(variable, ids, self._step(total, gradient, scalars))

    def update_masked(
        self,
        present: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        scalars: Scalars,
    ) -> None:
        """Updates rows where `present` is 1."""
        slots = self.slots(variable)
        accumulator, decays = slots["accumulator"], slots["decays"]
        decayed = self._decayed(accumulator, decays, scalars)
        total = tf.where(present > 0, decayed + tf.square(gradient), accumulator)
        accumulator.assign(total)
        decays.assign(tf.where(present > 0, scalars["due"], decays))
        variable.assign_sub(present * self._step(total, gradient, scalars))

    def _decayed(
        self, accumulator: tf.Tensor, decays: tf.Tensor, scalars: Scalars
    ) -> tf.Tensor:
        missed = scalars["due"] - decays
        return tf.maximum(
            accumulator * tf.exp(math.log(self.decay_rate) * missed),
            self.initial_accumulator,
        )
