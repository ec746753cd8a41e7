"""`DomainModel`: what every model shares: embedding, and the order of rows."""

from collections.abc import Mapping

import tensorflow as tf
import tf_keras as keras

from features.schema import ModelSchema
from models.layers.domain_rows import DomainRows
from models.layers.embeddings import FieldEmbeddings


class DomainModel(keras.Model):
    """Calls `logits` of a subclass on embedded rows; returns logits by task.

    Args:
      schema: Inputs, domains and tasks.
      embedding_stddev: Standard deviation of initial embeddings.
      use_domain_feature: Whether a domain indicator in the schema is an input.

    Attributes:
      embedding_class: Makes the input layer from the fields and `stddev`; a subclass
        may put another layer here.  It takes `Batch.features`, gives [B, I], and
        names its tables `embedding_table...` (they form the optimiser group).
    """

    embedding_class: type[keras.layers.Layer] = FieldEmbeddings

    def __init__(
        self,
        schema: ModelSchema,
        *,
        embedding_stddev: float,
        use_domain_feature: bool = True,
    ):
        super().__init__()
        self.schema = schema
        fields = [
            f for f in schema.features if use_domain_feature or f.role != "domain"
        ]
        self.embeddings = self.embedding_class(fields, stddev=embedding_stddev)

    def call(
        self, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Returns float32 logits [B] by task, rows in input order.

        Args:
          features: As `Batch.features`; `valid` bool [B], if there, says which rows
            batch statistics may count.
          training: Whether dropout and batch statistics are on.
        """
        rows = DomainRows(features["domain"], self.schema.num_domains)
        valid = rows.valid_rows(features.get("valid"))
        entered = {k: rows.enter(v) for k, v in features.items() if k != "valid"}
        x = self.embeddings(entered)
        logits = self.logits(x, entered["domain"], rows, training, valid)
        logits = tf.cast(rows.leave(logits), tf.float32)
        return dict(zip(self.schema.tasks, tf.unstack(logits, axis=1), strict=True))

    def logits(
        self,
        x: tf.Tensor,
        domain: tf.Tensor,
        rows: DomainRows,
        training: bool,
        valid: tf.Tensor | None,
    ) -> tf.Tensor:
        """Returns logits [N, T] of the rows' own domain heads; N working rows.

        Args:
          x: Embedded rows [N, I].
          domain: Domain index [N].
          rows: How the working rows are laid out by domain.
          training: As in `call`.
          valid: bool [N] or None.
        """
        raise TypeError(f"{type(self).__name__}.logits must be written by the method.")
