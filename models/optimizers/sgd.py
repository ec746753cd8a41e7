"""Gradient descent, whole variables or single rows."""

import tensorflow as tf

from models.optimizers import base
from models.optimizers.base import RowOptimizer, Scalars


class SGD(RowOptimizer):
    """Plain gradient descent: `w -= lr * g`, no momentum, no slots.

    Source: textbook.
    Differs: none.
    """

    def update_dense(
        self, gradient: tf.Tensor, variable: tf.Variable, scalars: Scalars
    ) -> None:
        """Updates the whole variable."""
        variable.assign_sub(scalars["learning_rate"] * gradient)

    def update_rows(
        self,
        ids: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        scalars: Scalars,
    ) -> None:
        """Updates rows `ids`."""
        base.subtract_rows(variable, ids, scalars["learning_rate"] * gradient)

    def update_masked(
        self,
        present: tf.Tensor,  # noqa: ARG002 - absent rows have gradient 0
        gradient: tf.Tensor,
        variable: tf.Variable,
        scalars: Scalars,
    ) -> None:
        """Updates the table; absent rows have gradient 0."""
        self.update_dense(gradient, variable, scalars)
