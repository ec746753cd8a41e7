"""STAR: a shared network times a network per domain, partitioned normalisation."""

import tensorflow as tf
import tf_keras as keras
from pydantic import Field

from features.schema import ModelSchema
from models.layers.domain_model import DomainModel
from models.layers.domain_rows import DomainRows
from models.layers.mlp import MLP as MLPLayer
from models.layers.partitioned_norm import PartitionedNorm
from models.layers.star import StarDense
from models.method import Method, MethodConfig


class STARConfig(MethodConfig):
    """Settings of `star`."""

    hidden_units: tuple[int, ...] = (256, 128, 64)
    auxiliary_units: tuple[int, ...] = Field((64,), description="(): no auxiliary net")
    partitioned_norm: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)
    embedding_stddev: float = Field(0.01, gt=0)


class STARModel(DomainModel):
    """Partitioned norm, star layers, and the auxiliary network's logit added."""

    def __init__(self, config: STARConfig, schema: ModelSchema):
        super().__init__(schema, embedding_stddev=config.embedding_stddev)
        num_domains = schema.num_domains
        self.norm = PartitionedNorm(num_domains) if config.partitioned_norm else None
        self.stars = [
            StarDense(num_domains, units, activation="relu")
            for units in config.hidden_units
        ]
        self.drops = [
            keras.layers.Dropout(config.dropout)
            for _ in config.hidden_units
            if config.dropout
        ]
        self.head = StarDense(num_domains, schema.num_tasks)
        self.auxiliary = (
            MLPLayer(config.auxiliary_units, output_units=schema.num_tasks)
            if config.auxiliary_units
            else None
        )

    def logits(
        self,
        x: tf.Tensor,
        domain: tf.Tensor,
        rows: DomainRows,
        training: bool,
        valid: tf.Tensor | None,
    ) -> tf.Tensor:
        """Returns logits [N, T]."""
        h = x
        if self.norm is not None:
            h = self.norm(h, domain, training=training, valid=valid)
        for index, layer in enumerate(self.stars):
            h = layer(h, rows)
            if self.drops:
                h = self.drops[index](h, training=training)
        logits = self.head(h, rows)
        if self.auxiliary is not None:
            logits = logits + self.auxiliary(x, training=training, valid=valid)
        return logits


class STAR(Method):
    """Star topology adaptive recommender.

    Source: Sheng et al., CIKM 2021, Eq. (2)-(8).
    Differs: batches mix domains, statistics are taken per domain; the auxiliary
    network reads the domain through the data set's domain indicator.
    """

    Config = STARConfig

    def build_model(self) -> STARModel:
        """Returns the model."""
        return STARModel(self.config, self.schema)
