"""Initialisers for stacked kernels: every network of the stack on its own."""

from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.utils.register_keras_serializable("isthmus")
class Stacked(keras.initializers.Initializer):
    """Draws each [in, out] kernel of a [..., in, out] stack by its own initialiser.

    A Keras initialiser given the whole stack takes its leading axes for a receptive
    field, and the kernels come out too small by the square root of their number.

    Args:
      base: Name, config or instance of a Keras initialiser of one kernel; it must
        not carry a seed (all kernels of the stack would start equal).
    """

    def __init__(self, base: str | dict[str, Any] | keras.initializers.Initializer):
        self.base = keras.initializers.get(base)
        seed = getattr(self.base, "seed", None)
        if seed is not None:
            raise ValueError(
                f"Stacked.base must not carry a seed; got {seed}: every kernel of the "
                "stack would start equal. Seed the run instead."
            )

    def __call__(self, shape: Any, dtype: Any = tf.float32, **kwargs: Any) -> tf.Tensor:
        """Returns values of `shape`; the last two axes are one kernel."""
        del kwargs  # layout of DTensor, which this project does not use
        shape = tuple(tf.TensorShape(shape).as_list())
        count = 1
        for size in shape[:-2]:
            count *= size
        config = keras.initializers.serialize(self.base)
        kernels = [
            keras.initializers.deserialize(config)(shape[-2:], dtype=dtype)
            for _ in range(count)
        ]
        return tf.reshape(tf.stack(kernels), shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return {"base": keras.initializers.serialize(self.base)}
