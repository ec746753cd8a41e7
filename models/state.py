"""Variables of a method's own: running statistics, counters, marks."""

from typing import Any

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
