"""M3oE: shared, domain and task experts with two levels of learnt fusion."""

from typing import Literal

import tensorflow as tf
import tf_keras as keras
from pydantic import Field

from features.schema import ModelSchema
from models.layers import experts
from models.layers.domain import DomainTowers
from models.layers.domain_model import DomainModel
from models.layers.domain_rows import DomainRows
from models.layers.initialisers import Stacked
from models.layers.mlp import DenseBlock
from models.method import Batches, Method, MethodConfig, Metrics, PeriodicEvent

FUSION = "fusion"


class M3oEConfig(MethodConfig):
    """Settings of `m3oe`.

    `fusion_update`: `joint` trains the fusion weights in every step (what gives the
    authors' numbers), `alternate` in a step of their own every `fusion_every` steps
    (the paper), `fixed` never.  `fusion_initial` is the raw value: sigmoid(1) = 0.731.
    """

    loss: Literal["row_mean", "cell_mean"] = "cell_mean"
    star_units: int = Field(512, ge=1)
    hidden_units: int = Field(256, ge=1)
    expert_units: int = Field(64, ge=1)
    tower_units: tuple[int, ...] = (64,)
    num_shared_experts: int = Field(4, ge=1)
    fusion_update: Literal["joint", "alternate", "fixed"] = "joint"
    fusion_every: int = Field(10, ge=1)
    fusion_granularity: Literal["scalar", "per_domain_task"] = "scalar"
    fusion_initial: float = 1.0
    use_domain_experts: bool = True
    use_task_experts: bool = True
    gate_stop_gradient: bool = True
    star_initializer: Literal["xavier", "ones"] = "xavier"
    paper_strict: bool = Field(
        False, description="W_c linear, towers without normalisation"
    )
    embedding_stddev: float = Field(1e-4, gt=0)


class DomainRepresentation(keras.layers.Layer):
    """h = W_c f_DR(x) + f_DA(x), f_DR(x) = x (W_d * W_sh) + b_d + b_sh.

    Args:
      num_domains: D.
      star_units: Width of f_DR.
      units: Width of h.
      norm: Normalisation of W_c and f_DA.
      activation: Activation of W_c; f_DA always has ReLU.
      star_initializer: Start of W_d: `xavier` as W_sh, or `ones`.
    """

    def __init__(
        self,
        num_domains: int,
        star_units: int,
        units: int,
        *,
        norm: str,
        activation: str | None,
        star_initializer: str,
    ):
        super().__init__()
        self.num_domains, self.star_units, self.units = num_domains, star_units, units
        self.norm, self.activation = norm, activation
        self.star_initializer = star_initializer
        self.combine = DenseBlock(units, norm=norm, activation=activation)
        self.adapt = DenseBlock(units, norm="layer")

    def build(self, input_shape: tf.TensorShape) -> None:
        """Creates the weights."""
        shape = [int(input_shape[-1]), self.star_units]
        own = "ones" if self.star_initializer == "ones" else Stacked("glorot_uniform")
        self.kernel = self.add_weight(
            "kernel", shape, initializer=keras.initializers.GlorotUniform()
        )
        self.bias = self.add_weight("bias", shape[1:], initializer="zeros")
        self.own_kernel = self.add_weight(
            "own_kernel", [self.num_domains, *shape], initializer=own
        )
        self.own_bias = self.add_weight(
            "own_bias", [self.num_domains, self.star_units], initializer="zeros"
        )
        super().build(input_shape)

    def call(self, x: tf.Tensor, rows: DomainRows) -> tf.Tensor:
        """Returns h [N, units] for x [N, I]."""
        # Folded once a step: D products of kernels, not of rows.
        kernels = self.kernel[None] * self.own_kernel
        bias = self.bias[None] + self.own_bias
        star = rows.section(lambda z: rows.add(rows.matmul(z, kernels), bias), x)
        return self.combine(star) + self.adapt(x)

    def get_config(self) -> dict:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "star_units": self.star_units,
            "units": self.units,
            "norm": self.norm,
            "activation": self.activation,
            "star_initializer": self.star_initializer,
        }


class Fusion(keras.layers.Layer):
    """The fusion weights alpha_d, alpha_t, beta_d, beta_t, each sigmoid(raw).

    Args:
      num_domains: D.
      num_tasks: T.
      initial: Raw start value.
      per_head: One weight per domain and per task instead of four scalars.
    """

    NAMES = ("alpha_domain", "alpha_task", "beta_domain", "beta_task")

    def __init__(
        self, num_domains: int, num_tasks: int, *, initial: float, per_head: bool
    ):
        super().__init__()
        self.num_domains, self.num_tasks = num_domains, num_tasks
        self.initial, self.per_head = initial, per_head
        start = keras.initializers.Constant(initial)
        self.raw = {}
        for name in self.NAMES:
            count = num_domains if name.endswith("domain") else num_tasks
            shape = [count if per_head else 1]
            self.raw[name] = self.add_weight(f"fusion_{name}", shape, initializer=start)

    def call(self, domain: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns weights over domain experts [N, 1, D] and task experts [1, T, T].

        Row d of the domain weights is alpha_d (beta_d at d, (1 - beta_d) / (D - 1)
        elsewhere), so one product with all experts is the paper's Eq. (5)-(7).
        """
        domains = tf.gather(self._table("domain", self.num_domains), domain)
        return domains[:, None], self._table("task", self.num_tasks)[None]

    def _table(self, kind: str, count: int) -> tf.Tensor:
        """[count, count] float32: alpha times the balance over experts."""
        alpha = tf.sigmoid(self.raw[f"alpha_{kind}"])[:, None]
        if count == 1:  # only the own expert there is
            return alpha * tf.ones([1, 1])
        beta = tf.sigmoid(self.raw[f"beta_{kind}"])[:, None]
        others = (1 - beta) / (count - 1)
        return alpha * (others + (beta - others) * tf.eye(count))

    def values(self) -> dict[str, float]:
        """Returns the weights by name, means where there is one per head."""
        return {
            f"fusion/{name}": float(tf.reduce_mean(tf.sigmoid(raw)))
            for name, raw in self.raw.items()
        }

    def get_config(self) -> dict:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "num_tasks": self.num_tasks,
            "initial": self.initial,
            "per_head": self.per_head,
        }


class M3oEModel(DomainModel):
    """h_{d,t} = S_{d,t} + alpha_d Dom_d + alpha_t Tsk_t, then a tower per (d, t)."""

    def __init__(self, config: M3oEConfig, schema: ModelSchema):
        super().__init__(schema, embedding_stddev=config.embedding_stddev)
        self.config = config
        num_domains, num_tasks = schema.num_domains, schema.num_tasks
        strict = config.paper_strict
        self.representation = DomainRepresentation(
            num_domains,
            config.star_units,
            config.hidden_units,
            norm="none" if strict else "layer",
            activation=None if strict else "relu",
            star_initializer=config.star_initializer,
        )
        # Shared, domain and task experts in one product: [K, 256, 64].
        self.counts = (
            config.num_shared_experts,
            num_domains if config.use_domain_experts else 0,
            num_tasks if config.use_task_experts else 0,
        )
        self.experts = experts.StackedMLP(
            sum(self.counts), [config.expert_units], norm="layer", rows_first=True
        )
        self.gates = experts.Gates(num_domains, num_tasks, config.num_shared_experts)
        self.fusion = Fusion(
            num_domains,
            num_tasks,
            initial=config.fusion_initial,
            per_head=config.fusion_granularity == "per_domain_task",
        )
        self.towers = DomainTowers(
            num_domains,
            num_tasks,
            config.tower_units,
            norm="none" if strict else "layer",
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
        h = self.representation(x, rows)
        outputs = self.experts(h)
        side = tf.stop_gradient(h) if self.config.gate_stop_gradient else h
        weights = self.mixture(self.gates(side, rows), domain)
        fused = experts.mix(weights, outputs)
        return self.towers(fused, rows, training=training)

    def mixture(self, gates: tf.Tensor, domain: tf.Tensor) -> tf.Tensor:
        """Returns the weight of every expert in h_{d,t}: [N, T, K] float32.

        Args:
          gates: [N, T, shared experts].
          domain: Domain index [N].
        """
        shape = tf.shape(gates)[:2]
        own_domain, own_task = self.fusion(domain)
        _, domains, tasks = self.counts
        parts = [gates]
        if domains:
            parts.append(
                tf.broadcast_to(own_domain, tf.concat([shape, [domains]], axis=0))
            )
        if tasks:
            parts.append(tf.broadcast_to(own_task, tf.concat([shape, [tasks]], axis=0)))
        return tf.concat(parts, axis=-1)


class M3oE(Method):
    """Multi-domain multi-task mixture-of-experts.

    Source: Zhang et al., SIGIR 2024 (arXiv 2404.18465), Eq. (1)-(9).
    Differs: alpha_d multiplies the domain module and alpha_t the task module (text
    and authors' code; Eq. (7) swaps them); W_c and towers have layer normalisation
    (authors' code; `paper_strict` leaves it out); the fusion weights are trained
    jointly by default (what the authors' code does; `fusion_update=alternate` is the
    paper's, every `fusion_every` steps instead of once an epoch); the loss is the sum
    over (domain, task) cells of cell means, an absent cell counting 0; L2 is on dense
    weights only; rows meet only their own domain's slot, gates and towers.
    """

    Config = M3oEConfig

    def build_model(self) -> M3oEModel:
        """Returns the model."""
        return M3oEModel(self.config, self.schema)

    def variable_groups(self) -> dict[str, list[tf.Variable]]:
        """Returns groups `embedding`, `dense` and `fusion`."""
        groups = super().variable_groups()
        fusion = {v.ref() for v in self._fusion_variables()}
        groups["dense"] = [v for v in groups["dense"] if v.ref() not in fusion]
        groups[FUSION] = self._fusion_variables()
        return groups

    def _fusion_variables(self) -> list[tf.Variable]:
        return list(self.model.fusion.raw.values())

    def trained_groups(self) -> set[str]:
        """Returns the groups that a training step updates."""
        groups = set(self.optimizers)
        return groups if self.config.fusion_update == "joint" else groups - {FUSION}

    def train_step(self, batches: Batches) -> Metrics:
        """Updates everything, or (alternate, fixed) everything but the fusion."""
        return self._step(batches, self.trained_groups())

    def _step(self, batches: Batches, groups: set[str]) -> Metrics:
        with tf.GradientTape() as tape:
            loss, metrics = self.loss(batches)
            scaled = self.scale_loss(loss)
        chosen = {k: v for k, v in self.optimizers.items() if k in groups}
        self.update(tape, scaled, chosen)
        return metrics

    def periodic_events(self) -> list[PeriodicEvent]:
        """Returns the fusion step of `alternate`."""
        if self.config.fusion_update != "alternate":
            return []
        step = tf.function(lambda batches: self._step(batches, {FUSION}))
        return [
            PeriodicEvent(
                "fusion_step", self.config.fusion_every, step, takes_batch=True
            )
        ]

    def scalars(self) -> dict[str, float]:
        """Returns the fusion weights."""
        return self.model.fusion.values()
