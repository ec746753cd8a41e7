"""The star layer: a shared dense layer times one of each domain."""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers import normalise
from models.layers.domain_rows import DomainRows
from models.layers.initialisers import Stacked


@keras.utils.register_keras_serializable("isthmus")
class StarDense(keras.layers.Layer):
    """`act(x (W * W_d) + b + b_d)` with the row's own domain d: [N, I] -> [N, units].

    Source: Sheng et al., CIKM 2021 (STAR), Eq. (7) and (8); also f_DR of M3oE.
    Differs: W_d starts at 1 by default (unsaid there), so that the layer starts as a
    shared one: two Glorot kernels multiply to almost nothing.

    Args:
      num_domains: D, >= 1.
      units: Width, >= 1.
      activation: Name of a Keras activation, or None.
      own_initializer: Of W_d: `ones`, or the name of a Keras initialiser.
    """

    def __init__(
        self,
        num_domains: int,
        units: int,
        *,
        activation: str | None = None,
        own_initializer: str = "ones",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_domains = num_domains
        self.units = units
        self.activation = activation
        self.own_initializer = own_initializer

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        shape = [int(input_shape[-1]), self.units]
        self.kernel = self.add_weight(
            "kernel", shape, initializer=keras.initializers.GlorotUniform()
        )
        self.bias = self.add_weight("bias", [self.units], initializer="zeros")
        self.own_kernel = self.add_weight(
            "own_kernel",
            [self.num_domains, *shape],
            initializer=Stacked(self.own_initializer),
        )
        self.own_bias = self.add_weight(
            "own_bias", [self.num_domains, self.units], initializer="zeros"
        )
        super().build(input_shape)

    def linear(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the effective kernels [D, I, units] and biases [D, units].

        Kernels are multiplied once a step, not rows D times.
        """
        kernels = tf.convert_to_tensor(self.kernel)[tf.newaxis] * self.own_kernel
        return kernels, tf.convert_to_tensor(self.bias)[tf.newaxis] + self.own_bias

    def call(self, x: tf.Tensor, rows: DomainRows) -> tf.Tensor:
        """Returns [N, units] for working rows x [N, I]."""
        kernels, bias = self.linear()
        x = rows.section(lambda h: rows.add(rows.matmul(h, kernels), bias), x)
        return normalise.activate(x, self.activation)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "units": self.units,
            "activation": self.activation,
            "own_initializer": self.own_initializer,
        }
