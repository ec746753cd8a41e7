"""PLE with one or more CGC levels: specific and shared experts, gated per head."""

from collections.abc import Sequence
from typing import Any, Literal

import pydantic
import tensorflow as tf
import tf_keras as keras
from pydantic import Field

from features.schema import ModelSchema
from models.layers import experts
from models.layers.domain import DomainStack, DomainTowers
from models.layers.domain_model import DomainModel
from models.layers.domain_rows import DomainRows
from models.method import Method, MethodConfig


class PLEConfig(MethodConfig):
    """Settings of `ple`; one entry of `levels` is CGC.

    A head is a (domain, task) pair.  A level that is not the last computes the
    specific experts of all heads for every row, so its cost grows with D.
    """

    num_specific: int = Field(2, ge=0, description="m_s, experts of each head")
    num_shared: int = Field(2, ge=0, description="m_0, experts of all heads")
    levels: tuple[tuple[int, ...], ...] = Field(
        ((256, 128), (64,)), min_length=1, description="expert widths, level by level"
    )
    tower_units: tuple[int, ...] = (64,)
    norm: Literal["none", "layer"] = "layer"
    dropout: float = Field(0.0, ge=0, lt=1)
    embedding_stddev: float = Field(0.01, gt=0)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "PLEConfig":
        if not self.num_specific + self.num_shared:
            raise ValueError(
                "num_specific + num_shared must be at least 1; got 0. "
                "A head without experts has nothing to mix."
            )
        return self


class LowerLevel(keras.layers.Layer):
    """A CGC level that is not the last: next inputs of heads and of the shared path.

    Head h mixes its own and the shared experts; the shared path mixes all experts.

    Source: Tang et al., RecSys 2020 (PLE), Eq. (1)-(5).
    Differs: with `own_only` the inputs of the rows' own domain's heads are computed
    (all that a last level needs), not those of all heads.

    Args:
      num_domains: D.
      num_tasks: T.
      num_specific: m_s, experts a head.
      num_shared: m_0.
      hidden_units: Widths of an expert.
      own_only: Give the heads of each row's own domain only.
      norm: `none` or `layer`.
      dropout: Share of activations set to 0 in training.
    """

    def __init__(
        self,
        num_domains: int,
        num_tasks: int,
        *,
        num_specific: int,
        num_shared: int,
        hidden_units: Sequence[int],
        own_only: bool,
        norm: str,
        dropout: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_domains, self.num_tasks = num_domains, num_tasks
        self.num_specific, self.num_shared = num_specific, num_shared
        self.hidden_units = tuple(hidden_units)
        self.own_only = own_only
        self.norm, self.dropout = norm, dropout
        heads = num_domains * num_tasks
        count = heads * num_specific + num_shared
        self.experts = experts.StackedMLP(
            count, hidden_units, norm=norm, dropout=dropout
        )
        own = num_specific + num_shared
        groups = (num_domains, num_tasks) if own_only else (1, heads)
        self.head_gates = experts.Gates(*groups, own)
        # Without shared experts nothing reads the shared path.
        self.shared_gate = experts.Gates(1, 1, count) if num_shared else None

    def call(
        self,
        specific: tf.Tensor,
        shared: tf.Tensor,
        domain: tf.Tensor,
        rows: DomainRows,
        training: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns inputs of heads [N, G, O], G = T or D * T, and shared [N, O].

        Args:
          specific: [N, I], the same for all heads, or [N, D * T, I].
          shared: [N, I].
          domain: Domain index [N].
          rows: How the rows are laid out by domain.
          training: Whether dropout is on.
        """
        out = self.experts(self._inputs(specific, shared), training=training)
        weights = [self._head_weights(specific, domain, rows)]
        if self.shared_gate is not None:
            single = DomainRows(domain, 1)
            weights.append(self.shared_gate(shared, single))
        mixed = experts.mix_stacked(tf.concat(weights, axis=1), out)
        if self.shared_gate is None:
            return mixed, shared
        return mixed[:, :-1], mixed[:, -1]

    def _inputs(self, specific: tf.Tensor, shared: tf.Tensor) -> tf.Tensor:
        if specific.shape.rank == 2:
            return shared
        by_head = tf.transpose(specific, [1, 0, 2])
        parts = [tf.repeat(by_head, self.num_specific, axis=0)]
        if self.num_shared:
            parts.append(tf.repeat(shared[tf.newaxis], self.num_shared, axis=0))
        return tf.concat(parts, axis=0)

    def _head_weights(
        self, specific: tf.Tensor, domain: tf.Tensor, rows: DomainRows
    ) -> tf.Tensor:
        """Returns gates spread over all experts: [N, G, D T m_s + m_0]."""
        heads = self.num_domains * self.num_tasks
        if self.own_only:
            side = own_heads(specific, domain, self.num_domains)
            gates = self.head_gates(side, rows)
            # Task t of domain d owns the experts of head d * T + t.
            member = tf.one_hot(
                domain[:, tf.newaxis] * self.num_tasks + tf.range(self.num_tasks),
                heads,
                dtype=gates.dtype,
            )
        else:
            gates = self.head_gates(specific, DomainRows(domain, 1))
            member = tf.eye(heads, dtype=gates.dtype)[tf.newaxis]
        own, common = tf.split(gates, [self.num_specific, self.num_shared], axis=-1)
        spread = member[..., tf.newaxis] * own[:, :, tf.newaxis]
        count = gates.shape[1]
        spread = tf.reshape(spread, [-1, count, heads * self.num_specific])
        return tf.concat([spread, common], axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "num_tasks": self.num_tasks,
            "num_specific": self.num_specific,
            "num_shared": self.num_shared,
            "hidden_units": self.hidden_units,
            "own_only": self.own_only,
            "norm": self.norm,
            "dropout": self.dropout,
        }


def own_heads(specific: tf.Tensor, domain: tf.Tensor, num_domains: int) -> tf.Tensor:
    """Returns [N, T, I] of [N, D * T, I]; an input shared by all heads as it is."""
    if specific.shape.rank == 2 or num_domains == 1:
        return specific
    heads, width = specific.shape[1:]
    by_domain = tf.reshape(specific, [-1, num_domains, heads // num_domains, width])
    return tf.gather(by_domain, domain, axis=1, batch_dims=1)


class PLEModel(DomainModel):
    """Lower levels, then a last one of the rows' own heads' experts, then towers."""

    def __init__(self, config: PLEConfig, schema: ModelSchema):
        super().__init__(schema, embedding_stddev=config.embedding_stddev)
        num_domains, num_tasks = schema.num_domains, schema.num_tasks
        self.num_specific, self.num_shared = config.num_specific, config.num_shared
        *lower, last = config.levels
        kind: dict[str, Any] = {"norm": config.norm, "dropout": config.dropout}
        self.lower = [
            LowerLevel(
                num_domains,
                num_tasks,
                num_specific=config.num_specific,
                num_shared=config.num_shared,
                hidden_units=units,
                own_only=index == len(lower) - 1,
                **kind,
            )
            for index, units in enumerate(lower)
        ]
        self.gates = experts.Gates(
            num_domains, num_tasks, self.num_specific + self.num_shared
        )
        if self.num_specific:
            self.own_experts = DomainStack(
                num_domains, num_tasks * self.num_specific, last, **kind
            )
        if self.num_shared:
            self.shared_experts = experts.StackedMLP(self.num_shared, last, **kind)
        self.towers = DomainTowers(num_domains, num_tasks, config.tower_units, **kind)

    def logits(
        self,
        x: tf.Tensor,
        domain: tf.Tensor,
        rows: DomainRows,
        training: bool,
        valid: tf.Tensor | None,
    ) -> tf.Tensor:
        """Returns logits [N, T]."""
        del valid
        specific = shared = x
        for level in self.lower:
            specific, shared = level(specific, shared, domain, rows, training=training)
        gates = self.gates(specific, rows)
        own, common = tf.split(gates, [self.num_specific, self.num_shared], axis=-1)
        parts = []
        if self.num_specific:
            out = self.own_experts(specific, rows, training=training)
            shape = [-1, self.schema.num_tasks, self.num_specific, out.shape[-1]]
            weighted = tf.reshape(out, shape) * tf.cast(own, out.dtype)[..., tf.newaxis]
            parts.append(tf.reduce_sum(weighted, axis=2))
        if self.num_shared:
            out = self.shared_experts(shared, training=training)
            parts.append(experts.mix_stacked(common, out))
        return self.towers(tf.add_n(parts), rows, training=training)


class PLE(Method):
    """Progressive layered extraction, heads = (domain, task).

    Source: Tang et al., RecSys 2020, Eq. (1)-(6).
    Differs: the last level computes the experts, gates and towers of the row's own
    domain only, which changes no score.
    """

    Config = PLEConfig

    def build_model(self) -> PLEModel:
        """Returns the model."""
        return PLEModel(self.config, self.schema)
