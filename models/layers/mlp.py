"""`Dense` blocks and the `MLP` made of them."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras

from models.layers import normalise
from models.layers.partitioned_norm import PartitionedNorm

NORMS = ("none", "layer", "batch")


@keras.utils.register_keras_serializable("isthmus")
class DenseBlock(keras.layers.Layer):
    """`dropout(act(norm(x W + b)))`: [..., in] -> [..., units].

    Args:
      units: Width, >= 1.
      norm: `none`, `layer`, or `batch` (moving averages at inference).
      activation: Name of a Keras activation, or None.
      dropout: Share of outputs set to 0 in training, 0 <= dropout < 1.
      kernel_initializer: Name of a Keras initialiser.
    """

    def __init__(
        self,
        units: int,
        *,
        norm: str = "none",
        activation: str | None = "relu",
        dropout: float = 0.0,
        kernel_initializer: str = "glorot_uniform",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.units = units
        self.norm = normalise.check_norm("DenseBlock", norm, NORMS)
        self.activation = activation
        self.dropout = dropout
        self.kernel_initializer = kernel_initializer
        self.batch_norm = PartitionedNorm(1) if norm == "batch" else None
        self.drop = keras.layers.Dropout(dropout) if dropout else None

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        self.kernel = self.add_weight(
            "kernel",
            [int(input_shape[-1]), self.units],
            initializer=keras.initializers.get(self.kernel_initializer),
        )
        self.bias = self.add_weight("bias", [self.units], initializer="zeros")
        if self.norm == "layer":
            self.gamma = self.add_weight("gamma", [self.units], initializer="ones")
            self.beta = self.add_weight("beta", [self.units], initializer="zeros")
        super().build(input_shape)

    def call(
        self,
        x: tf.Tensor,
        training: bool = False,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns [..., units].

        Args:
          x: [..., in].
          training: Whether dropout is on and batch statistics are used.
          valid: bool [B], rows that batch statistics count; None = all.
        """
        kernel, bias = self.linear()
        return self.finish(tf.matmul(x, kernel) + bias, training, valid)

    def linear(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns kernel [in, units] and bias [units] to give `finish` a product of."""
        kernel, bias = tf.convert_to_tensor(self.kernel), self.bias
        if self.norm == "layer":
            return normalise.centre(kernel), normalise.centre(bias)
        return kernel, tf.convert_to_tensor(bias)

    def finish(
        self,
        x: tf.Tensor,
        training: bool = False,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns norm, activation and dropout of a product made with `linear`."""
        if self.norm == "layer":
            x = normalise.scale_norm(
                x, self.gamma, self.beta, activation=self.activation
            )
        else:
            if self.batch_norm is not None:
                x = self.batch_norm(x, training=training, valid=valid)
            x = normalise.activate(x, self.activation)
        return x if self.drop is None else self.drop(x, training=training)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "units": self.units,
            "norm": self.norm,
            "activation": self.activation,
            "dropout": self.dropout,
            "kernel_initializer": self.kernel_initializer,
        }


@keras.utils.register_keras_serializable("isthmus")
class MLP(keras.layers.Layer):
    """Optional feature crosses, then hidden blocks, then optional linear outputs.

    With `cross_layers` the input first passes that many DCN-v2 cross layers,
    `x_{l+1} = x_0 * (U V x_l + b) + x_l` (Wang et al., WWW 2021, Eq. (1)), which are
    those of TensorFlow Recommenders.

    Args:
      hidden_units: Widths of the hidden blocks; may be empty.
      output_units: Width of a last linear layer; None = no such layer.
      norm: See `DenseBlock`.
      activation: See `DenseBlock`.
      dropout: See `DenseBlock`.
      cross_layers: Cross layers before the first block, >= 0.
      cross_rank: Rank of the cross kernels, >= 1; None = full.
    """

    def __init__(
        self,
        hidden_units: Sequence[int],
        *,
        output_units: int | None = None,
        norm: str = "none",
        activation: str = "relu",
        dropout: float = 0.0,
        cross_layers: int = 0,
        cross_rank: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.hidden_units = tuple(hidden_units)
        self.output_units = output_units
        self.norm = norm
        self.activation = activation
        self.dropout = dropout
        self.cross_layers = cross_layers
        self.cross_rank = cross_rank
        self.crosses = [
            tfrs.layers.dcn.Cross(projection_dim=cross_rank, dtype=kwargs.get("dtype"))
            for _ in range(cross_layers)
        ]
        self.blocks = [
            DenseBlock(
                units,
                norm=norm,
                activation=activation,
                dropout=dropout,
                dtype=kwargs.get("dtype"),
            )
            for units in self.hidden_units
        ]
        if output_units is not None:
            self.blocks.append(
                DenseBlock(output_units, activation=None, dtype=kwargs.get("dtype"))
            )

    def call(
        self,
        x: tf.Tensor,
        training: bool = False,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns [B, last width]; see `DenseBlock.call`."""
        first = x
        for cross in self.crosses:
            x = cross(first, x)
        for block in self.blocks:
            x = block(x, training=training, valid=valid)
        return x

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "hidden_units": self.hidden_units,
            "output_units": self.output_units,
            "norm": self.norm,
            "activation": self.activation,
            "dropout": self.dropout,
            "cross_layers": self.cross_layers,
            "cross_rank": self.cross_rank,
        }
