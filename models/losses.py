"""Losses of logits, float32 under any precision policy, made for several replicas.

A loss is returned as this replica's *share*: numerators are summed over the rows of
the replica, denominators over the rows of all replicas.  Adding up the shares (which
is what summing gradients over replicas does) gives the loss of the global batch,
whatever way its rows are spread.
"""

from typing import Literal

import tensorflow as tf

from tfrecords_tools.batch import Batch

LossKind = Literal["row_mean", "cell_mean"]


def global_sum(x: tf.Tensor) -> tf.Tensor:
    """Returns `x` summed over replicas; `x` itself where there is only one.

    Gradients flow, and are summed over replicas too.  Use one MirroredStrategy object
    a process: TensorFlow numbers collectives by strategy from the same start, so a
    second one on the same devices meets the first one's shapes and aborts.

    Args:
      x: Numbers of any shape, the same on every replica.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return x
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def bce(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns binary cross-entropy `-y log p - (1 - y) log(1 - p)`, element by element.

    Args:
      logits: Any shape and float type; p = sigmoid(logits).
      labels: Same shape, in [0, 1].

    Returns:
      float32, same shape, natural-log units, finite for any finite logit.
    """
    return tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.cast(labels, tf.float32), logits=tf.cast(logits, tf.float32)
    )


def focal(
    logits: tf.Tensor,
    labels: tf.Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> tf.Tensor:
    """Returns the focal loss `-a (1 - q)^gamma log q`, q the probability of the label.

    Source: Lin et al., ICCV 2017, Eq. (4) and (5).
    Differs: computed in logs from logits, so value and gradient stay finite where
      q underflows.

    Args:
      logits: Any shape and float type.
      labels: Same shape, 0 or 1.
      gamma: How much well-classified rows are turned down; >= 0, 0 gives `bce`.
      alpha: Weight of positives in [0, 1], 1 - alpha for negatives; None = no weight.

    Returns:
      float32, same shape.
    """
    logits, labels = tf.cast(logits, tf.float32), tf.cast(labels, tf.float32)
    toward_label = logits * (2.0 * labels - 1.0)
    down = tf.exp(gamma * tf.math.log_sigmoid(-toward_label))
    loss = -down * tf.math.log_sigmoid(toward_label)
    if alpha is None:
        return loss
    return loss * (alpha * labels + (1.0 - alpha) * (1.0 - labels))


def softmax_focal(
    logits: tf.Tensor, labels: tf.Tensor, *, gamma: float = 2.0
) -> tf.Tensor:
    """Returns the focal loss `-(1 - q)^gamma log q` of one class of several.

    Source: Lin et al., ICCV 2017, Eq. (4), q the softmax probability of the label.
    Differs: computed in logs from logits, so value and gradient stay finite where
      q, or 1 - q, underflows.

    Args:
      logits: [B, M] any float type, M >= 2.
      labels: Class, int [B] in 0..M-1; a row of another class (-1) gives 0.
      gamma: How much well-classified rows are turned down; >= 0, 0 gives the
        cross-entropy.

    Returns:
      float32 [B].
    """
    logs = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    is_label = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False)
    log_q = tf.reduce_sum(tf.where(is_label, logs, 0.0), axis=-1)
    # Far below any logarithm of a float32, and finite: its gradient is 0.
    log_rest = tf.reduce_logsumexp(tf.where(is_label, -1e9, logs), axis=-1)
    return -tf.exp(gamma * log_rest) * log_q


def weighted_bce_from_logits(
    labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor, denominator: tf.Tensor
) -> tf.Tensor:
    """Returns `sum(weights * bce) / denominator`, 0 where the denominator is 0.

    Args:
      labels: [...] in [0, 1].
      logits: [...] any float type.
      weights: [...] or broadcastable, >= 0; gradients flow into them unless stopped.
      denominator: Scalar: rows of the global batch, or `global_sum` of weights.
    """
    weights = tf.cast(weights, tf.float32)
    return tf.math.divide_no_nan(
        tf.reduce_sum(weights * bce(logits, labels)),
        tf.cast(denominator, tf.float32),
    )


def task_loss(
    logits: tf.Tensor, batch: Batch, kind: LossKind, *, num_domains: int
) -> tf.Tensor:
    """Returns this replica's share of the cross-entropy over all tasks.

    It is `task_mean` of `bce(logits, batch.labels)`, logits [B, T] of any float type.
    """
    values = bce(logits, batch.labels)
    return task_mean(values, batch, kind, num_domains=num_domains)


def task_mean(
    values: tf.Tensor, batch: Batch, kind: LossKind, *, num_domains: int
) -> tf.Tensor:
    """Returns this replica's share of a loss given row by row, over all tasks.

    With v the values, w the row weight and m the label mask, sums over the global
    batch:

    - `row_mean`: `sum_t [ sum_b w m v / sum_b w m ]`: a weighted mean over rows
      for each task, SUMMED over tasks.
    - `cell_mean`: the same mean inside each (domain, task) cell, SUMMED over the
      D * T cells.  An empty cell gives 0.  Each domain counts the same however
      small, so the largest domain may lose by it.

    Source: `cell_mean`: Zhang et al. (M3oE), SIGIR 2024, Eq. (9), as its code takes
      the mean.
    Differs: an empty cell is 0 (theirs is NaN); any number of domains and tasks.

    Args:
      values: Losses [B, T] float32, finite also where masked.
      batch: Its mask, weight and domain are read.
      kind: `row_mean` or `cell_mean`.
      num_domains: D.

    Returns:
      Scalar float32; the shares of all replicas add up to the global loss.

    Raises:
      ValueError: For an unknown kind.
    """
    shares = row_shares(batch, kind, num_domains=num_domains)
    return tf.reduce_sum(shares * values)


def row_shares(batch: Batch, kind: LossKind, *, num_domains: int) -> tf.Tensor:
    """Returns what each row counts in `task_mean`: `sum(shares * values)` is the loss.

    They depend on no logits, so the loss of a batch can be taken piece by piece.

    Args:
      batch: Its mask, weight and domain are read.
      kind: `row_mean` or `cell_mean`.
      num_domains: D.

    Returns:
      float32 [B, T], 0 for masked labels; the rows of all replicas of a task (or of
      one of its cells) add up to 1, or to 0 where nothing counts.

    Raises:
      ValueError: For an unknown kind.
    """
    weights = batch.weight[:, tf.newaxis] * batch.label_mask  # [B, T]
    if kind == "row_mean":
        denominator = global_sum(tf.reduce_sum(weights, axis=0))  # [T]
    elif kind == "cell_mean":
        cells = tf.math.unsorted_segment_sum(weights, batch.domain, num_domains)
        denominator = tf.gather(global_sum(cells), batch.domain)  # [B, T]
    else:
        raise ValueError(
            f"row_shares.kind must be 'row_mean' or 'cell_mean'; got {kind!r}."
        )
    return tf.math.divide_no_nan(weights, denominator)
