"""`TargetModel`: embeddings, attention over each sequence, one network for all rows."""

import functools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import tensorflow as tf
import tf_keras as keras
from pydantic import Field

from features.config import Config
from features.schema import FeatureInfo, ModelSchema
from features.spec import PAD_ID
from models.layers.local_activation import LocalActivation
from models.layers.mlp import MLP
from models.layers.sequence_attention import ShortLongAttention
from models.layers.sequence_embeddings import SequenceEmbeddings

SequenceLayer = Callable[[FeatureInfo], keras.layers.Layer]


class TargetModelSettings(Config):
    """What every `TargetModel` is made of."""

    hidden_units: tuple[int, ...] = Field((1024, 512, 256), min_length=1)
    norm: Literal["none", "layer", "batch"] = "layer"
    dropout: float = Field(0.0, ge=0, lt=1)
    embedding_stddev: float = Field(0.01, gt=0)
    domain_feature: bool = Field(True, description="the domain id is an input")


class HashedAttentionSettings(Config):
    """Attention of ETA; see `ShortLongAttention`."""

    num_heads: int = Field(2, ge=1)
    head_units: int = Field(32, ge=1)
    short_length: int = Field(50, ge=1, description="latest items of the short part")
    top_k: int = Field(50, ge=1, description="items the long part attends to")
    hash_bits: int = Field(32, ge=1, le=512)

    def sequence_layer(self, info: FeatureInfo) -> keras.layers.Layer:
        """Returns the layer of one sequence."""
        return ShortLongAttention(
            info.length,
            self.num_heads,
            self.head_units,
            short_length=self.short_length,
            top_k=self.top_k,
            num_bits=self.hash_bits,
        )


class LocalActivationSettings(Config):
    """Attention of DIN; see `LocalActivation`."""

    attention_units: tuple[int, ...] = Field((80, 40), min_length=1)
    attention_activation: Literal["sigmoid", "relu"] = "sigmoid"
    attention_softmax: bool = False

    def activation_layer(self, info: FeatureInfo) -> keras.layers.Layer:
        """Returns the layer of one sequence."""
        del info  # the same for any length
        return LocalActivation(
            self.attention_units,
            activation=self.attention_activation,
            softmax=self.attention_softmax,
        )


class Representation(NamedTuple):
    """What a row is before the network.

    Attributes:
      fields: [B, I], all fields but the sequences.
      sequence: [B, S], the sequences' attention, [B, 0] without any.
      has_items: bool [B], whether any sequence of the row has an item.
      by_sequence: The columns of `sequence` by feature name.
    """

    fields: tf.Tensor
    sequence: tf.Tensor
    has_items: tf.Tensor
    by_sequence: dict[str, tf.Tensor]


class TargetModel(keras.Model):
    """logits = MLP([fields, attention of the row's item over each sequence]).

    Each sequence is compared with the field that it is a history of.  In a schema
    without sequences there is nothing to attend to: an MLP over the fields remains.

    Args:
      schema: Inputs, domains and tasks; one network serves all domains.
      settings: Widths and so on.
      sequence_layer: Makes the layer of a sequence, called with (target [B, E],
        ids [B, L], lookup).
    """

    def __init__(
        self,
        schema: ModelSchema,
        settings: TargetModelSettings,
        sequence_layer: SequenceLayer,
    ):
        super().__init__()
        self.schema = schema
        fields = [
            f for f in schema.features if settings.domain_feature or f.role != "domain"
        ]
        self.embeddings = SequenceEmbeddings(fields, stddev=settings.embedding_stddev)
        self.targets = {
            f.name: self.embeddings.target_of(f.name) for f in self.embeddings.sequences
        }
        self.attentions = [sequence_layer(f) for f in self.embeddings.sequences]
        self.network = MLP(
            settings.hidden_units,
            output_units=schema.num_tasks,
            norm=settings.norm,
            dropout=settings.dropout,
        )

    def call(
        self, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Returns float32 logits [B] by task.

        Args:
          features: As `Batch.features`; `valid` bool [B], if there, says which rows
            batch statistics may count.
          training: Whether dropout and batch statistics are on.
        """
        parts = self.represent(features)
        logits = self.upper(
            parts.fields, parts.sequence, training, features.get("valid")
        )
        return dict(zip(self.schema.tasks, tf.unstack(logits, axis=1), strict=True))

    def represent(self, features: Mapping[str, tf.Tensor]) -> Representation:
        """Returns the layers below the network."""
        fields, columns = self.embeddings(features), self.embeddings.columns
        pooled = {}
        has_items = tf.zeros_like(features["domain"], tf.bool)
        sequences = self.embeddings.sequences
        for info, attention in zip(sequences, self.attentions, strict=True):
            start, end = columns[self.targets[info.name]]
            ids = features[info.name]
            lookup = functools.partial(self.embeddings.lookup, info.name)
            pooled[info.name] = attention(fields[:, start:end], ids, lookup)
            has_items |= tf.reduce_any(ids != PAD_ID, axis=1)
        parts = [fields[:, :0], *pooled.values()]
        return Representation(fields, tf.concat(parts, axis=-1), has_items, pooled)

    def upper(
        self,
        fields: tf.Tensor,
        sequence: tf.Tensor,
        training: bool = False,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns logits [B, T] float32 of [B, I] and [B, S]."""
        x = tf.concat([fields, sequence], axis=-1)
        return tf.cast(self.network(x, training=training, valid=valid), tf.float32)
