"""Finds out which task and domain made a loss NaN or infinite."""

import numpy as np
import tensorflow as tf

from models import losses
from models.method import MAIN, Method
from tfrecords_tools.batch import Batch


class NonFiniteLossError(RuntimeError):
    """Training stopped at the first loss that is no number."""


def explain(method: Method, batches: dict[str, Batch], step: int) -> NonFiniteLossError:
    """Returns the error for step `step`, whose batch and earlier weights are given.

    Args:
      method: With the weights as they were before the step.
      batches: Batches of the step.
      step: Number of the step, the first is 1.
    """
    batch = batches[MAIN if MAIN in batches else min(batches)]
    causes = [f"input {name!r} has NaN or inf" for name in _bad_inputs(batch)]
    causes += [
        f"weight {variable.name!r} was NaN or inf before the step"
        for variable in method.model.trainable_variables
        if not np.isfinite(variable.numpy()).all()
    ]
    logits = method.stacked_logits(batch, training=True)
    bad = ~np.isfinite(losses.bce(logits, batch.labels).numpy())  # [B, T]
    bad &= (batch.label_mask.numpy() > 0) & batch.valid.numpy()[:, None]
    domain = batch.domain.numpy()
    cells = [
        f"task {task!r} in domain {name!r} ({count} rows)"
        for t, task in enumerate(method.schema.tasks)
        for d, name in enumerate(method.schema.domains)
        if (count := int(bad[domain == d, t].sum()))
    ]
    where = "; ".join(cells[:6]) + ("; ..." if len(cells) > 6 else "")
    return NonFiniteLossError(
        f"loss must be finite; it was not at step {step}, "
        f"{where or 'though every row of the main stream had a finite loss'}. "
        + (f"Cause: {'; '.join(causes[:4])}. " if causes else "")
        + "Lower the learning rate, set clip_norm, or mend the inputs; the last "
        "checkpoint is from before this step."
    )


def _bad_inputs(batch: Batch) -> list[str]:
    return [
        name
        for name, values in {**batch.features, "weight": batch.weight}.items()
        if values.dtype.is_floating
        and not bool(tf.reduce_all(tf.math.is_finite(values)))
    ]
