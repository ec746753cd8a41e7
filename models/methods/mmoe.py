"""MMoE: shared experts, a gate and a tower per (domain, task)."""

import tensorflow as tf
from pydantic import Field

from features.schema import ModelSchema
from models.layers import experts
from models.layers.domain import DomainTowers
from models.layers.domain_model import DomainModel
from models.layers.domain_rows import DomainRows
from models.method import Method, MethodConfig


class MMoEConfig(MethodConfig):
    """Settings of `mmoe`."""

    num_experts: int = Field(4, ge=1)
    expert_units: tuple[int, ...] = Field((256, 128, 64), min_length=1)
    tower_units: tuple[int, ...] = (64,)
    norm: str = Field("layer", pattern="^(none|layer)$")
    dropout: float = Field(0.0, ge=0, lt=1)
    embedding_stddev: float = Field(0.01, gt=0)


class MMoEModel(DomainModel):
    """s_h = sum_i softmax(W_h x)_i E_i(x) for the T heads h of the row's domain."""

    def __init__(self, config: MMoEConfig, schema: ModelSchema):
        super().__init__(schema, embedding_stddev=config.embedding_stddev)
        self.experts = experts.StackedMLP(
            config.num_experts,
            config.expert_units,
            norm=config.norm,
            dropout=config.dropout,
        )
        self.gates = experts.Gates(
            schema.num_domains, schema.num_tasks, config.num_experts
        )
        self.towers = DomainTowers(
            schema.num_domains,
            schema.num_tasks,
            config.tower_units,
            norm=config.norm,
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
        del domain, valid
        stacked = self.experts(x, training=training)
        mixed = experts.mix_stacked(self.gates(x, rows), stacked)
        return self.towers(mixed, rows, training=training)


class MMoE(Method):
    """Multi-gate mixture of experts, heads = (domain, task).

    Source: Ma et al., KDD 2018, Eq. (6)-(7).
    Differs: only the gates and towers of the row's own domain are computed.
    """

    Config = MMoEConfig

    def build_model(self) -> MMoEModel:
        """Returns the model."""
        return MMoEModel(self.config, self.schema)
