"""Scales for the layers of a network, made from domain embeddings (SDDN, PEPNet)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers.initialisers import Stacked

_LOG_2 = math.log(2.0)


@keras.utils.register_keras_serializable("isthmus")
class DifferentiationNet(keras.layers.Layer):
    """`scale * sigmoid(FC(relu(FC(x))))`, or its square root: [N, I] -> [K, N, units].

    The first FC is shared by the K networks that the scales are for, the second has
    outputs of its own for each.  With K = 1 it is the gate of PEPNet.

    Source: Liu et al., 2025 (SSCTL, arXiv 2511.01404), Eq. (7); Chang et al.,
    KDD 2023 (PEPNet), Eq. (2) and (3).
    Differs: none.

    Args:
      units: Width of the scaled layer, >= 1.
      hidden_units: Width between the two FC, >= 1.
      num_networks: K, >= 1.
      scale: Largest value, > 0; with 2 a zero second FC gives exactly 1.
    """

    def __init__(
        self,
        units: int,
        *,
        hidden_units: int = 64,
        num_networks: int = 1,
        scale: float = 2.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.units = units
        self.hidden_units = hidden_units
        self.num_networks = num_networks
        self.scale = scale

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        self.hidden_kernel = self.add_weight(
            "hidden_kernel",
            [int(input_shape[-1]), self.hidden_units],
            initializer=keras.initializers.GlorotUniform(),
        )
        self.hidden_bias = self.add_weight(
            "hidden_bias", [self.hidden_units], initializer="zeros"
        )
        self.kernel = self.add_weight(
            "kernel",
            [self.num_networks, self.hidden_units, self.units],
            initializer=Stacked("glorot_uniform"),
        )
        self.bias = self.add_weight(
            "bias", [self.num_networks, self.units], initializer="zeros"
        )
        super().build(input_shape)

    def call(self, x: tf.Tensor, root: bool = False) -> tf.Tensor:
        """Returns scales [K, N, units] float32, each in (0, scale).

        Args:
          x: [N, I].
          root: Give the square root of the scale instead (see `root_gate`).
        """
        hidden = tf.nn.relu(tf.matmul(x, self.hidden_kernel) + self.hidden_bias)
        logits = tf.matmul(hidden[tf.newaxis], self.kernel) + self.bias[:, tf.newaxis]
        logits = tf.cast(logits, tf.float32)
        if root:
            return root_gate(logits, self.scale)
        return self.scale * tf.sigmoid(logits)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "units": self.units,
            "hidden_units": self.hidden_units,
            "num_networks": self.num_networks,
            "scale": self.scale,
        }


@keras.utils.register_keras_serializable("isthmus")
class SoftDifferentiation(keras.layers.Layer):
    """`gamma_l = sqrt(DN_l(e_d) * DN_l(e_w))` for the hidden layers of K networks.

    e_d is the embedding of a row's domain, e_w the mean of domain embeddings under
    the row's distribution over domains; both go through the same DN_l.  DN_l(e_d) is
    computed once a domain, DN_l(e_w) once a row, whatever number of domains the row
    is looked at in.

    Source: Liu et al., 2025 (SSCTL), Eq. (7) and (8).
    Differs: the product is taken in logs (the square root of an underflown sigmoid
    has no finite gradient); each of the K networks has scales of its own unless
    `share_networks`.

    Args:
      num_networks: K, >= 1.
      layer_units: Widths of the layers to scale.
      hidden_units: Hidden width of each DN.
      scale: delta, > 0.
      share_networks: One scale for all K networks.
    """

    def __init__(
        self,
        num_networks: int,
        layer_units: Sequence[int],
        *,
        hidden_units: int = 64,
        scale: float = 2.0,
        share_networks: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_networks = num_networks
        self.layer_units = tuple(layer_units)
        self.hidden_units = hidden_units
        self.scale = scale
        self.share_networks = share_networks
        self.nets = [
            DifferentiationNet(
                units,
                hidden_units=hidden_units,
                num_networks=1 if share_networks else num_networks,
                scale=scale,
                dtype=kwargs.get("dtype"),
            )
            for units in self.layer_units
        ]

    def call(
        self, vectors: tf.Tensor, soft: tf.Tensor, domains: Sequence[tf.Tensor]
    ) -> list[list[tf.Tensor]]:
        """Returns for each of `domains` the scales of every layer, [K or 1, N, units].

        Args:
          vectors: Embedding of each domain, [D, E].
          soft: e_w of each row, [N, E].
          domains: Domain index of each row, int32 [N], in one or more ways.
        """
        scales: list[list[tf.Tensor]] = [[] for _ in domains]
        for net in self.nets:
            hard_root, soft_root = net(vectors, root=True), net(soft, root=True)
            for kept, domain in zip(scales, domains, strict=True):
                kept.append(take_rows(hard_root, domain) * soft_root)
        return scales

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_networks": self.num_networks,
            "layer_units": self.layer_units,
            "hidden_units": self.hidden_units,
            "scale": self.scale,
            "share_networks": self.share_networks,
        }


def root_gate(logits: tf.Tensor, scale: float = 2.0) -> tf.Tensor:
    """Returns `sqrt(scale * sigmoid(logits))` with a gradient that is always finite.

    Computed as `sqrt(scale / 2) exp((log 2 + log sigmoid(logits)) / 2)`: 1 to the bit
    at logits 0 and scale 2.

    Args:
      logits: float32, any shape.
      scale: > 0.
    """

    @tf.custom_gradient
    def op(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        root = tf.exp(0.5 * (_LOG_2 - tf.math.softplus(-x))) * math.sqrt(scale / 2)
        # With s = sigmoid(x) = root^2 / scale: d root / dx = root (1 - s) / 2.
        return root, lambda up: up * (0.5 * root * (1.0 - root * root / scale))

    return op(logits)


def take_rows(table: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns rows `index` [N] of each table in [K, R, H]: [K, N, H].

    The gradient is a product with the one-hot matrix: adding row by row, as a gather
    does, takes many times longer for the few rows that a table of domains has.
    """
    num_rows = table.shape[1]

    @tf.custom_gradient
    def op(table: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def grad(up: tf.Tensor) -> tf.Tensor:
            member = tf.one_hot(index, num_rows, axis=0, dtype=up.dtype)
            return tf.matmul(member[tf.newaxis], up)

        return tf.gather(table, index, axis=1), grad

    return op(table)
