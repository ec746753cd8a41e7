"""Lean layer normalisation: what a Dense -> LayerNorm -> ReLU block is made of.

The Keras layer reshapes into a fused batch normalisation, many passes over memory
(`tests/benchmarks/bench_layers.py` compares).  Two exact identities make it cheap.
The mean over the outputs of `x W + b` is itself linear in x, so it is taken out of W
and b instead of out of the activations (`centre`); and scale, shift and activation
have a gradient with few passes over memory (`scale_norm`).
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

EPSILON = 1e-5  # of the variance; the value of the published multi-domain code


def centre(tensor: tf.Tensor) -> tf.Tensor:
    """Returns `tensor` minus its mean over the last axis."""
    return tensor - tf.reduce_mean(tensor, axis=-1, keepdims=True)


def scale_norm(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    *,
    epsilon: float = EPSILON,
    activation: str | None = None,
) -> tf.Tensor:
    """Returns `act(x / sqrt(mean(x^2) + epsilon) * gamma + beta)` over the last axis.

    For an `x` whose last axis has mean zero (see `centre`) this is layer
    normalisation.

    Source: Ba et al., arXiv 1607.06450, 2016, Eq. (4).
    Differs: none; the mean is removed by the caller.

    Args:
      x: [..., H], mean zero over H.
      gamma: Scale, broadcasts against `x` (dimensions of size 1 or leading ones
        missing).
      beta: Shift, the shape of `gamma`.
      epsilon: Added to the variance, > 0.
      activation: Name of a Keras activation, or None.

    Returns:
      The shape and dtype of `x`.  Statistics are in float32 at least.
    """
    dtype = x.dtype
    wide = tf.cast(x, tf.float32) if dtype in (tf.float16, tf.bfloat16) else x
    gamma, beta = tf.cast(gamma, wide.dtype), tf.cast(beta, wide.dtype)
    if activation in ("relu", None, "linear"):
        out = _fused(wide, gamma, beta, epsilon, activation == "relu")
    else:
        out = keras.activations.get(activation)(
            _fused(wide, gamma, beta, epsilon, False)
        )
    return tf.cast(out, dtype)


def _fused(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float, relu: bool
) -> tf.Tensor:
    @tf.custom_gradient
    def op(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[Any, Callable]:
        width = tf.cast(tf.shape(x)[-1], x.dtype)
        inverse = tf.math.rsqrt(
            tf.reduce_sum(x * x, axis=-1, keepdims=True) / width + epsilon
        )
        normed = x * inverse
        out = normed * gamma + beta
        out = tf.nn.relu(out) if relu else out

        def grad(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            if relu:
                upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=out)
            product = upstream * normed
            d_gamma = _sum_to(product, gamma)
            d_beta = _sum_to(upstream, beta)
            inner = _dot(product, gamma) / width
            return inverse * (upstream * gamma - normed * inner), d_gamma, d_beta

        return out, grad

    return op(x, gamma, beta)


def add_bias(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Returns `x + bias`, with a gradient of `bias` in one fast pass.

    Args:
      x: [..., H].
      bias: Broadcasts against `x` (dimensions of size 1 or leading ones missing).
    """

    @tf.custom_gradient
    def op(x: tf.Tensor, bias: tf.Tensor) -> tuple[Any, Callable]:
        return x + bias, lambda upstream: (upstream, _sum_to(upstream, bias))

    return op(x, bias)


def _sum_to(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sums `x` over the axes along which `like` was broadcast.

    Over rows it is a product with ones: on CPU that reads memory faster than a sum over
    an axis that is not the last.
    """
    rank = x.shape.rank
    extra = rank - like.shape.rank
    axes = list(range(extra))
    axes += [extra + i for i, size in enumerate(like.shape) if size == 1]
    if not axes:
        return x
    if axes == [0]:
        x = tf.reshape(x, [tf.shape(x)[0], tf.math.reduce_prod(tf.shape(x)[1:])])
        total = tf.matmul(tf.ones([1, tf.shape(x)[0]], x.dtype), x)
    elif rank == 3 and axes == [1]:
        total = tf.matmul(tf.ones([1, 1, tf.shape(x)[1]], x.dtype), x)
    else:
        total = tf.reduce_sum(x, axes)
    return tf.reshape(total, tf.shape(like))


def _dot(x: tf.Tensor, gamma: tf.Tensor) -> tf.Tensor:
    """Returns `sum(x * gamma)` over the last axis, kept: [..., 1]."""
    if x.shape.rank == 3 and gamma.shape.rank == 3 and gamma.shape[1] == 1:
        return tf.matmul(x, gamma, transpose_b=True)
    if gamma.shape.rank == 1:
        return tf.linalg.matvec(x, gamma)[..., tf.newaxis]
    return tf.reduce_sum(x * gamma, axis=-1, keepdims=True)


def activate(x: tf.Tensor, activation: str | None) -> tf.Tensor:
    """Returns `x` through the Keras activation of that name; None is the identity."""
    return x if activation is None else keras.activations.get(activation)(x)


def check_norm(owner: str, norm: str, known: tuple[str, ...]) -> str:
    """Returns `norm`, or raises naming the known ones."""
    if norm not in known:
        raise ValueError(
            f"{owner}.norm must be one of {', '.join(known)}; got {norm!r}."
        )
    return norm
