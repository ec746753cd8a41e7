"""PLE with one or more CGC levels: specific and shared experts, gated per head."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras
from pydantic import Field

from features.schema import ModelSchema
from models.layers import experts
from models.layers.domain import DomainTowers
from models.layers.domain_model import DomainModel
from models.layers.domain_rows import DomainRows
from models.method import Method, MethodConfig


class PLEConfig(MethodConfig):
    """Settings of `ple`; one entry of `levels` is CGC."""

    num_specific: int = Field(2, ge=0, description="experts of each head")
    num_shared: int = Field(2, ge=0)
    levels: tuple[tuple[int, ...], ...] = Field(((256, 128), (64,)), min_length=1)
    tower_units: tuple[int, ...] = (64,)
    norm: str = Field("layer", pattern="^(none|layer)$")
    dropout: float = Field(0.0, ge=0, lt=1)
    embedding_stddev: float = Field(0.01, gt=0)


class CGCLevel(keras.layers.Layer):
    """One level: every head mixes its own and the shared experts.

    Args:
      num_heads: H = D * T.
      num_specific: m_s, experts a head.
      num_shared: m_0.
      hidden_units: Widths of an expert.
      is_first: All inputs are the same [N, I], so experts share one product.
      norm: `none` or `layer`.
      dropout: Share of activations set to 0 in training.
    """

    def __init__(
        self,
        num_heads: int,
        num_specific: int,
        num_shared: int,
        hidden_units: Sequence[int],
        *,
        is_first: bool,
        norm: str,
        dropout: float,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.num_specific = num_specific
        self.num_shared = num_shared
        self.hidden_units = tuple(hidden_units)
        self.is_first = is_first
        self.norm = norm
        self.dropout = dropout
        count = num_heads * num_specific + num_shared
        self.experts = experts.StackedMLP(
            count, hidden_units, norm=norm, dropout=dropout
        )

    def call(
        self, specific: tf.Tensor, shared: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """Returns all experts' outputs [H m_s + m_0, N, O], specific ones first.

        Args:
          specific: [N, I] on the first level, else [H, N, I].
          shared: [N, I].
          training: Whether dropout is on.
        """
        if self.is_first:
            return self.experts(shared, training=training)
        inputs = [
            tf.repeat(specific, self.num_specific, axis=0),
            tf.repeat(shared[None], self.num_shared, axis=0),
        ]
        return self.experts(tf.concat(inputs, axis=0), training=training)

    def get_config(self) -> dict:
        """Returns the config."""
        return super().get_config() | {
            "num_heads": self.num_heads,
            "num_specific": self.num_specific,
            "num_shared": self.num_shared,
            "hidden_units": self.hidden_units,
            "is_first": self.is_first,
            "norm": self.norm,
            "dropout": self.dropout,
        }


class PLEModel(DomainModel):
    """Levels of CGC; the last one computes the gates of the row's own heads only."""

    def __init__(self, config: PLEConfig, schema: ModelSchema):
        super().__init__(schema, embedding_stddev=config.embedding_stddev)
        self.num_heads = schema.num_domains * schema.num_tasks
        self.num_specific, self.num_shared = config.num_specific, config.num_shared
        self.levels = [
            CGCLevel(
                self.num_heads,
                config.num_specific,
                config.num_shared,
                units,
                is_first=index == 0,
                norm=config.norm,
                dropout=config.dropout,
            )
            for index, units in enumerate(config.levels)
        ]
        own = config.num_specific + config.num_shared
        lower = len(config.levels) - 1
        # Gates of a level below the last: one per head, and one for the shared path.
        self.head_gates = [experts.Gates(1, self.num_heads, own) for _ in range(lower)]
        every = self.num_heads * config.num_specific + config.num_shared
        self.shared_gates = [experts.Gates(1, 1, every) for _ in range(lower)]
        self.gates = experts.Gates(schema.num_domains, schema.num_tasks, own)
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
        del valid
        specific = shared = x
        for index, level in enumerate(self.levels[:-1]):
            out = level(specific, shared, training=training)
            specific, shared = self._mix_all(index, specific, shared, out)
        out = self.levels[-1](specific, shared, training=training)
        own, gate_input = self._own(out, domain), shared
        if len(self.levels) > 1:
            # Each task's gate reads its own head's input.
            heads = self._own_heads(specific, domain)
            weights = tf.stack(
                [
                    self.gates(heads[:, t], rows)[:, t]
                    for t in range(self.schema.num_tasks)
                ],
                axis=1,
            )
        else:
            weights = self.gates(gate_input, rows)
        mixed = tf.einsum("ntk,ntkh->nth", tf.cast(weights, own.dtype), own)
        return self.towers(mixed, rows, training=training)

    def _mix_all(
        self, index: int, specific: tf.Tensor, shared: tf.Tensor, out: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the next level's inputs [H, N, O] and [N, O]."""
        one = DomainRows(tf.zeros(tf.shape(shared)[:1], tf.int32), 1)
        gates = self.head_gates[index]
        mixed = []
        for head in range(self.num_heads):
            side = specific if specific.shape.rank == 2 else specific[head]
            weights = tf.cast(gates(side, one)[:, head], out.dtype)
            first = head * self.num_specific
            own = tf.concat(
                [out[first : first + self.num_specific], self._shared(out)], axis=0
            )
            mixed.append(tf.einsum("nk,knh->nh", weights, own))
        every = tf.cast(self.shared_gates[index](shared, one)[:, 0], out.dtype)
        return tf.stack(mixed), tf.einsum("nk,knh->nh", every, out)

    def _shared(self, out: tf.Tensor) -> tf.Tensor:
        return out[self.num_heads * self.num_specific :]

    def _own(self, out: tf.Tensor, domain: tf.Tensor) -> tf.Tensor:
        """Returns [N, T, m_s + m_0, O]: the experts of each row's own heads."""
        tasks = self.schema.num_tasks
        shared = tf.transpose(self._shared(out), [1, 0, 2])[:, None]
        shared = tf.repeat(shared, tasks, axis=1)
        if not self.num_specific:
            return shared
        width = out.shape[-1]
        rows = tf.shape(out)[1]
        specific = tf.reshape(
            out[: self.num_heads * self.num_specific],
            [self.schema.num_domains, tasks * self.num_specific, rows, width],
        )
        own = tf.gather(
            tf.transpose(specific, [2, 0, 1, 3]), domain, axis=1, batch_dims=1
        )
        own = tf.reshape(own, [rows, tasks, self.num_specific, width])
        return tf.concat([own, shared], axis=2)

    def _own_heads(self, specific: tf.Tensor, domain: tf.Tensor) -> tf.Tensor:
        """Returns [N, T, I]: the inputs of each row's own heads."""
        tasks, width = self.schema.num_tasks, specific.shape[-1]
        by_domain = tf.reshape(
            specific, [self.schema.num_domains, tasks, tf.shape(specific)[1], width]
        )
        by_row = tf.transpose(by_domain, [2, 0, 1, 3])
        return tf.gather(by_row, domain, axis=1, batch_dims=1)


class PLE(Method):
    """Progressive layered extraction, heads = (domain, task).

    Source: Tang et al., RecSys 2020, Eq. (1)-(6).
    Differs: the last level's gates and towers are computed for the row's own domain
    only; its experts on all rows.
    """

    Config = PLEConfig

    def build_model(self) -> PLEModel:
        """Returns the model."""
        return PLEModel(self.config, self.schema)
