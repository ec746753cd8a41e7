"""Layers with weights of their own for each domain."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers import normalise
from models.layers.domain_rows import DomainRows
from models.layers.initialisers import Stacked

NORMS = ("none", "layer")


@keras.utils.register_keras_serializable("isthmus")
class DomainDense(keras.layers.Layer):
    """`act(norm(x W_d + b_d))` with the weights of each row's own domain d.

    Cost does not grow with D: rows go through their own domain's block product (see
    `DomainRows`).

    Args:
      num_domains: D, >= 1.
      units: Width, >= 1.
      norm: `none` or `layer` (scale and shift per domain).
      activation: Name of a Keras activation, or None.
      kernel_initializer: Name of the Keras initialiser of one kernel.
    """

    def __init__(
        self,
        num_domains: int,
        units: int,
        *,
        norm: str = "none",
        activation: str | None = None,
        kernel_initializer: str = "glorot_uniform",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_domains = num_domains
        self.units = units
        self.norm = normalise.check_norm("DomainDense", norm, NORMS)
        self.activation = activation
        self.kernel_initializer = kernel_initializer

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        self.kernel = self.add_weight(
            "kernel",
            [self.num_domains, int(input_shape[-1]), self.units],
            initializer=Stacked(self.kernel_initializer),
        )
        shape = [self.num_domains, self.units]
        self.bias = self.add_weight("bias", shape, initializer="zeros")
        if self.norm == "layer":
            self.gamma = self.add_weight("gamma", shape, initializer="ones")
            self.beta = self.add_weight("beta", shape, initializer="zeros")
        super().build(input_shape)

    def call(self, x: tf.Tensor, rows: DomainRows) -> tf.Tensor:
        """Returns [N, units] for working rows x [N, I]."""
        return rows.section(lambda h: self._section(h, rows), x)

    def _section(self, x: tf.Tensor, rows: DomainRows) -> tf.Tensor:
        if self.norm == "none":
            x = rows.add(rows.matmul(x, self.kernel), self.bias)
            return normalise.activate(x, self.activation)
        return norm_dense(
            x, rows, self.kernel, self.bias, self.gamma, self.beta, self.activation
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "units": self.units,
            "norm": self.norm,
            "activation": self.activation,
            "kernel_initializer": self.kernel_initializer,
        }


@keras.utils.register_keras_serializable("isthmus")
class DomainStack(keras.layers.Layer):
    """C networks per domain; a row goes through the C of its own domain.

    Each is blocks of `dropout(act(norm(x W + b)))`.

    Args:
      num_domains: D, >= 1.
      count: C, networks a domain, >= 1.
      hidden_units: Widths of the blocks; may be empty.
      norm: `none` or `layer`.
      activation: Name of a Keras activation.
      dropout: Share of activations set to 0 in training, 0 <= dropout < 1.
    """

    def __init__(
        self,
        num_domains: int,
        count: int,
        hidden_units: Sequence[int] = (),
        *,
        norm: str = "none",
        activation: str = "relu",
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_domains = num_domains
        self.count = count
        self.hidden_units = tuple(hidden_units)
        self.norm = normalise.check_norm("DomainStack", norm, NORMS)
        self.activation = activation
        self.dropout = dropout
        self.drops = [
            keras.layers.Dropout(dropout) for _ in self.hidden_units if dropout
        ]

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        width = int(input_shape[-1])
        stack = [self.num_domains, self.count]
        weights: Any = ([], [], [], [])
        self.kernels, self.biases, self.gammas, self.betas = weights
        for i, units in enumerate(self.hidden_units):
            self.kernels.append(
                self.add_weight(
                    f"kernel_{i}",
                    [*stack, width, units],
                    initializer=Stacked("glorot_uniform"),
                )
            )
            wanted = [(self.biases, "bias", "zeros")]
            if self.norm == "layer":
                wanted += [
                    (self.gammas, "gamma", "ones"),
                    (self.betas, "beta", "zeros"),
                ]
            for kept, name, start in wanted:
                kept.append(
                    self.add_weight(f"{name}_{i}", [*stack, units], initializer=start)
                )
            width = units
        super().build(input_shape)

    def call(self, x: tf.Tensor, rows: DomainRows, training: bool = False) -> tf.Tensor:
        """Returns [N, C, H].

        Args:
          x: [N, I], the same input for all, or [N, G, I], each for C / G networks
            in a row.
          rows: How the rows are laid out by domain.
          training: Whether dropout is on.
        """
        return rows.section(lambda h: self.inside(h, rows, training), x)

    def inside(self, x: tf.Tensor, rows: DomainRows, training: bool) -> tf.Tensor:
        """Returns what `call` does, for a caller that is inside a section already."""
        for i in range(len(self.hidden_units)):
            x = self._block(i, x, rows)
            if self.drops:
                x = self.drops[i](x, training=training)
        return x

    def _block(self, i: int, x: tf.Tensor, rows: DomainRows) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernels[i])
        bias = tf.convert_to_tensor(self.biases[i])
        by_kernel = _centre_kernels(x, kernel)
        if self.norm == "layer" and by_kernel:
            kernel, bias = normalise.centre(kernel), normalise.centre(bias)
        inputs = tf.unstack(x, axis=1) if x.shape.rank == 3 else [x]
        # One split: slices would each send back a gradient as large as the whole.
        kernels = tf.split(kernel, len(inputs), axis=1)
        parts = [
            rows.matmul(part, _side_by_side(own))
            for part, own in zip(inputs, kernels, strict=True)
        ]
        x = parts[0] if len(parts) == 1 else tf.stack(parts, axis=1)
        x = tf.reshape(x, [-1, self.count, self.hidden_units[i]])
        x = rows.view(x) + rows.param(bias)
        if self.norm == "layer":
            x = x if by_kernel else normalise.centre(x)
            gamma, beta = rows.param(self.gammas[i]), rows.param(self.betas[i])
            x = normalise.scale_norm(x, gamma, beta, activation=self.activation)
        else:
            x = normalise.activate(x, self.activation)
        return rows.flat(x)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "count": self.count,
            "hidden_units": self.hidden_units,
            "norm": self.norm,
            "activation": self.activation,
            "dropout": self.dropout,
        }


@keras.utils.register_keras_serializable("isthmus")
class DomainTowers(keras.layers.Layer):
    """A tower per (domain, task): a `DomainStack`, then one linear output.

    Args:
      num_domains: D, >= 1.
      num_tasks: T, >= 1.
      hidden_units: Widths of the hidden layers; may be empty.
      norm: `none` or `layer`.
      activation: Name of a Keras activation.
      dropout: Share of activations set to 0 in training, 0 <= dropout < 1.
    """

    def __init__(
        self,
        num_domains: int,
        num_tasks: int,
        hidden_units: Sequence[int] = (),
        *,
        norm: str = "none",
        activation: str = "relu",
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_domains = num_domains
        self.num_tasks = num_tasks
        self.hidden_units = tuple(hidden_units)
        self.norm = norm
        self.activation = activation
        self.dropout = dropout
        self.hidden = DomainStack(
            num_domains,
            num_tasks,
            hidden_units,
            norm=norm,
            activation=activation,
            dropout=dropout,
            dtype=kwargs.get("dtype"),
        )

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        self.hidden.build(input_shape)
        heads = [self.num_domains, self.num_tasks]
        width = int((input_shape[-1], *self.hidden_units)[-1])
        self.kernel = self.add_weight(
            "kernel", [*heads, width, 1], initializer=Stacked("glorot_uniform")
        )
        self.bias = self.add_weight("bias", heads, initializer="zeros")
        super().build(input_shape)

    def call(self, x: tf.Tensor, rows: DomainRows, training: bool = False) -> tf.Tensor:
        """Returns logits [N, T], float32.

        Args:
          x: [N, I], the same input for all tasks, or [N, T, I].
          rows: How the rows are laid out by domain.
          training: Whether dropout is on.
        """
        logits = rows.section(lambda h: self._section(h, rows, training), x)
        return tf.cast(logits, tf.float32)

    def _section(self, x: tf.Tensor, rows: DomainRows, training: bool) -> tf.Tensor:
        x = self.hidden.inside(x, rows, training)
        if x.shape.rank == 2:
            x = x[:, tf.newaxis]
        # One output each: a product and a sum beat a matrix product of width 1.
        kernel = rows.param(self.kernel[..., 0])
        logits = tf.reduce_sum(rows.view(x) * kernel, axis=-1)
        return rows.flat(logits + rows.param(self.bias))

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "num_tasks": self.num_tasks,
            "hidden_units": self.hidden_units,
            "norm": self.norm,
            "activation": self.activation,
            "dropout": self.dropout,
        }


def norm_dense(
    x: tf.Tensor,
    rows: DomainRows,
    kernel: tf.Tensor,
    bias: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    activation: str | None,
) -> tf.Tensor:
    """Returns `act(LayerNorm(x W_d + b_d))` [N, H] by each row's own domain d.

    Call it inside a section of `rows`.

    Args:
      x: Working rows [N, I].
      rows: How they are laid out by domain.
      kernel: W, [D, I, H].
      bias: b, [D, H].
      gamma: Scale of the norm, [D, H].
      beta: Its shift, [D, H].
      activation: Name of a Keras activation, or None.
    """
    kernel = tf.convert_to_tensor(kernel)
    by_kernel = _centre_kernels(x, kernel)
    if by_kernel:
        kernel, bias = normalise.centre(kernel), normalise.centre(bias)
    x = rows.view(rows.add(rows.matmul(x, kernel), bias))
    x = x if by_kernel else normalise.centre(x)
    gamma, beta = rows.param(gamma), rows.param(beta)
    return rows.flat(normalise.scale_norm(x, gamma, beta, activation=activation))


def _centre_kernels(x: tf.Tensor, kernel: tf.Tensor) -> bool:
    """Whether a mean over outputs is cheaper taken out of [D, ..., in, out] kernels.

    Else it is taken out of the outputs: many domains have more numbers in their
    kernels than the batch has.
    """
    rows = x.shape[0]
    return rows is not None and kernel.shape[0] * kernel.shape[-2] <= rows


def _side_by_side(kernels: tf.Tensor) -> tf.Tensor:
    """Returns [D, C, in, out] as [D, in, C * out]: one product for all C."""
    domains, count, width, units = kernels.shape
    return tf.reshape(
        tf.transpose(kernels, [0, 2, 1, 3]), [domains, width, count * units]
    )
