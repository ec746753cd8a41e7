"""Pseudo domains: which small domain a row of a dominant one is like, and how surely.

Everything here is outside of the gradient and in float32.  What is averaged over
steps lies in variables, for the checkpoint; serving needs none of it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from features.config import lookup_error
from models.losses import global_sum

VARIANCE_FLOOR = 1e-6  # of confidences, which lie in 0..1
PRIOR_FLOOR = 1e-6


class DomainClasses:
    """Which domains the classifier tells apart: all but the dominant ones.

    Args:
      domains: Domain names in index order.
      dominant: Names of the dominant ones, at least one.
      owner: Named in errors.

    Attributes:
      names: Names of the M classes, in the order of the domains.
      domain_ids: Domain index of each class, int32 [M].
      class_ids: Class of each domain, int32 [D], -1 for a dominant one.

    Raises:
      LookupError: For a name that is no domain.
      ValueError: Without a dominant domain, or with fewer than two others.
    """

    def __init__(self, domains: Sequence[str], dominant: Sequence[str], owner: str):
        for name in dominant:
            if name not in domains:
                raise lookup_error(f"{owner}.dominant_domains", name, domains)
        self.names = tuple(name for name in domains if name not in dominant)
        if not dominant:
            raise ValueError(
                f"{owner}.dominant_domains must name the domain, or the domains, that "
                f"own most of the rows; got none (domains: {', '.join(domains)}). Set "
                "it, or switch both use_isct and use_sddn off."
            )
        if len(self.names) < 2:
            raise ValueError(
                f"{owner}.dominant_domains must leave at least two other domains, "
                f"between which the classifier decides; got {', '.join(dominant)} of "
                f"{', '.join(domains)}. Name fewer, or switch both use_isct and "
                "use_sddn off."
            )
        ids = [i for i, name in enumerate(domains) if name not in dominant]
        self.domain_ids = np.array(ids, np.int32)
        self.class_ids = np.full(len(domains), -1, np.int32)
        self.class_ids[ids] = np.arange(len(ids))

    @property
    def count(self) -> int:
        """M."""
        return len(self.names)

    def class_of(self, domain: tf.Tensor) -> tf.Tensor:
        """Returns the class of domain indices, int32, -1 for dominant ones."""
        return tf.gather(self.class_ids, domain)

    def domain_of(self, label: tf.Tensor) -> tf.Tensor:
        """Returns the domain index of classes, int32."""
        return tf.gather(self.domain_ids, label)


class MovingMean(tf.Module):
    """Exponential moving means of K numbers, each moved only where it was seen.

    Args:
      size: K, >= 1.
      start: Value before the first update.
      momentum: Share of a mean that stays in an update, inside (0, 1).
      bias_correction: Let the first updates count as much as later ones, so that the
        mean is that of what was seen; otherwise `start` fades out slowly.
    """

    def __init__(
        self,
        size: int,
        *,
        start: float,
        momentum: float,
        bias_correction: bool,
        name: str,
    ):
        super().__init__(name=name)
        self.momentum, self.bias_correction = momentum, bias_correction
        self.value = _state(np.full(size, start), f"{name}_value")
        self.updates = _state(np.zeros(size), f"{name}_updates")

    def update(self, new: tf.Tensor, is_seen: tf.Tensor) -> None:
        """Moves toward `new` float32 [K] where `is_seen` bool [K]."""
        old = tf.convert_to_tensor(self.value)
        updates = self.updates + tf.cast(is_seen, tf.float32)
        rate = tf.constant(1.0 - self.momentum)
        if self.bias_correction:
            # 1 - momentum^t, exact also where momentum is close to 1.
            seen = -tf.math.expm1(tf.maximum(updates, 1.0) * math.log(self.momentum))
            rate = tf.minimum(rate / seen, 1.0)
        moved = old + rate * (tf.stop_gradient(new) - old)
        self.value.assign(tf.where(is_seen, moved, old))
        self.updates.assign(updates)

    def numpy(self) -> np.ndarray:
        """Returns the means [K]."""
        return tf.convert_to_tensor(self.value).numpy()


class ConfidenceWeights(tf.Module):
    """Weights of pseudo-labelled rows by a truncated Gaussian of their confidence.

    Source: Liu et al., 2025 (SSCTL), Eq. (4); Chen et al., ICLR 2023 (SoftMatch),
    Eq. (7) and (8).
    Differs: the moving means start at the first batch (`bias_correction`; they would
    accept nearly everything for thousands of steps otherwise); a batch moves the
    variance only with two rows or more; the variance has a floor.

    Args:
      num_classes: M, >= 2.
      per_class: Mean and variance for each pseudo label, not over all.
      momentum: See `MovingMean`.
      bias_correction: See `MovingMean`.
      width: n_sigma: the variance is divided by its square; 1 is the paper's.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        per_class: bool = False,
        momentum: float = 0.999,
        bias_correction: bool = True,
        width: float = 1.0,
    ):
        super().__init__(name="confidence")
        self.per_class, self.width = per_class, width
        size = num_classes if per_class else 1
        self.mean, self.variance = (
            MovingMean(
                size,
                start=start,
                momentum=momentum,
                bias_correction=bias_correction,
                name=f"confidence_{name}",
            )
            for name, start in (("mean", 1.0 / num_classes), ("variance", 1.0))
        )

    def update(
        self, confidence: tf.Tensor, label: tf.Tensor, counted: tf.Tensor
    ) -> None:
        """Moves mean and variance by the rows that count, of all replicas.

        Args:
          confidence: float32 [B] in 0..1.
          label: Pseudo label, int32 [B] in 0..M-1.
          counted: bool [B].
        """
        size = self.mean.value.shape[0]
        group = self._group(label)
        member = tf.one_hot(group, size) * tf.cast(counted, tf.float32)[:, tf.newaxis]
        sums = tf.concat([member, member * confidence[:, tf.newaxis]], axis=1)
        count, total = tf.split(global_sum(tf.reduce_sum(sums, axis=0)), 2)
        mean = total / tf.maximum(count, 1.0)
        centred = confidence - tf.gather(mean, group)
        square = tf.reduce_sum(member * tf.square(centred)[:, tf.newaxis], axis=0)
        variance = global_sum(square) / tf.maximum(count - 1.0, 1.0)
        self.mean.update(mean, count >= 1.0)
        self.variance.update(variance, count >= 2.0)

    def weights(self, confidence: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Returns the weight of each row, float32 [B] in 0..1; arguments as above."""
        group = self._group(label)
        mean = tf.gather(tf.convert_to_tensor(self.mean.value), group)
        variance = tf.gather(tf.convert_to_tensor(self.variance.value), group)
        return truncated_gaussian(confidence, mean, variance, self.width)

    def _group(self, label: tf.Tensor) -> tf.Tensor:
        return label if self.per_class else tf.zeros_like(label)


class PseudoLabels(NamedTuple):
    """What a classifier says of rows.

    Attributes:
      label: Class, int32 [B].
      domain: Its domain index, int32 [B].
      confidence: Probability of the class, float32 [B].
    """

    label: tf.Tensor
    domain: tf.Tensor
    confidence: tf.Tensor


def pseudo_labels(
    logits: tf.Tensor, classes: DomainClasses, prior: tf.Tensor | None = None
) -> PseudoLabels:
    """Returns the likeliest class of each row; no gradient flows.

    Args:
      logits: Of the classifier, [B, M].
      classes: Its classes.
      prior: Shares of the classes, float32 [M], to divide the probabilities by first
        (the classes then count as if equally frequent); None = as they are.
    """
    logits = tf.stop_gradient(tf.cast(logits, tf.float32))
    if prior is not None:
        logits -= tf.math.log(tf.maximum(prior, PRIOR_FLOOR))
    probs = tf.nn.softmax(logits)
    label = tf.argmax(probs, axis=1, output_type=tf.int32)
    return PseudoLabels(label, classes.domain_of(label), tf.reduce_max(probs, axis=1))


def truncated_gaussian(
    confidence: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, width: float = 1.0
) -> tf.Tensor:
    """Returns `exp(-(c - mean)^2 width^2 / (2 variance))` below the mean, 1 above it.

    Args:
      confidence: c, float32.
      mean: Broadcasts against c.
      variance: Broadcasts against c, >= 0; at least `VARIANCE_FLOOR` is used.
      width: n_sigma, > 0.
    """
    below = tf.minimum(confidence - mean, 0.0) * width
    return tf.exp(-0.5 * below * below / tf.maximum(variance, VARIANCE_FLOOR))


def _state(value: np.ndarray, name: str) -> tf.Variable:
    """A float32 variable that every replica moves alike."""
    return tf.Variable(
        value.astype(np.float32),
        trainable=False,
        name=name,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.MEAN,
    )
