"""A method's own state: running statistics, counters, marks, versions."""

from typing import Any, Protocol, runtime_checkable

import tensorflow as tf


def state_variable(value: Any, name: str) -> tf.Variable:
    """Returns a variable that every replica sets to the same value in its step."""
    return tf.Variable(
        value,
        trainable=False,
        name=name,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


@runtime_checkable
class GoesOn(Protocol):
    """State that is in no variable, and that a run with `init_from` takes over."""

    def go_on_from(self, earlier: Any) -> str:
        """Takes over the state of an earlier run, after it was restored.

        Args:
          earlier: The same part of the earlier run's method.

        Returns:
          What is to be told of the change; empty for nothing.
        """
