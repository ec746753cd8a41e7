"""A training step in several passes over parts of its batch."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from models import losses
from models.optimizers.base import RowOptimizer
from models.optimizers.groups import Gradient, take_step, trained_by
from tfrecords_tools.batch import Batch


def step(
    batch: Batch,
    logits: Callable[[Batch], tf.Tensor],
    optimizers: Mapping[str, RowOptimizer],
    *,
    rows: int,
    kind: losses.LossKind,
    num_domains: int,
) -> tf.Tensor:
    """Lets the optimisers take one step on `losses.task_loss` of the whole batch.

    Gradients of the parts add up to the batch's, since what a row counts
    (`losses.row_shares`) is known before any pass: the same step up to rounding.  A
    pass begins when the one before has its gradients.  So only one part's activations
    exist at a time: they need less memory, and a part that fits into the processor's
    cache is faster.

    Args:
      batch: Rows of the step, of known size.
      logits: Gives float32 [rows, T] of a part; no row's may depend on other rows.
      optimizers: Whose variables are trained.
      rows: Rows of a pass; the last one takes what is left.
      kind: As in `task_loss`.
      num_domains: D.

    Returns:
      The loss, this replica's share.
    """
    shares = losses.row_shares(batch, kind, num_domains=num_domains)
    variables = trained_by(optimizers)
    total = tf.zeros([])
    sums: list[Gradient] = [None] * len(variables)
    for start in range(0, batch.domain.shape[0], rows):
        with tf.control_dependencies([total, *_tensors(sums)]):
            part, counts = tf.nest.map_structure(
                lambda x, start=start: tf.identity(x[start : start + rows]),
                (batch, shares),
            )
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(counts * losses.bce(logits(part), part.labels))
            gradients = tape.gradient(loss, variables)
            sums = [_add(a, b) for a, b in zip(sums, gradients, strict=True)]
            total += loss
    take_step(sums, optimizers)
    return total


def _tensors(gradients: list[Gradient]) -> list[tf.Tensor]:
    return [
        g.values if isinstance(g, tf.IndexedSlices) else g
        for g in gradients
        if g is not None
    ]


def _add(a: Gradient, b: Gradient) -> Gradient:
    """Returns the sum; of slices, which may name a row again, all slices."""
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, tf.IndexedSlices) and isinstance(b, tf.IndexedSlices):
        return tf.IndexedSlices(
            tf.concat([a.values, b.values], axis=0),
            tf.concat([a.indices, b.indices], axis=0),
            a.dense_shape,
        )
    return tf.convert_to_tensor(a) + tf.convert_to_tensor(b)
