"""`ScaledMLP`: stacked networks whose layers are scaled row by row."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers import normalise
from models.layers.initialisers import Stacked
from models.layers.partitioned_norm import PartitionedNorm

NORMS = ("none", "layer", "batch")


@keras.utils.register_keras_serializable("isthmus")
class ScaledMLP(keras.layers.Layer):
    """K networks side by side over one or more sets of rows; activations [K, N, H].

    A hidden layer is `dropout(scale * relu(norm(x W + b)))`.  A positive scale may as
    well stand before the ReLU, where the paper has it: the numbers are the same, and
    behind it `relu(norm(x W + b))` of the first layer is computed once for all sets
    that share their input.  The first set is that of the real rows: batch
    normalisation takes its statistics from them alone and applies them to all sets.

    Source: Liu et al., 2025 (SSCTL), Eq. (1) and (8).
    Differs: see above.

    Args:
      num_networks: K, >= 1.
      hidden_units: Widths of the hidden layers; may be empty with `output_units`.
      output_units: Width of a last linear layer, never scaled; None = no such layer.
      norm: `none`, `layer` or `batch` (moving averages at inference).
      dropout: Share of activations set to 0 in training, 0 <= dropout < 1.
    """

    def __init__(
        self,
        num_networks: int,
        hidden_units: Sequence[int],
        *,
        output_units: int | None = None,
        norm: str = "layer",
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not hidden_units and output_units is None:
            raise ValueError(
                "ScaledMLP.hidden_units must hold at least one width where there is "
                "no output_units; got none."
            )
        self.num_networks = num_networks
        self.hidden_units = tuple(hidden_units)
        self.output_units = output_units
        self.norm = normalise.check_norm("ScaledMLP", norm, NORMS)
        self.dropout = dropout
        count = len(self.hidden_units)
        self.batch_norms = [
            PartitionedNorm(1, dtype=kwargs.get("dtype"))
            for _ in range(count if norm == "batch" else 0)
        ]
        self.drops = [
            keras.layers.Dropout(dropout) for _ in range(count if dropout else 0)
        ]

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        width = int(input_shape[0][-1])
        weights: Any = ([], [], [], [])
        self.kernels, self.biases, self.gammas, self.betas = weights
        last = [] if self.output_units is None else [self.output_units]
        for i, units in enumerate((*self.hidden_units, *last)):
            self.kernels.append(
                self.add_weight(
                    f"kernel_{i}",
                    [self.num_networks, width, units],
                    initializer=Stacked("glorot_uniform"),
                )
            )
            wanted = [(self.biases, "bias", "zeros")]
            hidden = i < len(self.hidden_units)
            if hidden and self.norm == "layer":
                wanted += [
                    (self.gammas, "gamma", "ones"),
                    (self.betas, "beta", "zeros"),
                ]
            for kept, name, start in wanted:
                shape = [self.num_networks, units]
                kept.append(self.add_weight(f"{name}_{i}", shape, initializer=start))
            if hidden and self.norm == "batch":
                self.batch_norms[i].build([None, self.num_networks * units])
            width = units
        super().build(input_shape)

    def call(
        self,
        inputs: Sequence[tf.Tensor],
        scales: Sequence[Sequence[tf.Tensor]] = (),
        training: bool = False,
        valid: tf.Tensor | None = None,
        frozen: Sequence[bool] = (),
    ) -> list[tf.Tensor]:
        """Returns [K, N, H] of each set of rows.

        Args:
          inputs: [N, I] (shared by the networks) or [K, N, I] of each set, or only
            one, which all sets share.
          scales: For each set the scales of every hidden layer, [K or 1, N, units];
            empty = no scaling.
          training: Whether dropout and batch statistics are on.
          valid: bool [N], rows of the first set that batch statistics count.
          frozen: For each input whether its gradient stops before the weights.
        """
        parts = list(inputs)
        stop = list(frozen) or [False] * len(parts)
        for i in range(len(self.kernels)):
            if len(stop) < len(parts):
                stop = stop * len(parts)
            linear = [self._linear(i, x, s) for x, s in zip(parts, stop, strict=True)]
            if i == len(self.hidden_units):
                return linear
            parts = self._normed(i, linear, stop, training, valid)
            if scales:
                parts = parts * (len(scales) // len(parts))
                parts = [
                    x * tf.cast(own[i], x.dtype)
                    for x, own in zip(parts, scales, strict=True)
                ]
            if self.drops:
                parts = [self.drops[i](x, training=training) for x in parts]
        return parts

    def _linear(self, i: int, x: tf.Tensor, frozen: bool) -> tf.Tensor:
        kernel = _read(self.kernels[i], frozen)
        bias = _read(self.biases[i], frozen)
        if self.norm == "layer" and i < len(self.hidden_units):
            kernel, bias = normalise.centre(kernel), normalise.centre(bias)
        x = x[tf.newaxis] if x.shape.rank == 2 else x
        # Cast: also right where the caller is outside of Keras' autocast.
        kernel, bias = tf.cast(kernel, x.dtype), tf.cast(bias, x.dtype)
        return tf.matmul(x, kernel) + bias[:, tf.newaxis]

    def _normed(
        self,
        i: int,
        parts: Sequence[tf.Tensor],
        stop: Sequence[bool],
        training: bool,
        valid: tf.Tensor | None,
    ) -> list[tf.Tensor]:
        """Returns `relu(norm(x))` of each set."""
        if self.norm == "none":
            return [tf.nn.relu(x) for x in parts]
        if self.norm == "layer":
            out = []
            for x, frozen in zip(parts, stop, strict=True):
                gamma = _read(self.gammas[i], frozen)[:, tf.newaxis]
                beta = _read(self.betas[i], frozen)[:, tf.newaxis]
                out.append(normalise.scale_norm(x, gamma, beta, activation="relu"))
            return out
        return self._batch_normed(i, parts, stop, training, valid)

    def _batch_normed(
        self,
        i: int,
        parts: Sequence[tf.Tensor],
        stop: Sequence[bool],
        training: bool,
        valid: tf.Tensor | None,
    ) -> list[tf.Tensor]:
        shape = [self.num_networks, 1, self.hidden_units[i]]
        flat = tf.transpose(parts[0], [1, 0, 2])
        flat = tf.reshape(flat, [-1, self.num_networks * self.hidden_units[i]])
        by_width = self.batch_norms[i].affine(flat, training=training, valid=valid)
        affine = [tf.reshape(value, shape) for value in by_width]
        out = []
        for x, frozen in zip(parts, stop, strict=True):
            own = [tf.stop_gradient(v) if frozen else v for v in affine]
            scale, shift = (tf.cast(v, x.dtype) for v in own)
            out.append(tf.nn.relu(x * scale + shift))
        return out

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_networks": self.num_networks,
            "hidden_units": self.hidden_units,
            "output_units": self.output_units,
            "norm": self.norm,
            "dropout": self.dropout,
        }


def _read(variable: tf.Variable, frozen: bool) -> tf.Tensor:
    value = tf.convert_to_tensor(variable)
    return tf.stop_gradient(value) if frozen else value
