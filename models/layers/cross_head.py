"""`CrossHead`: what crossed inputs add to the outputs of many experts."""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers.mlp import MLP


@keras.utils.register_keras_serializable("isthmus")
class CrossHead(keras.layers.Layer):
    """`w_j cross(x) + wide(x)` for each output j: inputs past all experts.

    A linear layer on `[cross(x) ; e_j]` is the sum of one on each, so an expert's own
    part stays where it is.

    Source: the authors' code of AREAD (Luo et al., AAAI 2025), which the paper does not
      mention; cross layers of DCN-v2 (Wang et al., WWW 2021).
    Differs: the wide term is linear in the embedded inputs, theirs has weights of its
      own for each id; cross layers of version 2.

    Args:
      num_outputs: N, >= 1.
      num_tasks: T, >= 1.
      num_layers: Cross layers, >= 1.
    """

    def __init__(
        self, num_outputs: int, num_tasks: int, *, num_layers: int = 3, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.num_outputs = num_outputs
        self.num_tasks = num_tasks
        self.num_layers = num_layers
        dtype = kwargs.get("dtype")
        self.crosses = MLP((), cross_layers=num_layers, dtype=dtype)
        self.each = keras.layers.Dense(
            num_outputs * num_tasks, use_bias=False, dtype=dtype
        )
        self.wide = keras.layers.Dense(num_tasks, dtype=dtype)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns [N, B, T] in the compute dtype, from [B, I]."""
        each = self.each(self.crosses(x))
        each = tf.reshape(each, [-1, self.num_outputs, self.num_tasks])
        return tf.transpose(each, [1, 0, 2]) + self.wide(x)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_outputs": self.num_outputs,
            "num_tasks": self.num_tasks,
            "num_layers": self.num_layers,
        }
