"""M3oE: shared, domain and task experts with two levels of learnt fusion."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pydantic
import tensorflow as tf
import tf_keras as keras
from pydantic import Field

from features.schema import ModelSchema
from models import method
from models.layers import experts
from models.layers.domain import DomainTowers
from models.layers.domain_model import DomainModel
from models.layers.domain_rows import DomainRows
from models.layers.fusion import FixedFusion, Fusion
from models.layers.mlp import MLP, DenseBlock
from models.layers.sample import SampledDomains
from models.layers.star import StarDense
from models.method import (
    MAIN,
    Batches,
    Method,
    MethodConfig,
    Metrics,
    PeriodicEvent,
    Stream,
)
from models.optimizers.groups import GroupConfig, OptimizerConfig
from models.training import durations
from tfrecords_tools.batch import Batch

FUSION, HELD_OUT = "fusion", "held_out"


class M3oEConfig(MethodConfig):
    """Settings of `m3oe`.

    `fusion_ablation`: `concat` and `gated` are variants of the paper's Table 3.
    `fusion_update`: `joint` trains the fusion weights in every step (what the
    authors' code does), `alternate` in a step of their own on another training batch
    every `fusion_every` (the paper), `fixed` never.  With `fusion_holdout` that
    batch is of training rows that no other step sees (one device only).  The optimiser
    group of the fusion weights is `fusion`; without it in `optimizer.groups` they
    follow `dense`.
    """

    optimizer: OptimizerConfig = OptimizerConfig(
        dense=GroupConfig(l2=1e-5), groups={FUSION: GroupConfig(learning_rate=1e-2)}
    )
    loss: Literal["row_mean", "cell_mean"] = "cell_mean"
    star_units: int = Field(512, ge=1, description="width of f_DR")
    hidden_units: int = Field(256, ge=1, description="width of h")
    adapter_units: tuple[int, ...] = Field(
        (), description="hidden layers of f_DA before its last one"
    )
    expert_units: int = Field(64, ge=1)
    tower_units: tuple[int, ...] = (64,)
    num_shared_experts: int = Field(4, ge=1)
    # Off has to be falsy: runs begun before this key are then found again.
    fusion_ablation: Literal["", "concat", "gated"] = ""
    fusion_update: Literal["joint", "alternate", "fixed"] = "joint"
    fusion_every: int | str = Field(
        10, description="steps, or text: '1 epochs'; read by `alternate`"
    )
    fusion_holdout: float = Field(
        0.0, ge=0, lt=1, description="share of rows for fusion steps alone; `alternate`"
    )
    fusion_granularity: Literal["scalar", "per_domain_task"] = "scalar"
    fusion_initial: float = Field(
        1.0, description="before the sigmoid: 1 gives 0.731, 0 gives 0.5"
    )
    use_domain_experts: bool = True
    use_task_experts: bool = True
    foreign_experts: int = Field(
        0, ge=0, description="domain experts a training step draws; 0: all of them"
    )
    gate_stop_gradient: bool = True
    star_initializer: Literal["xavier", "ones"] = "xavier"
    paper_strict: bool = Field(
        False, description="W_c linear, towers without normalisation"
    )
    embedding_stddev: float = Field(1e-4, gt=0)

    @pydantic.field_validator("fusion_every")
    @classmethod
    def _duration(cls, value: int | str) -> int | str:
        durations.parse_duration(value)
        return value

    @pydantic.model_validator(mode="after")
    def _check(self) -> "M3oEConfig":
        if self.fusion_holdout and self.fusion_update != "alternate":
            raise ValueError(
                "fusion_holdout must be 0 without fusion steps of their own; got "
                f"{self.fusion_holdout} with fusion_update={self.fusion_update}. Set "
                "fusion_update: alternate."
            )
        if self.fusion_ablation == "gated" and self.fusion_update != "joint":
            raise ValueError(
                "fusion_update must be joint with fusion_ablation=gated, which has no "
                f"fusion weights; got {self.fusion_update}. Remove it."
            )
        if self.foreign_experts == 1:
            raise ValueError(
                "foreign_experts must be 0 (all) or at least 2: one might be a row's "
                "own and leave it none; got 1. Set it to 2."
            )
        if self.foreign_experts and (
            self.fusion_ablation or not self.use_domain_experts
        ):
            raise ValueError(
                "foreign_experts must be 0 with fusion_ablation and without domain "
                f"experts; got {self.foreign_experts}. Remove it."
            )
        return self


class DomainRepresentation(keras.layers.Layer):
    """h = W_c f_DR(x) + b_c + f_DA(x), f_DR(x) = x (W_d * W_sh) + b_d + b_sh.

    Nothing stands between f_DR and W_c, so (x A) W_c is computed as x (A W_c) where
    the batch is large: the same numbers up to rounding, for less than half the work.

    Source: Zhang et al., SIGIR 2024 (M3oE), Eq. (1)-(3).
    Differs: W_c is followed by LayerNorm and ReLU, as in the authors' code (not with
    `strict`).

    Args:
      num_domains: D.
      star_units: Width of f_DR.
      units: Width of h.
      adapter_units: Hidden widths of f_DA.
      strict: W_c stays linear.
      star_initializer: Start of W_d: `xavier` as W_sh, or `ones`.
    """

    def __init__(
        self,
        num_domains: int,
        star_units: int,
        units: int,
        *,
        adapter_units: tuple[int, ...] = (),
        strict: bool = False,
        star_initializer: str = "xavier",
    ):
        super().__init__()
        self.num_domains, self.star_units, self.units = num_domains, star_units, units
        own = "glorot_uniform" if star_initializer == "xavier" else star_initializer
        self.star = StarDense(num_domains, star_units, own_initializer=own)
        self.combine = DenseBlock(
            units,
            norm="none" if strict else "layer",
            activation=None if strict else "relu",
        )
        self.adapt = MLP((*adapter_units, units), norm="layer")

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        self.star.build(input_shape)
        self.combine.build([None, self.star_units])
        super().build(input_shape)

    def call(self, x: tf.Tensor, rows: DomainRows) -> tf.Tensor:
        """Returns h [N, units] for working rows x [N, I]."""
        kernels, bias = self.star.linear()
        last, last_bias = self.combine.linear()
        if self._folds(x):
            kernels, bias = tf.matmul(kernels, last), tf.matmul(bias, last) + last_bias
        out = rows.section(lambda z: rows.add(rows.matmul(z, kernels), bias), x)
        if not self._folds(x):
            out = tf.matmul(out, last) + last_bias
        return self.combine.finish(out) + self.adapt(x)

    def _folds(self, x: tf.Tensor) -> bool:
        """Whether D products of kernels cost less than they save on the rows."""
        rows, width = x.shape
        if rows is None:
            return False
        plain = rows * self.star_units * (width + self.units)
        folded = width * self.units * (self.num_domains * self.star_units + rows)
        return folded < plain


class M3oEModel(DomainModel):
    """h_{d,t} = S_{d,t} + alpha_d Dom_d + alpha_t Tsk_t, then a tower per (d, t).

    `fusion_ablation`: `concat` makes h_{d,t} = [S_{d,t} ; Dom_d ; Tsk_t]; `gated` mixes
    the experts of all modules by one softmax gate per (d, t), without fusion weights.

    Source: Zhang et al., SIGIR 2024 (M3oE), Eq. (4)-(9); ablations: Table 3.
    Differs: what is left unsaid of `gated`, whose gate reads single experts here.
    """

    def __init__(self, config: M3oEConfig, schema: ModelSchema):
        super().__init__(schema, embedding_stddev=config.embedding_stddev)
        self.config = config
        num_domains, num_tasks = schema.num_domains, schema.num_tasks
        self.representation = DomainRepresentation(
            num_domains,
            config.star_units,
            config.hidden_units,
            adapter_units=config.adapter_units,
            strict=config.paper_strict,
            star_initializer=config.star_initializer,
        )
        # Shared, domain and task experts in one product.
        self.counts = (
            config.num_shared_experts,
            num_domains if config.use_domain_experts else 0,
            num_tasks if config.use_task_experts else 0,
        )
        self.experts = experts.StackedMLP(
            sum(self.counts), [config.expert_units], norm="layer", rows_first=True
        )
        self.sample: SampledDomains | None = None
        if 0 < config.foreign_experts < num_domains:
            self.sample = SampledDomains(num_domains, config.foreign_experts)
            self.sample.build([])  # now: its generator is in the first checkpoint
        is_gated = config.fusion_ablation == "gated"
        gated = sum(self.counts) if is_gated else config.num_shared_experts
        self.gates = experts.Gates(num_domains, num_tasks, gated)
        self.fusion: Fusion | FixedFusion | None = None
        if not is_gated:
            self.fusion = Fusion(
                num_domains,
                num_tasks,
                initial=config.fusion_initial,
                per_head=config.fusion_granularity == "per_domain_task",
                with_alpha=config.fusion_ablation != "concat",
            )
        self.towers = DomainTowers(
            num_domains,
            num_tasks,
            config.tower_units,
            norm="none" if config.paper_strict else "layer",
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
        side = tf.stop_gradient(h) if self.config.gate_stop_gradient else h
        gates = self.gates(side, rows)
        if training and self.sample is not None and self.fusion is not None:
            sample, table = self.sample(h), self.fusion(domain)
            fused = self.fuse_sampled(h, gates, domain, rows, sample, table)
        else:
            fused = self.fuse(self.mixture(gates, domain), self.experts(h))
        return self.towers(fused, rows, training=training)

    def fuse(self, weights: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Returns h_{d,t}: [N, T, H], or [N, T, modules * H] of `concat`.

        Args:
          weights: Of `mixture`, [N, T, K].
          outputs: Of the experts, [N, K, H].
        """
        if self.config.fusion_ablation != "concat":
            return experts.mix(weights, outputs)
        counts = [count for count in self.counts if count]
        parts = zip(
            tf.split(weights, counts, axis=-1),
            tf.split(outputs, counts, axis=1),
            strict=True,
        )
        return tf.concat([experts.mix(*part) for part in parts], axis=-1)

    def fuse_sampled(
        self,
        h: tf.Tensor,
        gates: tf.Tensor,
        domain: tf.Tensor,
        rows: DomainRows,
        sample: tf.Tensor,
        table: tf.Tensor,
    ) -> tf.Tensor:
        """Returns h_{d,t} [N, T, H] with a sample of the other domains' experts.

        A row's own expert is always there, computed by domain.  The mean over the
        others is that over those in the sample, whose expectation it is.

        Args:
          h: [N, I].
          gates: [N, T, shared experts].
          domain: Domain index [N].
          rows: How the rows are laid out by domain.
          sample: int32 [K], different domains, K >= 2.
          table: Of `Fusion`, [D, T, D + T].
        """
        shared, domains, tasks = self.counts
        last = shared + domains
        chosen = [tf.range(shared), shared + sample, tf.range(last, last + tasks)]
        outputs = self.experts(h, chosen=tf.concat(chosen, axis=0))
        own = self.experts.by_domain(h, rows, shared)
        of_domains = table[..., :domains]  # [D, T, D]
        others = 1.0 - tf.transpose(tf.one_hot(sample, domains))  # [D, K]
        scale = (domains - 1.0) / tf.reduce_sum(others, axis=1, keepdims=True)
        foreign = tf.gather(of_domains, sample, axis=-1)
        parts = [foreign * (others * scale)[:, tf.newaxis]]
        if tasks:
            parts.append(table[..., domains:])
        weights = tf.concat([gates, tf.gather(tf.concat(parts, -1), domain)], axis=-1)
        diagonal = tf.linalg.diag_part(tf.transpose(of_domains, [1, 0, 2]))  # [T, D]
        own_weight = tf.gather(tf.transpose(diagonal), domain)[..., tf.newaxis]
        mixed = experts.mix(weights, outputs)
        return mixed + tf.cast(own_weight, own.dtype) * own[:, tf.newaxis]

    def mixture(self, gates: tf.Tensor, domain: tf.Tensor) -> tf.Tensor:
        """Returns the weight of every expert in h_{d,t}: [N, T, K] float32.

        Args:
          gates: [N, T, shared experts], or of all experts where they are `gated`.
          domain: Domain index [N].
        """
        if self.fusion is None:
            return gates
        _, domains, tasks = self.counts
        table = self.fusion(domain)
        split = self.schema.num_domains
        parts = [table[..., :split]] if domains else []
        parts += [table[..., split:]] if tasks else []
        if not parts:
            return gates
        return tf.concat([gates, tf.gather(tf.concat(parts, -1), domain)], axis=-1)

    def with_constant_fusion(self) -> "M3oEModel":
        """Returns a model on the same variables, the fusion weights now constants."""
        # What serves draws nothing.
        config = self.config.model_copy(update={"foreign_experts": 0})
        copy = M3oEModel(config, self.schema)
        for name in ("embeddings", "representation", "experts", "gates", "towers"):
            setattr(copy, name, getattr(self, name))
        if self.fusion is not None:
            copy.fusion = FixedFusion(self.fusion(tf.zeros([1])).numpy())
        method.build(copy, self.schema)
        return copy


class M3oE(Method):
    """Multi-domain multi-task mixture-of-experts.

    Source: Zhang et al., SIGIR 2024 (arXiv 2404.18465), Eq. (1)-(9).
    Differs: alpha_d multiplies the domain module and alpha_t the task module (text
    and authors' code; Eq. (7) swaps them); W_c and towers have layer normalisation
    (authors' code; `paper_strict` leaves it out); f_DA has one layer
    (`adapter_units` adds to it); the fusion weights are trained jointly by default
    (what the authors' code does; `fusion_update=alternate` is the paper's, every
    `fusion_every` steps instead of once an epoch); the loss is the sum over (domain,
    task) cells of cell means, an absent cell counting 0; L2 is on dense weights only;
    rows meet only their own domain's slot, gates and towers; with `foreign_experts`
    (ours, for dozens of domains) a training step computes a sample of the other
    domains' experts, evaluation and export all.
    """

    Config = M3oEConfig
    config: M3oEConfig
    model: M3oEModel

    def build_model(self) -> M3oEModel:
        """Returns the model."""
        return M3oEModel(self.config, self.schema)

    def variable_groups(self) -> dict[str, list[tf.Variable]]:
        """Returns groups `embedding`, `dense` and `fusion`."""
        groups = super().variable_groups()
        own = self._fusion_variables()
        refs = {v.ref() for v in own}
        groups["dense"] = [v for v in groups["dense"] if v.ref() not in refs]
        return groups | {FUSION: own}

    def _fusion_variables(self) -> list[tf.Variable]:
        """Weights of modules that are left out have no gradient, so no group."""
        if self.model.fusion is None:
            return []
        raw, (_, domains, tasks) = self.model.fusion.raw, self.model.counts
        kinds = ["domain"] * bool(domains) + ["task"] * bool(tasks)
        return [v for name, v in raw.items() if name.split("_")[1] in kinds]

    def streams(self) -> dict[str, Stream]:
        """Returns `main`; and what it leaves to the fusion steps, as `held_out`."""
        share = self.config.fusion_holdout
        if not share:
            return super().streams()
        return {
            MAIN: Stream(hash_range=(share, 1.0)),
            HELD_OUT: Stream(hash_range=(0.0, share), event_only=True),
        }

    def train_step(self, batches: Batches) -> Metrics:
        """Updates everything, or (alternate, fixed) everything but the fusion."""
        if self.config.fusion_update == "joint":
            return self.step(batches, self.optimizers)
        others = {k: v for k, v in self.optimizers.items() if k != FUSION}
        return self.step(batches, others)

    def fusion_step(self, batches: Batches) -> Metrics:
        """Updates the fusion weights only: first order, no second derivatives."""
        return self.step(batches, {FUSION: self.optimizers[FUSION]})

    def periodic_events(self) -> list[PeriodicEvent]:
        """Returns the fusion step of `alternate`."""
        if self.config.fusion_update != "alternate" or FUSION not in self.optimizers:
            return []
        step = tf.function(self.fusion_step, autograph=False)
        name, every = "fusion_step", self.config.fusion_every
        if not self.config.fusion_holdout:
            return [PeriodicEvent(name, every, step, takes_batch=True)]

        def run(draw: Callable[[str], Batch | None]) -> Metrics:
            batch = draw(HELD_OUT)
            if batch is None:
                raise ValueError(
                    "M3oEConfig.fusion_holdout must leave a row to fusion steps; got "
                    f"{self.config.fusion_holdout}, which leaves none of the training "
                    "rows. Raise it."
                )
            return step({MAIN: batch})

        return [PeriodicEvent(name, every, run, draws=True)]

    def scalars(self) -> Mapping[str, float]:
        """Returns the fusion weights."""
        return {} if self.model.fusion is None else self.model.fusion.values()

    def export_model(self) -> M3oEModel:
        """Returns the model with the fusion weights of now as constants."""
        return self.model.with_constant_fusion()
