"""AREAD: a hierarchy of experts, of which each domain uses what its mask keeps."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pydantic
import tensorflow as tf
import tf_keras as keras
from pydantic import Field

from features.schema import ModelSchema
from models import losses, method
from models.aread import masks as masks_lib
from models.aread.config import SearchConfig
from models.aread.full import FullTrial
from models.aread.history import SearchState
from models.aread.search import Draw, MaskSearch, mask_scalars, search_streams
from models.aread.stacked import StackedTrial
from models.audit import Matrix
from models.layers import experts, hierarchy_math
from models.layers.cross_head import CrossHead
from models.layers.domain_model import DomainModel
from models.layers.domain_rows import DomainRows
from models.layers.hierarchy import Hierarchy, check_layers
from models.method import MAIN, Batches, Method, Metrics, PeriodicEvent, Stream
from models.optimizers.groups import GroupConfig, OptimizerConfig


class AREADConfig(SearchConfig):
    """Settings of `aread`; those of its mask search are in `SearchConfig`."""

    optimizer: OptimizerConfig = OptimizerConfig(
        embedding=GroupConfig(kind="lazy_adam", l2=1e-5), dense=GroupConfig(l2=1e-5)
    )
    domain_feature: bool = Field(True, description="the base reads the domain id")
    num_base_experts: int = Field(4, ge=1, description="of the MMoE below")
    base_units: tuple[int, ...] = Field((256, 128, 64), min_length=1)
    num_experts: tuple[int, ...] = Field((3, 6, 12), description="N_1..N_L")
    expert_units: tuple[tuple[int, ...], ...] = ((64, 32), (32, 16), (16, 8))
    gate_width: int = Field(16, ge=1, description="of domain and expert vectors")
    gate_stddev: float = Field(0.1, gt=0, description="of their start")
    head: Literal["plain", "dcn"] = Field(
        "plain", description="dcn: crossed inputs added to every output"
    )
    cross_layers: int = Field(3, ge=1, description="of head dcn")
    norm: Literal["none", "layer"] = "layer"
    base_dropout: float = Field(0.0, ge=0, lt=1, description="of the MMoE's experts")
    dropout: float = Field(0.2, ge=0, lt=1, description="of the hierarchy's experts")
    embedding_stddev: float = Field(0.01, gt=0)

    @pydantic.model_validator(mode="after")
    def _check_layers(self) -> "AREADConfig":
        check_layers("AREADConfig", self.num_experts, self.expert_units)
        return self


class AREADModel(DomainModel):
    """MMoE, then a hierarchy of experts; the mean probability of active outputs."""

    def __init__(self, config: AREADConfig, schema: ModelSchema):
        super().__init__(
            schema,
            embedding_stddev=config.embedding_stddev,
            use_domain_feature=config.domain_feature,
        )
        self.config = config
        self.experts = experts.StackedMLP(
            config.num_base_experts,
            config.base_units,
            norm=config.norm,
            dropout=config.base_dropout,
        )
        self.gates = experts.Gates(1, config.num_experts[0], config.num_base_experts)
        self.hierarchy = Hierarchy(
            schema.num_domains,
            schema.num_tasks,
            config.num_experts,
            config.expert_units,
            gate_width=config.gate_width,
            gate_stddev=config.gate_stddev,
            norm=config.norm,
            dropout=config.dropout,
        )
        self.head: Any = None  # its user asks
        if config.head == "dcn":
            self.head = CrossHead(
                config.num_experts[-1],
                schema.num_tasks,
                num_layers=config.cross_layers,
            )

    def call(
        self, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Returns float32 logits [B] by task, rows in input order.

        Args:
          features: As `Batch.features`.
          training: Whether dropout is on.
        """
        outputs, active = self.all_outputs(features, training=training)
        logits = hierarchy_math.average_logits(outputs, active)
        return dict(zip(self.schema.tasks, tf.unstack(logits, axis=1), strict=True))

    def all_outputs(
        self, features: Mapping[str, tf.Tensor], *, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns logits of all outputs [N_L, B, T], active ones [N_L, B, 1]."""
        inputs, added = self.base(features, training=training)
        outputs, active = self.hierarchy(inputs, features["domain"], training=training)
        return outputs + added, active

    def base(
        self, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns all that the hierarchy does not compute.

        Returns:
          Inputs of the first layer's experts, [N_1, B, I]: those of the MMoE; what the
          head adds to the outputs, [N_L, B, T], or 0 for all.
        """
        x = self.embeddings({k: v for k, v in features.items() if k != "valid"})
        stacked = self.experts(x, training=training)
        weights = self.gates(x, DomainRows(features["domain"], 1))
        inputs = tf.transpose(experts.mix_stacked(weights, stacked), [1, 0, 2])
        if self.head is None:
            return inputs, tf.zeros([], inputs.dtype)
        return inputs, self.head(x)

    def with_constant_masks(self) -> "AREADModel":
        """Returns a model on the same experts, masks and gates now constants."""
        copy = AREADModel(self.config, self.schema)
        for name in ("embeddings", "experts", "gates", "head"):
            setattr(copy, name, getattr(self, name))
        copy.hierarchy = self.hierarchy.folded()
        method.build(copy, self.schema)
        return copy


class AREAD(Method):
    """Adaptive recommendation for all domains.

    Source: Luo et al., AAAI 2025 (arXiv 2412.11905), Eq. (3)-(9), Algorithm 1.
    Differs: layer normalisation for batch normalisation; batches mix domains; the
    loss in masked training is the mean over active outputs (authors' code; `bagging=
    sum` is Eq. (8)); searches come after `warmup_steps` and at every multiple of
    `search_every`; by default a search trains the hierarchy only (`search_scope=all`
    is the paper's); mean gates are moving averages over training (the authors' code
    records them in the warm-up only); see `MaskSearch` and `Hierarchy` for the rest.
    Output heads are plain, as in the paper; `head = dcn` is that of the authors' code.
    """

    Config = AREADConfig
    config: AREADConfig
    model: AREADModel

    def __init__(self, config: AREADConfig, schema: ModelSchema):
        super().__init__(config, schema)
        shapes = [list(gates.shape) for gates in self.model.hierarchy.gates()]
        self.search_state = SearchState(shapes, config.gate_momentum)
        self.mask_search = MaskSearch(
            self.model, self.search_state, config, schema.domains, self._trial()
        )

    def build_model(self) -> AREADModel:
        """Returns the model."""
        return AREADModel(self.config, self.schema)

    def _trial(self) -> StackedTrial | FullTrial:
        if self.config.search_scope == "hei" or not self.config.use_masks:
            return StackedTrial(self.model, self.config)
        return FullTrial(self.model, self.config, self.variable_groups())

    def streams(self) -> dict[str, Stream]:
        """Returns the training rows, and two streams a domain for the search."""
        streams = {MAIN: Stream()}
        if self.config.use_masks:
            streams |= search_streams(self.schema.domains, self.config)
        return streams

    def loss(self, batches: Batches) -> tuple[tf.Tensor, Metrics]:
        """Returns the loss: of the average in warm-up, then of each active output."""
        batch = batches[MAIN]
        outputs, active = self.model.all_outputs(batch.features, training=True)
        values = tf.cond(
            self.search_state.searches > 0,
            lambda: hierarchy_math.bagging(
                outputs, active, batch.labels, self.config.bagging
            ),
            lambda: losses.bce(
                hierarchy_math.average_logits(outputs, active), batch.labels
            ),
        )
        loss = losses.task_mean(
            values, batch, self.config.loss, num_domains=self.schema.num_domains
        )
        return loss, {"loss": loss}

    def train_step(self, batches: Batches) -> Metrics:
        """Does one step, and takes its gates into each domain's mean."""
        gates = self.model.hierarchy.gates()
        metrics = super().train_step(batches)
        batch = batches[MAIN]
        rows = tf.math.unsorted_segment_sum(
            tf.cast(batch.valid, tf.float32), batch.domain, self.schema.num_domains
        )
        self.search_state.observe(gates, rows)
        return metrics

    def periodic_events(self) -> list[PeriodicEvent]:
        """Returns the first search, after the warm-up, and those that follow."""
        if not self.config.use_masks:
            return []
        return [
            PeriodicEvent(
                "first_search", self.config.warmup_steps, self.first_search, draws=True
            ),
            PeriodicEvent(
                "mask_search", self.config.search_every, self.search, draws=True
            ),
        ]

    def first_search(self, draw: Draw) -> Mapping[str, float] | None:
        """Searches if no search has been done."""
        return None if self.search_state.searches.numpy() else self.search(draw)

    def search(self, draw: Draw) -> Mapping[str, float]:
        """Searches new masks for all domains."""
        return self.mask_search.run(draw)

    def extra_state(self) -> dict[str, Any]:
        """Returns what searches remember: seed, counter, mean gates."""
        return self.search_state.trackables()

    def scalars(self) -> Mapping[str, float]:
        """Returns density and overlap of the masks, active outputs, searches done."""
        masks = [m.numpy() for m in self.model.hierarchy.masks]
        values = mask_scalars(masks, self.config.min_density)
        values = {f"mask/{name}": value for name, value in values.items()}
        return values | {"mask/searches": float(self.search_state.searches.numpy())}

    def mask_overlap(self) -> list[np.ndarray]:
        """Returns the overlap ratio of every two domains, [D, D] for each layer."""
        found = self.model.hierarchy.masks
        return [masks_lib.overlap_table(m.numpy()) for m in found]

    def expert_utilisation(self) -> list[np.ndarray]:
        """Returns effective mixing weights by domain, [D, N_{l+1}, N_l] for each l.

        Row n holds the shares in which expert n reads the layer below; zeros for an
        expert that the domain does not use.
        """
        return [a.numpy() for a in self.model.hierarchy.mixing()]

    def matrices(self) -> Mapping[str, Matrix]:
        """Returns by layer the overlap of masks, and the use of each expert.

        An expert of layer l is used by a domain as much as the experts above read it,
        on average over those that the domain uses.  At last the paper's Fig. 8: for the
        two domains whose masks overlap most between the last two layers, and least, how
        much each expert above reads each below; 0 where the mask has cut the edge.
        """
        names, found = self.schema.domains, {}
        overlaps = self.mask_overlap() if self.config.use_masks else []
        for layer, overlap in enumerate(overlaps, start=1):
            found[f"mask overlap, layer {layer}"] = Matrix(names, names, overlap)
        all_mixing = self.expert_utilisation()
        for layer, mixing in enumerate(all_mixing, start=1):
            active = np.maximum((mixing.sum(axis=2) > 0).sum(axis=1), 1)
            use = mixing.sum(axis=1) / active[:, np.newaxis]
            experts = [str(i) for i in range(use.shape[1])]
            found[f"use of experts, layer {layer}"] = Matrix(names, experts, use)
        if not overlaps:  # no masks: every two domains are as alike
            return found
        last, overlap = all_mixing[-1], overlaps[-1]
        below = [str(i) for i in range(last.shape[2])]
        for which, pair in masks_lib.extreme_pairs(overlap).items():
            rows = [f"{names[d]} {i}" for d in pair for i in range(last.shape[1])]
            title = " and ".join(names[d] for d in pair)
            found[f"{which} alike: {title}, overlap {overlap[pair]:.3f}"] = Matrix(
                rows, below, np.concatenate([last[d] for d in pair])
            )
        return found

    def export_model(self) -> keras.Model:
        """Returns the model with masks and gates of now folded into constants."""
        return self.model.with_constant_masks()
