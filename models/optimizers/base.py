"""What the project's optimisers share: slots, row-wise gradients, clipping, replicas.

They are `tf_keras` optimisers, so strategies, checkpoints and TFRS's
`CompositeOptimizer` take them.  Three things differ from the stock ones:

- a gradient of `tf.gather` stays sparse to the end and a *lazy* optimiser touches
  only the looked-up rows of the table and of its slots;
- dense updates are one fused kernel a variable;
- scalars (learning rate, bias correction) are computed once a step, not once a
  variable, and the learning rate is a pure function of the step.
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import tensorflow as tf
import tf_keras as keras

from models.optimizers import schedule as schedule_lib
from models.optimizers.schedule import ScheduleConfig

Scalars = dict[str, tf.Tensor]


class RowOptimizer(keras.optimizers.Optimizer, abc.ABC):
    """An optimiser of a fixed list of variables, able to update single rows.

    A subclass gives `slot_names` and the three update rules.  Rows not looked up in a
    batch keep value and slots bit for bit under a lazy optimiser.

    Attributes:
      model_variables: The variables it updates; float32.
      slot_names: Names of the slot variables kept for each of them.
    """

    slot_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        *,
        learning_rate: float,
        schedule: ScheduleConfig | None = None,
        lazy: bool = True,
        l2: float = 0.0,
        clip_norm: float = 0.0,
        name: str = "optimizer",
    ) -> None:
        """Creates the optimiser and its slots.

        Args:
          variables: What it updates; call inside the strategy's scope.
          learning_rate: > 0, before the schedule.
          schedule: Learning-rate schedule; None = constant.
          lazy: Whether a sparse gradient updates the looked-up rows only.  If not,
            it is made dense and every row takes part in every step.
          l2: Added to the gradient as `l2 * w` (L2 regularisation inside the
            optimiser, as in PyTorch's Adam): on the whole variable for a dense
            gradient, on the looked-up rows, once each, for a lazy sparse one.
          clip_norm: Largest norm of all gradients of this optimiser taken together,
            duplicates summed, after summing over replicas and before `l2`; 0 = off.
          name: Group name, shown in errors and graphs.
        """
        super().__init__(
            name=name,
            weight_decay=None,
            global_clipnorm=clip_norm or None,
            jit_compile=False,
        )
        self._learning_rate = None
        self.base_learning_rate = learning_rate
        self.schedule = schedule or ScheduleConfig()
        self.lazy = lazy
        self.l2 = l2
        self.model_variables = self._no_dependency(list(variables))
        with tf.name_scope(name):
            self.build(self.model_variables)

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates every slot; called once by the constructor."""
        if getattr(self, "_built", False):
            return
        super().build(var_list)
        self._built = True
        self._slots = {
            slot: [self.new_slot(slot, variable) for variable in var_list]
            for slot in self.slot_names
        }

    def new_slot(self, slot: str, variable: tf.Variable) -> tf.Variable:
        """Returns a new slot variable, zeros of the variable's shape."""
        return self.add_variable_from_reference(variable, slot)

    def slots(self, variable: tf.Variable) -> dict[str, tf.Variable]:
        """Returns the slot variables of one model variable by name.

        Raises:
          LookupError: If the variable is not updated by this optimiser.
        """
        index = self._index_dict.get(self._var_key(variable))
        if index is None:
            raise LookupError(
                f"{self.name}.slots.variable must be one of its "
                f"{len(self.model_variables)} variables; got {variable.name!r}."
            )
        return {slot: self._slots[slot][index] for slot in self.slot_names}

    @property
    def learning_rate(self) -> tf.Tensor:
        """Learning rate of the coming step, float32 scalar."""
        return self.scalars()["learning_rate"]

    def scalars(self) -> Scalars:
        """Returns the numbers that all variables share in the coming step."""
        step = tf.cast(self.iterations, tf.float32)
        rate = schedule_lib.learning_rate(self.base_learning_rate, self.schedule, step)
        return {"learning_rate": rate}

    @abc.abstractmethod
    def update_dense(
        self, gradient: tf.Tensor, variable: tf.Variable, scalars: Scalars
    ) -> None:
        """Updates the whole variable; gradient [shape of the variable] float32."""

    @abc.abstractmethod
    def update_rows(
        self,
        ids: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        scalars: Scalars,
    ) -> None:
        """Updates some rows; ids [N] unique, gradient [N, ...] float32."""

    @abc.abstractmethod
    def update_masked(
        self,
        present: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        scalars: Scalars,
    ) -> None:
        """Updates rows where `present` [V, 1...] is 1, bit-equal to `update_rows`.

        Args:
          present: float32, 1 for a looked-up row, else 0.
          gradient: float32, shape of the variable, 0 in absent rows.
          variable: The table.
          scalars: Of this step.
        """

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Updates one variable with scalars of its own; see `apply_gradients`."""
        self._update(variable, gradient, self.scalars())

    def get_config(self) -> dict[str, Any]:
        """Refuses: variables belong to the optimiser; make it from its GroupConfig."""
        raise NotImplementedError(
            f"{self.name}.get_config: made from OptimizerConfig, with its variables; "
            "rebuild it by make_optimizers."
        )

    def _update(self, variable: tf.Variable, gradient: Any, scalars: Scalars) -> None:
        if not isinstance(gradient, tf.IndexedSlices):
            if self.l2:
                gradient = gradient + self.l2 * variable
            self.update_dense(gradient, variable, scalars)
            return
        table_rows, looked_up = variable.shape[0], gradient.indices.shape[0]
        if not self.lazy:
            dense = sum_rows(gradient, table_rows)
            self._update(variable, dense, scalars)
        elif looked_up is not None and looked_up >= table_rows:
            # As many ids as rows: adding into the table's own shape is cheaper than
            # finding the unique ids, and gives the same bits.
            dense = sum_rows(gradient, table_rows)
            present = present_rows(gradient, table_rows)
            if self.l2:
                dense += self.l2 * present * variable
            self.update_masked(present, dense, variable, scalars)
        else:
            ids, rows = unique_rows(gradient)
            if self.l2:
                rows += self.l2 * read_rows(variable, ids)
            self.update_rows(ids, rows, variable, scalars)

    def _distributed_apply_gradients_fn(
        self, distribution: Any, grads_and_vars: Any, **_: Any
    ) -> tf.Tensor:
        scalars = self.scalars()
        for gradient, variable in grads_and_vars:
            distribution.extended.update(
                variable, self._update, args=(gradient, scalars), group=False
            )
        return self.iterations.assign_add(1)

    def _deduplicate_sparse_grad(self, grads: Sequence[Any]) -> Sequence[Any]:
        return grads  # `_update` does, where it is needed

    def _clip_gradients(self, grads: Sequence[Any]) -> Sequence[Any]:
        if not self.global_clipnorm:
            return grads
        # The norm of a sparse gradient is that of its summed rows.
        grads = super()._deduplicate_sparse_grad(grads)
        return super()._clip_gradients(grads)


def sum_rows(gradient: tf.IndexedSlices, num_rows: int) -> tf.Tensor:
    """Returns the dense gradient [num_rows, ...]: duplicates summed, absent rows 0."""
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, num_rows)


def present_rows(gradient: tf.IndexedSlices, num_rows: int) -> tf.Tensor:
    """Returns float32 [V, 1, ...]: 1 where the row was looked up, else 0."""
    ones = tf.ones_like(gradient.indices, tf.float32)
    counts = tf.math.unsorted_segment_sum(ones, gradient.indices, num_rows)
    rank = gradient.values.shape.rank
    return tf.reshape(tf.minimum(counts, 1.0), [-1] + [1] * (rank - 1))


def unique_rows(gradient: tf.IndexedSlices) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns unique ids [N] and the sums of their gradients [N, ...]."""
    ids, position = tf.unique(gradient.indices)
    return ids, tf.math.unsorted_segment_sum(gradient.values, position, tf.size(ids))


def read_rows(variable: tf.Variable, ids: tf.Tensor) -> tf.Tensor:
    """Returns rows of this device's copy of a table."""
    return tf.raw_ops.ResourceGather(
        resource=variable.handle, indices=ids, dtype=variable.dtype
    )


def write_rows(variable: tf.Variable, ids: tf.Tensor, rows: tf.Tensor) -> None:
    """Sets rows of this device's copy of a table."""
    tf.raw_ops.ResourceScatterUpdate(
        resource=variable.handle, indices=ids, updates=rows
    )


def subtract_rows(variable: tf.Variable, ids: tf.Tensor, rows: tf.Tensor) -> None:
    """Subtracts from rows of this device's copy of a table."""
    tf.raw_ops.ResourceScatterSub(resource=variable.handle, indices=ids, updates=rows)
