"""Batch normalisation with statistics of each domain's own rows."""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.losses import global_sum

MIN_ROWS = 2  # fewer rows have no variance: moving statistics are used instead


@keras.utils.register_keras_serializable("isthmus")
class PartitionedNorm(keras.layers.Layer):
    """`(gamma * gamma_d) (x - mean_d) / sqrt(var_d + epsilon) + beta + beta_d`.

    In training, mean and variance of domain d are those of its valid rows in the
    batch (of all replicas); a domain with fewer than `MIN_ROWS` of them uses, and
    keeps, its moving averages.  At inference they are the moving averages, so a row's
    score never depends on other rows.  A moving average starts as the plain mean of the
    batches so far: one that starts at 0 and 1, as in Keras, still holds a good part of
    them after hundreds of steps, and inputs of small variance are then scaled quite
    otherwise at inference than in training.  With one domain this is batch
    normalisation with a row mask.

    Source: Sheng et al., CIKM 2021 (STAR), Section 3.3.
    Differs: a batch may mix domains (statistics by segments); domains with fewer
    than two rows are guarded; how moving averages start.

    Args:
      num_domains: D, >= 1.
      momentum: Share of a moving average that stays in an update, 0..1; of update
        number n no more than (n - 1) / n.
      epsilon: Added to the variance, > 0.
      own_only: Without gamma and beta, which all domains share (D > 1).
    """

    def __init__(
        self,
        num_domains: int,
        *,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        own_only: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_domains = num_domains
        self.momentum = momentum
        self.epsilon = epsilon
        self.own_only = own_only

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        width, shape = int(input_shape[-1]), [self.num_domains, int(input_shape[-1])]
        self._shared = self.num_domains == 1 or not self.own_only
        if self._shared:
            self.gamma = self.add_weight("gamma", [width], initializer="ones")
            self.beta = self.add_weight("beta", [width], initializer="zeros")
        if self.num_domains > 1:
            self.own_gamma = self.add_weight("own_gamma", shape, initializer="ones")
            self.own_beta = self.add_weight("own_beta", shape, initializer="zeros")
        state = {
            "dtype": tf.float32,
            "trainable": False,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.MEAN,
            "experimental_autocast": False,
        }
        self.moving_mean = self.add_weight(
            "moving_mean", shape, initializer="zeros", **state
        )
        self.moving_variance = self.add_weight(
            "moving_variance", shape, initializer="ones", **state
        )
        self.num_updates = self.add_weight(
            "num_updates", [self.num_domains, 1], initializer="zeros", **state
        )
        super().build(input_shape)

    def call(
        self,
        x: tf.Tensor,
        domain: tf.Tensor | None = None,
        training: bool = False,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns [B, H].

        Args:
          x: [B, H].
          domain: int32 [B] in 0..D-1; may be None for D = 1.
          training: Whether to use and update batch statistics.
          valid: bool [B], rows that statistics count; None = all.
        """
        scale, shift = self.affine(x, domain, training, valid)
        if self.num_domains > 1:
            scale, shift = tf.gather(scale, domain), tf.gather(shift, domain)
        return tf.cast(tf.cast(x, tf.float32) * scale + shift, x.dtype)

    def affine(
        self,
        x: tf.Tensor,
        domain: tf.Tensor | None = None,
        training: bool = False,
        valid: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scale and shift of each domain, [D, H] float32, of which `call` is.

        For a caller that normalises other rows by the statistics of these; arguments
        as in `call`, the layer must have been built.
        """
        x = tf.cast(x, tf.float32)
        if domain is None:
            domain = tf.zeros(tf.shape(x)[:1], tf.int32)
        mean, variance = (
            tf.identity(self.moving_mean),
            tf.identity(self.moving_variance),
        )
        if training:
            mean, variance = self._batch_statistics(x, domain, valid, mean, variance)
        scale, shift = tf.math.rsqrt(variance + self.epsilon), tf.zeros_like(mean)
        if self._shared:
            scale = tf.cast(self.gamma, tf.float32) * scale
            shift = shift + tf.cast(self.beta, tf.float32)
        if self.num_domains > 1:
            scale = scale * tf.cast(self.own_gamma, tf.float32)
            shift = shift + tf.cast(self.own_beta, tf.float32)
        return scale, shift - mean * scale

    def _batch_statistics(
        self,
        x: tf.Tensor,
        domain: tf.Tensor,
        valid: tf.Tensor | None,
        mean: tf.Tensor,
        variance: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and variance to use, both [D, H], and moves the averages."""
        member = tf.one_hot(domain, self.num_domains, dtype=tf.float32)
        if valid is not None:
            member = member * tf.cast(valid, tf.float32)[:, None]
            # An invalid row may hold anything, and 0 * NaN is NaN.
            x = tf.where(valid[:, None], x, 0.0)
        count = global_sum(tf.reduce_sum(member, axis=0))[:, None]
        safe = tf.maximum(count, 1.0)
        batch_mean = global_sum(tf.matmul(member, x, transpose_a=True)) / safe
        centred = x - tf.gather(batch_mean, domain)
        square = tf.matmul(member, centred * centred, transpose_a=True)
        batch_variance = global_sum(square) / safe

        enough = count >= MIN_ROWS
        updates = tf.identity(self.num_updates)
        stays = tf.minimum(self.momentum, updates / (updates + 1.0))
        for average, old, new in (
            (self.moving_mean, mean, batch_mean),
            (self.moving_variance, variance, batch_variance),
        ):
            moved = stays * old + (1.0 - stays) * tf.stop_gradient(new)
            average.assign(tf.where(enough, moved, old))
        self.num_updates.assign(tf.where(enough, updates + 1.0, updates))
        return (
            tf.where(enough, batch_mean, mean),
            tf.where(enough, batch_variance, variance),
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "own_only": self.own_only,
        }
