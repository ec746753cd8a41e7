"""`SoftPartitionModel`: embeddings, a classifier of domains, a `SoftPartition`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf
import tf_keras as keras

from features.schema import ModelSchema
from models.layers.domain_model import DomainModel
from models.layers.domain_rows import DomainRows
from models.layers.embeddings import FieldEmbeddings
from models.layers.mlp import MLP
from models.layers.pseudo_domains import DomainClasses
from models.layers.soft_partition import SoftPartition


class Seen(NamedTuple):
    """A batch as the model works on it, N working rows.

    Attributes:
      rows: Their layout by domain.
      domain: Domain index [N].
      valid: bool [N] or None.
      x: r_e, all fields but the domain indicator, [N, I].
      context: Those with role context, [N, C], or None.
      features: Inputs by name, in working order.
    """

    rows: DomainRows
    domain: tf.Tensor
    valid: tf.Tensor | None
    x: tf.Tensor
    context: tf.Tensor | None
    features: Mapping[str, tf.Tensor]


class SoftPartitionModel(DomainModel):
    """Looks at rows in their own domain and, for training, in other ones too.

    The domain indicator enters neither experts nor classifier: it chooses the specific
    expert, and its embedding feeds gates and scales.

    Source: Liu et al., 2025 (SSCTL), Section 3.1 and Eq. (6).
    Differs: no gradient flows between the classifier and the rest, either way.

    Args:
      schema: Inputs, domains and tasks.
      network: What makes logits of embedded rows.
      classes: What the classifier tells apart; None = no classifier.
      classifier_units: Its hidden widths.
      own_embeddings: Whether the classifier has embeddings of its own, which it
        trains; otherwise it reads the model's.
      domain_width: Width of domain embeddings, where the schema has no indicator.
      embedding_stddev: Standard deviation of initial embeddings.
    """

    def __init__(
        self,
        schema: ModelSchema,
        network: SoftPartition,
        classes: DomainClasses | None,
        *,
        classifier_units: Sequence[int],
        own_embeddings: bool,
        domain_width: int,
        embedding_stddev: float,
    ):
        super().__init__(
            schema, embedding_stddev=embedding_stddev, use_domain_feature=False
        )
        self.network, self.classes = network, classes
        widths = [f.width for f in schema.features if f.role == "domain"]
        self.domain_table = keras.layers.Embedding(
            schema.num_domains,
            (*widths, domain_width)[0],
            embeddings_initializer=keras.initializers.RandomNormal(
                stddev=embedding_stddev
            ),
            name="embedding_table_domain",
        )
        self.classifier: MLP | None = None
        self.classifier_embeddings: FieldEmbeddings | None = None
        if classes is not None:
            self.classifier = MLP(
                classifier_units, output_units=classes.count, norm="layer"
            )
        if classes is not None and own_embeddings:
            self.classifier_embeddings = FieldEmbeddings(
                self.embeddings.features, stddev=embedding_stddev
            )

    def call(
        self, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Returns float32 logits [B] by task; see `DomainModel.call`."""
        seen = self.embed(features)
        class_logits = None
        # Built in any case; without scales nothing that serves reads it.
        if self.classifier is not None and (
            self.network.is_scaled or not self.classifier.built
        ):
            class_logits = self.class_logits(seen)
        (logits,) = self.look(seen, class_logits, training=training)
        logits = seen.rows.leave(logits)
        return dict(zip(self.schema.tasks, tf.unstack(logits, axis=1), strict=True))

    def embed(self, features: Mapping[str, tf.Tensor]) -> Seen:
        """Looks everything up once and lays the rows out; see `DomainModel.call`."""
        rows = DomainRows(features["domain"], self.schema.num_domains)
        entered = {k: rows.enter(v) for k, v in features.items() if k != "valid"}
        if not self.embeddings.built:
            self.embeddings(entered)
        fields = self.embeddings.by_field(entered)
        names = [f.name for f in self.schema.features if f.role == "context"]
        return Seen(
            rows,
            entered["domain"],
            rows.valid_rows(features.get("valid")),
            tf.concat(list(fields.values()), axis=-1),
            tf.concat([fields[n] for n in names], axis=-1) if names else None,
            entered,
        )

    def class_logits(self, seen: Seen) -> tf.Tensor:
        """Returns the classifier's logits [N, M] float32."""
        if self.classifier is None:
            raise TypeError("SoftPartitionModel.class_logits needs a classifier.")
        if self.classifier_embeddings is None:
            # Else the domain would leak into what experts read.
            x = tf.stop_gradient(seen.x)
        else:
            x = self.classifier_embeddings(seen.features)
        return tf.cast(self.classifier(x), tf.float32)

    def look(
        self,
        seen: Seen,
        class_logits: tf.Tensor | None,
        others: Sequence[tf.Tensor] = (),
        *,
        training: bool,
        specific_only: bool = False,
    ) -> list[tf.Tensor]:
        """Returns logits [N, T] in the rows' own domain and in each of `others`.

        Args:
          seen: The rows.
          class_logits: [N, M], read where there are scales.
          others: Other domains to look at the rows in, int32 [N].
          training: As in `call`.
          specific_only: See `SoftPartition.call`.
        """
        count = self.schema.num_domains
        vectors = tf.cast(self.domain_table(tf.range(count)), tf.float32)
        rows = [seen.rows]
        for domain in others:
            layout = DomainRows(domain, count)
            layout.early = False  # these rows keep the order of the first
            rows.append(layout)
        return self.network(
            seen.x,
            seen.context,
            vectors,
            self._soft(vectors, class_logits),
            domains=[seen.domain, *others],
            rows=rows,
            training=training,
            valid=seen.valid,
            specific_only=specific_only,
        )

    def _soft(
        self, vectors: tf.Tensor, class_logits: tf.Tensor | None
    ) -> tf.Tensor | None:
        """Returns e_w [N, E]; a dominant domain's embedding has no part in it."""
        if not self.network.is_scaled or self.classes is None or class_logits is None:
            return None
        # The tasks' loss must not turn the classifier into something else.
        probs = tf.stop_gradient(tf.nn.softmax(class_logits))
        return tf.matmul(probs, tf.gather(vectors, self.classes.domain_ids))
