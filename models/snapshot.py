"""`VariableSnapshot`: the values of some variables at a moment, to go back to."""

from collections.abc import Iterable

import tensorflow as tf


class VariableSnapshot:
    """Copies of variables, which `restore` puts back bit for bit.

    Take the weights, batch statistics, optimiser slots and counters of what will be
    changed for a trial; all of them lie in variables.

    Example:
      before = VariableSnapshot([*model.variables, *optimizer.variables])
      ...  # train a candidate
      before.restore()

    Args:
      variables: Any variables, each once.

    Raises:
      ValueError: For a variable that is listed twice.
    """

    def __init__(self, variables: Iterable[tf.Variable]):
        self.variables = list(variables)
        names: dict[object, str] = {}
        for variable in self.variables:
            if variable.ref() in names:
                raise ValueError(
                    "VariableSnapshot.variables must hold each variable once; got "
                    f"{variable.name!r} twice."
                )
            names[variable.ref()] = variable.name
        # A copy: what a variable reads may share its memory.
        self._values = [_copy(v) for v in self.variables]

    def restore(self) -> None:
        """Puts every value back."""
        for variable, value in zip(self.variables, self._values, strict=True):
            variable.assign(value)

    def retake(self) -> None:
        """Takes the values of now instead."""
        self._values = [_copy(v) for v in self.variables]

    def changed(self) -> list[str]:
        """Returns the names of variables that differ now, in any bit."""
        return [
            variable.name
            for variable, value in zip(self.variables, self._values, strict=True)
            if variable.numpy().tobytes() != value.numpy().tobytes()
        ]


def _copy(variable: tf.Variable) -> tf.Tensor:
    with tf.device(variable.device or None):
        return tf.raw_ops.DeepCopy(x=tf.convert_to_tensor(variable.read_value()))
