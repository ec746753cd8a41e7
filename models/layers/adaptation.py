"""Parts that adapt one model to another: adapter, gate, discriminator, entropy head."""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers.mlp import MLP

_TINY = 1e-12  # smallest squared norm of a vector that has a direction


@keras.utils.register_keras_serializable("isthmus")
class Adapter(keras.layers.Layer):
    """`MLP(x)` back to the width of x: [B, in] -> [B, in], hidden layers with ReLU.

    Source: Hou et al., SIGIR 2024 (ECAT), section 2.4.
    Differs: none; what its adapter layers are is not given there.

    Args:
      hidden_units: Widths of the hidden layers; empty = one as wide as x.
    """

    def __init__(self, hidden_units: Sequence[int] = (), **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden_units = tuple(hidden_units)

    def build(self, input_shape: Any) -> None:
        """Creates the layers."""
        width = int(input_shape[-1])
        self.network = MLP(
            self.hidden_units or (width,), output_units=width, dtype=self._dtype_policy
        )
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the shape and dtype of `x`."""
        return self.network(x)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {"hidden_units": self.hidden_units}


@keras.utils.register_keras_serializable("isthmus")
class SigmoidGate(keras.layers.Layer):
    """`sigmoid(MLP(x))`: [B, in] -> [B, 1] float32 in [0, 1].

    Source: Hou et al., SIGIR 2024 (ECAT), section 2.4.
    Differs: none; sizes are not given there.

    Args:
      hidden_units: Widths of the hidden layers; may be empty.
    """

    def __init__(self, hidden_units: Sequence[int] = (64,), **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden_units = tuple(hidden_units)
        self.network = MLP(self.hidden_units, output_units=1, dtype=kwargs.get("dtype"))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns [B, 1] float32."""
        return tf.sigmoid(tf.cast(self.network(x), tf.float32))

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {"hidden_units": self.hidden_units}


@keras.utils.register_keras_serializable("isthmus")
class Discriminator(keras.layers.Layer):
    """Logit that a row is of the target domain: [B, in] -> [B] float32.

    Its input is detached: what it learns never reaches the layers below.

    Source: Hou et al., SIGIR 2024 (ECAT), section 2.3.
    Differs: layer normalisation in the hidden layers, since embeddings start small;
      sizes are not given there.

    Args:
      hidden_units: Widths of the hidden layers; may be empty.
    """

    def __init__(self, hidden_units: Sequence[int] = (128, 64), **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden_units = tuple(hidden_units)
        self.network = MLP(
            self.hidden_units, output_units=1, norm="layer", dtype=kwargs.get("dtype")
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns [B] float32."""
        logits = self.network(tf.stop_gradient(x))
        return tf.cast(logits[:, 0], tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {"hidden_units": self.hidden_units}


@keras.utils.register_keras_serializable("isthmus")
class EntropyHead(keras.layers.Layer):
    """A linear guess at the logits of a model, from its detached inputs.

    Source: none: the paper wants the entropy of the prediction that the entropy
    itself goes into; a small head with a loss of its own breaks the circle.

    Args:
      num_tasks: T.
    """

    def __init__(self, num_tasks: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_tasks = num_tasks
        self.network = MLP([], output_units=num_tasks, dtype=kwargs.get("dtype"))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns logits [B, T] float32 of [B, in]."""
        return tf.cast(self.network(tf.stop_gradient(x)), tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {"num_tasks": self.num_tasks}


def binary_entropy(logits: tf.Tensor) -> tf.Tensor:
    """Returns `-p log2 p - (1 - p) log2(1 - p)`, p = sigmoid(logits), in bits.

    Args:
      logits: Any shape and float type.

    Returns:
      float32 in [0, 1], same shape; finite, with its gradient, for any finite logit.
    """
    # Even in the logit; of -|logit| neither term cancels the other.
    low = -tf.abs(tf.cast(logits, tf.float32))
    return (tf.nn.softplus(low) - low * tf.sigmoid(low)) / math.log(2.0)


def cosine(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns the cosine of vectors [B, E] of any float type: [B] float32.

    0, with a zero gradient, where a vector is zero.
    """
    a, b = (
        tf.math.l2_normalize(tf.cast(x, tf.float32), axis=-1, epsilon=_TINY)
        for x in (a, b)
    )
    return tf.reduce_sum(a * b, axis=-1)
