"""`Batch`: what the readers give and what methods take.  A tf.data structure."""

from typing import NamedTuple

import tensorflow as tf


class Batch(NamedTuple):
    """Rows, column by column; B is fixed, short batches are padded.

    Attributes:
      features: Model inputs by feature name (`FeatureInfo.kind` gives the shape):
        int32 [B], int32 [B, length] or float32 [B].  Key `domain` int32 [B], the
        domain index, is always there; the domain indicator reads it.
      labels: float32 [B, T], 0 or 1; 0 where masked.
      label_mask: float32 [B, T], 1 where the label counts, 0 where masked or padding.
      weight: float32 [B], 0 for padding rows.
      valid: bool [B], False for padding rows.
      keys: Int64 [B] columns by name, those that the reader was asked for
        (`row_id`, `user_key`, `day`); may be empty.
    """

    features: dict[str, tf.Tensor]
    labels: tf.Tensor
    label_mask: tf.Tensor
    weight: tf.Tensor
    valid: tf.Tensor
    keys: dict[str, tf.Tensor]

    @property
    def domain(self) -> tf.Tensor:
        """Domain index, int32 [B]."""
        return self.features["domain"]
