"""Stacked experts, gates over them, and their weighted sums."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers import normalise
from models.layers.domain import norm_dense
from models.layers.domain_rows import DomainRows
from models.layers.initialisers import Stacked

NORMS = ("none", "layer")


@keras.utils.register_keras_serializable("isthmus")
class StackedMLP(keras.layers.Layer):
    """K networks of equal shape side by side; activations are [K, B, H].

    Each layer is one batched product with kernels [K, in, out], initialised expert by
    expert.  The input is shared, [B, I], or private, [K, B, I].

    Args:
      num_experts: K, >= 1.
      hidden_units: Widths of the layers, at least one.
      norm: `none` or `layer`, before the activation.
      activation: Name of a Keras activation of every layer, or None.
      dropout: Share of activations set to 0 in training, 0 <= dropout < 1.
      kernel_initializer: Name of the Keras initialiser of one kernel.
      rows_first: Return [B, K, H]; needs a single layer on a shared input, where it
        is one plain product without a transposition.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_units: Sequence[int],
        *,
        norm: str = "none",
        activation: str | None = "relu",
        dropout: float = 0.0,
        kernel_initializer: str = "glorot_uniform",
        rows_first: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not hidden_units:
            raise ValueError(
                "StackedMLP.hidden_units must hold at least one width; got none."
            )
        if rows_first and len(hidden_units) != 1:
            raise ValueError(
                "StackedMLP.rows_first must go with one layer; got hidden_units="
                f"{tuple(hidden_units)}."
            )
        self.num_experts = num_experts
        self.hidden_units = tuple(hidden_units)
        self.norm = normalise.check_norm("StackedMLP", norm, NORMS)
        self.activation = activation
        self.dropout = dropout
        self.kernel_initializer = kernel_initializer
        self.rows_first = rows_first
        self.drops = [
            keras.layers.Dropout(dropout) for _ in self.hidden_units if dropout
        ]

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        width = int(input_shape[-1])
        self.kernels, self.biases, self.gammas, self.betas = [], [], [], []
        for i, units in enumerate(self.hidden_units):
            self.kernels.append(
                self.add_weight(
                    f"kernel_{i}",
                    [self.num_experts, width, units],
                    initializer=Stacked(self.kernel_initializer),
                )
            )
            shape = [self.num_experts, units]
            self.biases.append(self.add_weight(f"bias_{i}", shape, initializer="zeros"))
            if self.norm == "layer":
                self.gammas.append(
                    self.add_weight(f"gamma_{i}", shape, initializer="ones")
                )
                self.betas.append(
                    self.add_weight(f"beta_{i}", shape, initializer="zeros")
                )
            width = units
        super().build(input_shape)

    def call(
        self,
        x: tf.Tensor,
        training: bool = False,
        chosen: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns [K, B, H], or [B, K, H] with `rows_first`.

        Args:
          x: [B, I], shared, or [K, B, I], private.
          training: Whether dropout is on.
          chosen: int32 [K], the experts to compute, in this order; None: all.
        """
        for i in range(len(self.hidden_units)):
            x = self._layer(i, x, chosen)
            if self.drops:
                x = self.drops[i](x, training=training)
        return x

    def by_domain(self, x: tf.Tensor, rows: DomainRows, first: int) -> tf.Tensor:
        """Returns [N, H]: each row of domain d through expert `first + d` alone.

        For one layer with `norm` layer.

        Args:
          x: Working rows [N, I].
          rows: How they are laid out by domain.
          first: The expert of domain 0; the next ones are of the next domains.
        """
        own = slice(first, first + rows.num_domains)
        kernel, bias, gamma, beta = (
            tf.convert_to_tensor(part[0])[own]
            for part in (self.kernels, self.biases, self.gammas, self.betas)
        )
        return rows.section(
            lambda h: norm_dense(h, rows, kernel, bias, gamma, beta, self.activation), x
        )

    def _layer(self, i: int, x: tf.Tensor, chosen: tf.Tensor | None) -> tf.Tensor:
        def part(weights: Sequence[tf.Variable]) -> tf.Tensor:
            whole = tf.convert_to_tensor(weights[i])
            return whole if chosen is None else tf.gather(whole, chosen)

        kernel, bias = part(self.kernels), part(self.biases)
        if self.norm == "layer":
            kernel, bias = normalise.centre(kernel), normalise.centre(bias)
        if self.rows_first:
            flat = tf.reshape(tf.transpose(kernel, [1, 0, 2]), [x.shape[-1], -1])
            x = tf.matmul(x, flat) + tf.reshape(bias, [-1])
            x = tf.reshape(x, [-1, kernel.shape[0], self.hidden_units[i]])
        else:
            x = x[tf.newaxis] if x.shape.rank == 2 else x
            x = normalise.add_bias(tf.matmul(x, kernel), bias[:, tf.newaxis])
        if self.norm == "none":
            return normalise.activate(x, self.activation)
        gamma, beta = part(self.gammas), part(self.betas)
        if not self.rows_first:
            gamma, beta = gamma[:, tf.newaxis], beta[:, tf.newaxis]
        return normalise.scale_norm(x, gamma, beta, activation=self.activation)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_experts": self.num_experts,
            "hidden_units": self.hidden_units,
            "norm": self.norm,
            "activation": self.activation,
            "dropout": self.dropout,
            "kernel_initializer": self.kernel_initializer,
            "rows_first": self.rows_first,
        }


@keras.utils.register_keras_serializable("isthmus")
class Gates(keras.layers.Layer):
    """`softmax(x W_d + b_d)` over K experts for the G gates of a row's own domain.

    Source: Ma et al., KDD 2018 (MMoE), Eq. (6) and (7).
    Differs: a bias is added.

    Args:
      num_domains: D, >= 1; each has its own gates.
      num_gates: G gates a domain (tasks), >= 1.
      num_experts: K, >= 1.
    """

    def __init__(
        self, num_domains: int, num_gates: int, num_experts: int, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.num_domains = num_domains
        self.num_gates = num_gates
        self.num_experts = num_experts

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        width = int(input_shape[-1])
        count = self.num_gates * self.num_experts
        self.kernel = self.add_weight(
            "kernel",
            [self.num_domains, self.num_gates, width, self.num_experts],
            initializer=Stacked("glorot_uniform"),
        )
        self.bias = self.add_weight(
            "bias", [self.num_domains, count], initializer="zeros"
        )
        super().build(input_shape)

    def call(self, x: tf.Tensor, rows: DomainRows) -> tf.Tensor:
        """Returns weights [N, G, K] of each row's own gates, float32, summing to 1.

        Args:
          x: [N, I], the same for all gates, or [N, G, I].
          rows: How the rows are laid out by domain.
        """
        logits = rows.section(lambda h: self._logits(h, rows), x)
        shape = [-1, self.num_gates, self.num_experts]
        return tf.nn.softmax(tf.cast(tf.reshape(logits, shape), tf.float32))

    def _logits(self, x: tf.Tensor, rows: DomainRows) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        if x.shape.rank == 3:
            pairs = zip(tf.unstack(x, axis=1), tf.unstack(kernel, axis=1), strict=True)
            parts = [rows.matmul(a, b) for a, b in pairs]
            return rows.add(tf.concat(parts, axis=-1), self.bias)
        flat = tf.reshape(
            tf.transpose(kernel, [0, 2, 1, 3]),
            [self.num_domains, x.shape[-1], self.num_gates * self.num_experts],
        )
        return rows.add(rows.matmul(x, flat), self.bias)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "num_gates": self.num_gates,
            "num_experts": self.num_experts,
        }


def mix(weights: tf.Tensor, experts: tf.Tensor) -> tf.Tensor:
    """Returns weighted sums of experts, [B, G, H].

    Args:
      weights: [B, G, K].
      experts: [B, K, H].
    """
    return tf.matmul(tf.cast(weights, experts.dtype), experts)


def mix_stacked(weights: tf.Tensor, experts: tf.Tensor) -> tf.Tensor:
    """Returns weighted sums of experts, [B, G, H].

    Args:
      weights: [B, G, K].
      experts: [K, B, H].
    """
    return mix(weights, tf.transpose(experts, [1, 0, 2]))
