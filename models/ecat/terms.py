"""The terms of ECAT's loss, Eq. (2), and the weights of rows in them.

Weights are constants for gradients.  Means are a replica's share of the mean over the
rows of the global batch.
"""

import tensorflow as tf

from models import losses
from models.ecat.config import ECATConfig
from models.layers.adaptation import binary_entropy, cosine
from models.layers.adaptive_model import Forward
from models.layers.target_model import Representation
from models.method import MAIN, Batches, Metrics
from tfrecords_tools.batch import Batch

GST = "gst"


def domain_weights(logits: tf.Tensor, is_target: tf.Tensor, kind: str) -> tf.Tensor:
    """Returns w_da [B] float32 in [0, 1], a constant for gradients.

    With q = sigmoid(logits): `one_sided` is the entropy H2(q) of source rows where
    q < 1/2, else 1; `ratio` is min(1, q / (1 - q)), the ratio of the two densities,
    since the discriminator's loss counts both classes the same; target rows have 1.
    `entropy` is H2(q) of every row, the paper's form.

    Args:
      logits: Of the discriminator, [B].
      is_target: float32 [B], 0 or 1.
      kind: One of the three.
    """
    logits = tf.stop_gradient(logits)
    entropy = binary_entropy(logits)
    if kind == "entropy":
        return entropy
    low = entropy if kind == "one_sided" else tf.exp(tf.minimum(logits, 0.0))
    return tf.where(tf.logical_or(is_target > 0, logits >= 0), 1.0, low)


def join(batches: Batches) -> tuple[Batch, tf.Tensor]:
    """Returns target and source rows as one batch, and 1 for target rows."""
    names = [name for name in (MAIN, GST) if name in batches]
    parts = [batches[name] for name in names]
    batch = tf.nest.map_structure(lambda *x: tf.concat(x, axis=0), *parts)
    kinds = [
        tf.ones_like(part.weight) if name == MAIN else tf.zeros_like(part.weight)
        for name, part in zip(names, parts, strict=True)
    ]
    return batch, tf.concat(kinds, axis=0)


def mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Returns this replica's share of the weighted mean over all rows."""
    return tf.math.divide_no_nan(
        tf.reduce_sum(weights * values), losses.global_sum(tf.reduce_sum(weights))
    )


def balanced_loss(
    logits: tf.Tensor, is_target: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """Returns L_da: half the mean over target rows, half that over source rows.

    Each class counts the same, so that q = 1/2 means undecided whatever the number of
    rows; a class without rows gives 0.

    Args:
      logits: Of the discriminator, [B].
      is_target: float32 [B], 0 or 1.
      weights: Row weights [B].
    """
    values = losses.bce(logits, is_target)
    classes = (weights * is_target, weights * (1.0 - is_target))
    return 0.5 * tf.add_n([mean(values, rows) for rows in classes])


def intensity(
    own: tf.Tensor, theirs: tf.Tensor, forward: Forward, config: ECATConfig
) -> tf.Tensor:
    """Returns w_pow [B] float32 in [0, 1].

    Args:
      own: e_t [B, E].
      theirs: e_s [B, E].
      forward: The pass that e_t is of; its entropy is read by `entropy`.
      config: Says which.
    """
    if not config.use_intensity:
        return tf.ones_like(forward.logits[:, 0])
    if config.w_pow == "entropy":
        return tf.reduce_mean(forward.entropy, axis=1)  # detached
    alike = tf.stop_gradient(cosine(own, theirs))
    sign = 1.0 if config.w_pow == "compat" else -1.0
    return tf.clip_by_value(0.5 * (1.0 + sign * alike), 0.0, 1.0)


def distillation(
    forward: Forward, source: Representation, weights: tf.Tensor, config: ECATConfig
) -> tuple[tf.Tensor, Metrics]:
    """Returns `mean(w_pow (1 - cos(e_a, e_s)))` summed over taps, and scalars.

    Rows without an item in any sequence have no e_t or no e_s and count 0.

    Args:
      forward: Of the target model.
      source: Of the source model, detached.
      weights: Row weights [B].
      config: Says which layers.
    """
    both = tf.logical_and(forward.parts.has_items, source.has_items)
    total: tf.Tensor = tf.constant(0.0)
    metrics = {}
    for tap in config.taps:
        own, theirs = getattr(forward.parts, tap), getattr(source, tap)
        power = intensity(own, theirs, forward, config)
        alike = cosine(forward.adapted[tap], theirs)
        counted = tf.cast(both, tf.float32) if tap == "sequence" else 1.0
        total += mean(counted * power * (1.0 - alike), weights)
        metrics[f"w_pow_{tap}"] = mean(power, weights)
        metrics[f"cosine_{tap}"] = mean(alike, weights)
    return total, metrics
