"""MLP or DCN-v2 on all rows; form `mtl` is one a domain, `isolated` one a cell."""

from typing import Literal

import tensorflow as tf
from pydantic import Field

from features.schema import ModelSchema
from models.layers.domain_model import DomainModel
from models.layers.domain_rows import DomainRows
from models.layers.mlp import MLP as MLPLayer
from models.method import Method, MethodConfig


class MLPConfig(MethodConfig):
    """Settings of `mlp`."""

    hidden_units: tuple[int, ...] = (256, 128, 64)
    norm: Literal["none", "layer", "batch"] = "layer"
    dropout: float = Field(0.0, ge=0, lt=1)
    cross_layers: int = Field(0, ge=0, description="DCN-v2 layers before the MLP")
    cross_rank: int | None = Field(None, ge=1, description="of their kernels; full")
    embedding_stddev: float = Field(0.01, gt=0)
    domain_feature: bool = Field(True, description="the domain id is an input")


class MLPModel(DomainModel):
    """Embeddings, blocks, one linear output per task; domains share everything."""

    def __init__(self, config: MLPConfig, schema: ModelSchema):
        super().__init__(
            schema,
            embedding_stddev=config.embedding_stddev,
            use_domain_feature=config.domain_feature,
        )
        self.network = MLPLayer(
            config.hidden_units,
            output_units=schema.num_tasks,
            norm=config.norm,
            dropout=config.dropout,
            cross_layers=config.cross_layers,
            cross_rank=config.cross_rank,
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
        del domain, rows
        return self.network(x, training=training, valid=valid)


class MLP(Method):
    """One network for all domains ("mixed").

    Source: Covington et al., RecSys 2016 (embedding and MLP); with `cross_layers`
    Wang et al., WWW 2021 (DCN-v2, stacked).
    Differs: layer normalisation in the blocks, as in the M3oE authors' baseline.
    """

    Config = MLPConfig

    def build_model(self) -> MLPModel:
        """Returns the model."""
        return MLPModel(self.config, self.schema)
