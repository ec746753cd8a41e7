"""`CachedSource`: representations of a source model that lie beside the rows."""

from collections.abc import Mapping

import tensorflow as tf

from models.layers.target_model import Representation
from tfrecords_tools.vectors import RowVectors

VECTORS = "vectors/"  # + name: feature of a batch
HAS_ITEMS = "has_items"


class CachedSource:
    """Stands for a `FrozenSource` whose representations `models.represent` has kept.

    Args:
      folder: Of the vectors.

    Attributes:
      version: Of the model that made them, as `FrozenSource.version`.
      inputs: Width of every feature that a batch must have besides its own.

    Raises:
      VectorsError: When they are not whole.
    """

    def __init__(self, folder: str):
        info = RowVectors.open(folder).info
        self.version = info.version
        self.inputs = {VECTORS + name: width for name, width in info.widths.items()}

    def represent(self, features: Mapping[str, tf.Tensor]) -> Representation:
        """Returns what was kept of these rows; a layer that was not is [B, 0]."""
        none = tf.zeros([tf.shape(features["domain"])[0], 0])
        fields, sequence = (
            features.get(f"{VECTORS}{layer}", none) for layer in ("fields", "sequence")
        )
        has_items = features[VECTORS + HAS_ITEMS][:, 0] > 0
        return Representation(fields, sequence, has_items, {})
