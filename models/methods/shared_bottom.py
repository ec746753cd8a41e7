"""Shared bottom: one network for all, a tower per (domain, task)."""

from typing import Literal

import tensorflow as tf
from pydantic import Field

from features.schema import ModelSchema
from models.layers.domain import DomainTowers
from models.layers.domain_model import DomainModel
from models.layers.domain_rows import DomainRows
from models.layers.mlp import MLP as MLPLayer
from models.method import Method, MethodConfig


class SharedBottomConfig(MethodConfig):
    """Settings of `shared_bottom`."""

    hidden_units: tuple[int, ...] = Field((256, 128), min_length=1)
    tower_units: tuple[int, ...] = (64,)
    norm: Literal["none", "layer", "batch"] = "layer"
    dropout: float = Field(0.0, ge=0, lt=1)
    embedding_stddev: float = Field(0.01, gt=0)


class SharedBottomModel(DomainModel):
    """s = MLP(x); logit of (d, t) = tower_{d,t}(s)."""

    def __init__(self, config: SharedBottomConfig, schema: ModelSchema):
        super().__init__(schema, embedding_stddev=config.embedding_stddev)
        self.bottom = MLPLayer(
            config.hidden_units, norm=config.norm, dropout=config.dropout
        )
        self.towers = DomainTowers(
            schema.num_domains,
            schema.num_tasks,
            config.tower_units,
            norm="layer" if config.norm == "layer" else "none",
            dropout=config.dropout,
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
        del domain
        shared = self.bottom(x, training=training, valid=valid)
        return self.towers(shared, rows, training=training)


class SharedBottom(Method):
    """A network shared by all heads, a tower of its own for each.

    Source: Caruana, Machine Learning 1997.
    Differs: heads are (domain, task) pairs, as in M3oE's -MDMT baselines.
    """

    Config = SharedBottomConfig

    def build_model(self) -> SharedBottomModel:
        """Returns the model."""
        return SharedBottomModel(self.config, self.schema)
