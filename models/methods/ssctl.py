"""SSCTL: pseudo domains for the rows of a dominant domain, and soft partitioning."""

from collections.abc import Mapping
from typing import Any, Literal

import pydantic
import tensorflow as tf
from pydantic import Field

from features.schema import ModelSchema
from models import audit, losses
from models.layers.pseudo_domains import ConfidenceWeights, DomainClasses
from models.layers.pseudo_labelling import PseudoLabelling, copies_loss
from models.layers.soft_partition import SoftPartition
from models.layers.soft_partition_model import SoftPartitionModel
from models.method import MAIN, Batches, Method, MethodConfig, Metrics
from models.optimizers.groups import GroupConfig, OptimizerConfig, apply_gradients
from tfrecords_tools.batch import Batch

CLASSIFIER, CLASSIFIER_EMBEDDING = "classifier", "classifier_embedding"


class SSCTLConfig(MethodConfig):
    """Settings of `ssctl`.

    `dominant_domains` has no default: a schema does not tell how many rows a domain
    has.  The optimiser groups `classifier` and `classifier_embedding` (the tables of a
    pretrained classifier) follow `dense` where `optimizer.groups` does not name them.
    """

    optimizer: OptimizerConfig = OptimizerConfig(
        groups={CLASSIFIER_EMBEDDING: GroupConfig(kind="lazy_adam")}
    )
    dominant_domains: tuple[str, ...] = Field(
        (), description="names of the domains that own most rows"
    )
    use_isct: bool = Field(True, description="train copies of dominant rows")
    use_sddn: bool = Field(True, description="scale shared layers")
    num_shared_experts: int = Field(4, ge=1, description="m")
    expert_units: tuple[int, ...] = Field((256, 128, 64), min_length=1)
    gate_units: tuple[int, ...] = (64,)
    tower_units: tuple[int, ...] = (64,)
    classifier_units: tuple[int, ...] = (128, 64)
    combination: Literal["concat", "cgc"] = "concat"
    pseudo_weight: float = Field(0.7, ge=0, description="lambda")
    pseudo_ramp_steps: tuple[int, int] = Field(
        (1000, 2000), description="lambda rises from 0 between these steps"
    )
    pseudo_scope: Literal["all", "specific"] = "all"
    pseudo_prior: Literal["none", "balanced"] = "none"
    confidence_scope: Literal["all", "per_class"] = "all"
    confidence_width: float = Field(1.0, gt=0, description="n_sigma")
    ema_momentum: float = Field(0.999, gt=0, lt=1)
    ema_bias_correction: bool = True
    classifier_mode: Literal["joint", "pretrained"] = "joint"
    pretrain_steps: int = Field(1000, ge=1, description="read by `pretrained`")
    focal_gamma: float = Field(2.0, ge=0)
    class_weights: Literal["none", "balanced"] = "none"
    sddn_scope: Literal["experts", "all"] = "experts"
    sddn_units: int = Field(64, ge=1)
    sddn_scale: float = Field(2.0, gt=0, description="delta")
    sddn_share_experts: bool = False
    norm: Literal["none", "layer", "batch"] = "layer"
    dropout: float = Field(0.2, ge=0, lt=1)
    domain_width: int = Field(
        10, ge=1, description="of domain embeddings, without an indicator in the schema"
    )
    embedding_stddev: float = Field(0.01, gt=0)
    audit_feature: str = Field("", description="id feature to audit weights by, too")

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SSCTLConfig":
        first, last = self.pseudo_ramp_steps
        if not 0 <= first <= last:
            raise ValueError(
                "pseudo_ramp_steps must be two steps, 0 <= first <= last; got "
                f"{self.pseudo_ramp_steps}. (0, 0) gives the whole weight from the "
                "start."
            )
        return self


class SSCTL(Method):
    """Soft-partitioned semi-supervised collaborative transfer learning.

    A row of a dominant domain is trained a second time in the small domain that it is
    most like, with the weight that the classifier's confidence gives it.

    Source: Liu et al., 2025 (arXiv 2511.01404), Eq. (1)-(8).
    Differs: the classifier is trained in the same steps on stopped embeddings
    (`classifier_mode=pretrained` is the paper's three steps, inside one run); both
    losses are divided by the real rows (with `cell_mean`, real rows and weighted
    copies are one set); moving means start at the first batch and lambda rises from 0
    (`ema_bias_correction`, `pseudo_ramp_steps`); scales are taken in logs; a set of
    dominant domains; layer normalisation by default (`norm: batch` is the paper's,
    with statistics of real rows only); a gate and a tower for each task.
    """

    Config = SSCTLConfig
    config: SSCTLConfig
    model: SoftPartitionModel

    def __init__(self, config: SSCTLConfig, schema: ModelSchema):
        self.classes: DomainClasses | None = None
        if config.use_isct or config.use_sddn:
            self.classes = DomainClasses(
                schema.domains, config.dominant_domains, "SSCTLConfig"
            )
        super().__init__(config, schema)
        self.labelling: PseudoLabelling | None = None
        if self.classes is not None:
            self.labelling = self._make_labelling(self.classes)

    def _make_labelling(self, classes: DomainClasses) -> PseudoLabelling:
        config, confidence, kept = self.config, None, None
        mean: dict[str, Any] = {
            "momentum": config.ema_momentum,
            "bias_correction": config.ema_bias_correction,
        }
        if config.use_isct:
            confidence = ConfidenceWeights(
                classes.count,
                per_class=config.confidence_scope == "per_class",
                width=config.confidence_width,
                **mean,
            )
            values = audit.num_values(
                "SSCTLConfig", config.audit_feature, self.schema.features
            )
            kept = audit.WeightAudit(classes.names, values)
        return PseudoLabelling(
            classes,
            confidence,
            audit=kept,
            audit_feature=config.audit_feature,
            balance_labels=config.pseudo_prior == "balanced",
            balance_classes=config.class_weights == "balanced",
            focal_gamma=config.focal_gamma,
            **mean,
        )

    def build_model(self) -> SoftPartitionModel:
        """Returns the model."""
        config, schema = self.config, self.schema
        network = SoftPartition(
            schema.num_domains,
            schema.num_tasks,
            config.num_shared_experts,
            expert_units=config.expert_units,
            gate_units=config.gate_units,
            tower_units=config.tower_units,
            combination=config.combination,
            norm=config.norm,
            dropout=config.dropout,
            scope=config.sddn_scope if config.use_sddn else "none",
            differentiation={
                "hidden_units": config.sddn_units,
                "scale": config.sddn_scale,
                "share_networks": config.sddn_share_experts,
            },
        )
        return SoftPartitionModel(
            schema,
            network,
            self.classes,
            classifier_units=config.classifier_units,
            own_embeddings=self._is_pretrained(),
            domain_width=config.domain_width,
            embedding_stddev=config.embedding_stddev,
        )

    def _is_pretrained(self) -> bool:
        return self.classes is not None and self.config.classifier_mode == "pretrained"

    def variable_groups(self) -> dict[str, list[tf.Variable]]:
        """Returns groups `embedding`, `dense`, `classifier`, `classifier_embedding`."""
        model, groups = self.model, super().variable_groups()
        own = {
            CLASSIFIER: model.classifier,
            CLASSIFIER_EMBEDDING: model.classifier_embeddings,
        }
        taken: dict[str, list[tf.Variable]] = {
            name: [] if layer is None else list(layer.trainable_variables)
            for name, layer in own.items()
        }
        refs = {v.ref() for variables in taken.values() for v in variables}
        groups = {
            name: [v for v in variables if v.ref() not in refs]
            for name, variables in groups.items()
        }
        return groups | taken

    def loss(self, batches: Batches) -> tuple[tf.Tensor, Metrics]:
        """Returns the share of the loss of rows, copies and classifier, and scalars.

        A pretrained classifier is no part of it; see `train_step`.
        """
        batch, model, labelling = batches[MAIN], self.model, self.labelling
        seen = model.embed({**batch.features, "valid": batch.valid})
        metrics: Metrics = {}
        class_logits, copies, others = None, None, []
        classifier_loss = tf.zeros([])
        if labelling is not None:
            class_logits = model.class_logits(seen)
            in_order = seen.rows.leave(class_logits)
            classifier_loss, metrics = labelling.classifier_loss(in_order, batch)
        if labelling is not None and labelling.confidence is not None:
            copies, more = labelling.copies(in_order, batch)
            metrics |= more
            if self.config.pseudo_weight:  # else they are not even computed
                others = [seen.rows.enter(copies.domain)]
        looks = model.look(
            seen,
            class_logits,
            others,
            training=True,
            specific_only=self.config.pseudo_scope == "specific",
        )
        own, *rest = (seen.rows.leave(part) for part in looks)
        kind, domains = self.config.loss, self.schema.num_domains
        task_loss = losses.task_loss(own, batch, kind, num_domains=domains)
        pseudo_loss = tf.zeros([])
        if copies is not None and rest:
            pseudo_loss = copies_loss(
                own,
                rest[0],
                batch,
                copies._replace(weight=copies.weight * self.pseudo_strength()),
                kind,
                num_domains=domains,
            )
        loss = task_loss + pseudo_loss
        if not self._is_pretrained():
            loss += classifier_loss
        parts = {"loss": loss, "task_loss": task_loss, "pseudo_loss": pseudo_loss}
        return loss, parts | metrics

    def pseudo_strength(self) -> tf.Tensor:
        """Returns lambda of the coming step, float32 scalar."""
        config = self.config
        first, last = config.pseudo_ramp_steps
        if last == 0:
            return tf.constant(config.pseudo_weight)
        step = tf.cast(self.optimizers["dense"].iterations, tf.float32)
        ramp = (step - first) / max(last - first, 1)
        return config.pseudo_weight * tf.clip_by_value(ramp, 0.0, 1.0)

    def train_step(self, batches: Batches) -> Metrics:
        """Updates everything; a pretrained classifier alone first, then all else."""
        if not self._is_pretrained():
            return super().train_step(batches)
        if tf.distribute.get_replica_context().num_replicas_in_sync > 1:
            raise ValueError(
                "SSCTLConfig.classifier_mode must be joint on several devices; got "
                "pretrained, whose two kinds of step need strategy one_device."
            )
        done = self.optimizers[CLASSIFIER].iterations
        return tf.cond(
            done < self.config.pretrain_steps,
            lambda: self._classifier_step(batches[MAIN]),
            lambda: self._main_step(batches),
        )

    def _classifier_step(self, batch: Batch) -> Metrics:
        labelling = self.labelling
        if labelling is None:
            raise TypeError("SSCTL has no classifier to train.")
        with tf.GradientTape() as tape:
            seen = self.model.embed({**batch.features, "valid": batch.valid})
            class_logits = seen.rows.leave(self.model.class_logits(seen))
            loss, metrics = labelling.classifier_loss(class_logits, batch)
        own = (CLASSIFIER, CLASSIFIER_EMBEDDING)
        apply_gradients(tape, loss, {name: self.optimizers[name] for name in own})
        names = ["task_loss", "pseudo_loss", *labelling.metric_names()]
        return {name: tf.zeros([]) for name in names} | metrics | {"loss": loss}

    def _main_step(self, batches: Batches) -> Metrics:
        own = {k: v for k, v in self.optimizers.items() if not k.startswith(CLASSIFIER)}
        return self.step(batches, own)

    def extra_state(self) -> dict[str, Any]:
        """Returns the moving means."""
        return {} if self.labelling is None else {"labelling": self.labelling}

    def scalars(self) -> Mapping[str, float]:
        """Returns mean and sigma of the confidences."""
        return {} if self.labelling is None else self.labelling.scalars()

    def audit_tables(self) -> Mapping[str, audit.WeightAudit]:
        """Returns the weights of copies by pseudo domain, as `pseudo_weight`."""
        kept = None if self.labelling is None else self.labelling.audit
        return {} if kept is None else {"pseudo_weight": kept}

    def serving_variables(self) -> list[tf.Variable]:
        """Returns all of the model; without SDDN no classifier."""
        variables = list(self.model.variables)
        if self.config.use_sddn:
            return variables
        groups = self.variable_groups()
        refs = {v.ref() for k in (CLASSIFIER, CLASSIFIER_EMBEDDING) for v in groups[k]}
        return [v for v in variables if v.ref() not in refs]
