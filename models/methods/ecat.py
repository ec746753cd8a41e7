"""ECAT: selected source rows and a source model's representations for a target."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from features.schema import ModelSchema
from models import audit, losses, method
from models.ecat import source as source_lib
from models.ecat import terms
from models.ecat.config import ECATConfig, check_features, source_domains
from models.ecat.model import ECATModel
from models.layers.adaptive_model import Forward
from models.layers.frozen_source import SourceVersions
from models.method import MAIN, Batches, Method, Metrics, Stream
from tfrecords_tools.batch import Batch


class ECAT(Method):
    """Entire space continual and adaptive transfer.

    Source: Hou et al., SIGIR 2024 (ECAT), Eq. (1) and (2), sections 2.3 and 2.4.
    Differs: the gate reads target-side inputs only (`gate_uses_source` adds e_s, which
    cannot be served); the entropy in it is that of a small head (`base_pass`: of T
    itself without fusion); target rows have weight 1 and source rows that look more
    like the target than not too (`w_da: entropy` is the paper's); the discriminator's
    loss counts both classes the same; nothing of either loss goes through the adapter
    into T; rows without items in S or T are left out of the distillation; w_pow is
    (1 + cos(e_t, e_s)) / 2, of which the paper says only that it is a cosine.

    Args:
      config: Its config.
      schema: Inputs, domains and tasks; the target and the sources are domains.
      source: S itself; default: the model of `source_workdir`.
    """

    Config = ECATConfig
    config: ECATConfig
    model: ECATModel

    def __init__(
        self,
        config: ECATConfig,
        schema: ModelSchema,
        source: keras.Model | None = None,
    ):
        self._sources = source_domains(config, schema)
        check_features(config, schema)
        self._given = source
        self._audits = _make_audits(config, schema, self._sources)
        super().__init__(config, schema)

    def build_model(self) -> ECATModel:
        """Returns the model, its target part built before S is read.

        So T starts from the same weights with and without a source model.
        """
        use_da = self.config.use_da and bool(self._sources)
        model = ECATModel(self.config, self.schema, use_da=use_da)
        target = model.served.target
        method.build(target, self.schema)
        self._opened = source_lib.open_source(self.config, self.schema, self._given)
        self._source = self._opened.representations
        version = None if self._source is None else self._source.version
        self._versions = SourceVersions(version)
        if self._source is not None:
            source_lib.check_widths(self.config, self.schema, target, self._source)
        if self._opened.model is not None:
            if self.config.warm_start_from_source:
                self._opened.model.copy_to(target)
            if self.config.gate_uses_source:
                model.served.source = self._opened.model.represent
        if use_da:
            parts = target.represent(method.example_features(self.schema))
            model.discriminate(parts)
        return model

    def streams(self) -> dict[str, Stream]:
        """Returns stream `main` of target rows and `gst` of source rows.

        Raises:
          ValueError: When what training needs of S is not there.
        """
        source_lib.require(self.config, self._opened)
        vectors = self.config.source_vectors if self._opened.cached else ""
        streams = {MAIN: Stream(domains=(self.config.target_domain,), vectors=vectors)}
        if self._sources:
            share = self.config.gst_share
            streams[terms.GST] = Stream(
                domains=self._sources,
                batch_share=1.0 if share == "auto" else share,
                per_epoch=share == "auto",
                path=self.config.gst_path,
                vectors=vectors,
            )
        return streams

    def serving_domains(self) -> tuple[str, ...]:
        """Returns the target."""
        return (self.config.target_domain,)

    def extra_state(self) -> dict[str, Any]:
        """Returns the versions of the source model, and the audits."""
        state: dict[str, Any] = {f"audit_{k}": v for k, v in self._audits.items()}
        if self.config.needs_source:
            state["source_versions"] = self._versions
        return state

    def scalars(self) -> Mapping[str, float]:
        """Returns means since the start, as `w_da/<domain>` and `gate_<tap>/<domain>`.

        w_da is of source rows; a gate is of target rows too.
        """
        return {
            f"{name}/{domain}": mean
            for name, kept in self._audits.items()
            for domain, mean in kept.means().items()
        }

    def audit_tables(self) -> Mapping[str, audit.WeightAudit]:
        """Returns the audits: `w_da`, and `gate_<tap>` of each tap."""
        return dict(self._audits)

    def serving_variables(self) -> list[tf.Variable]:
        """Returns those of T, adapters, gates and entropy head.

        Raises:
          ValueError: With `gate_uses_source`: S would have to serve too.
        """
        if self.config.gate_uses_source:
            raise ValueError(
                "ecat.gate_uses_source must be false in what is exported: the gate "
                "would need the source model for every request. Train again without "
                "it; scores offline (models.evaluate) are possible as it is."
            )
        return list(self.serving_model().variables)

    def serving_model(self) -> keras.Model:
        """Returns T with its adapters."""
        return self.model.served

    # ---------------------------------------------------------------- the losses

    def loss(self, batches: Batches) -> tuple[tf.Tensor, Metrics]:
        """Returns `w_da L_y + alpha w_pow L_di + beta L_da`, Eq. (2), and its parts.

        The scalar `loss` is L_y, weighted as it is trained.
        """
        batch, is_target = terms.join(batches)
        features = {**batch.features, "valid": batch.valid}
        forward = self.model.served.forward(features, training=True)
        weights, parts, metrics = self._adaptation(forward, batch, is_target)
        values = losses.bce(forward.logits, batch.labels)
        loss = self._mean_loss(weights[:, tf.newaxis] * values, batch)
        total = loss + self.config.beta * parts.get("domain_loss", 0.0)
        if forward.guess is not None:
            guess = losses.bce(forward.guess, batch.labels)
            parts["entropy_loss"] = self._mean_loss(guess, batch)
            total += parts["entropy_loss"]
        if self.config.use_distillation:
            if self._source is None:
                raise source_lib.missing(self.config)
            source = self._source.represent(batch.features)
            parts["distillation_loss"], more = terms.distillation(
                forward, source, batch.weight, self.config
            )
            metrics |= more
            total += self.config.alpha * parts["distillation_loss"]
        for tap, gate in forward.gates.items():
            metrics[f"gate_{tap}"] = terms.mean(gate[:, 0], batch.weight)
            self._note(f"gate_{tap}", gate[:, 0], batch, batch.valid)
        return total, {"loss": loss, "total_loss": total, **parts, **metrics}

    def _mean_loss(self, values: tf.Tensor, batch: Batch) -> tf.Tensor:
        return losses.task_mean(
            values, batch, self.config.loss, num_domains=self.schema.num_domains
        )

    def _adaptation(
        self, forward: Forward, batch: Batch, is_target: tf.Tensor
    ) -> tuple[tf.Tensor, Metrics, Metrics]:
        """Returns w_da [B], the discriminator's loss, and scalars."""
        if self.model.discriminator is None:
            return tf.ones_like(batch.weight), {}, {}
        logits = self.model.discriminate(forward.parts)
        loss = terms.balanced_loss(logits, is_target, batch.weight)
        weights = terms.domain_weights(logits, is_target, self.config.w_da)
        mean = terms.mean(weights, batch.weight * (1.0 - is_target))
        self._note("w_da", weights, batch, batch.valid & (is_target == 0))
        return weights, {"domain_loss": loss}, {"w_da": mean}

    def _note(
        self, name: str, values: tf.Tensor, batch: Batch, rows: tf.Tensor
    ) -> None:
        """Takes these rows into an audit, if it is kept."""
        if name in self._audits:
            feature = batch.features.get(self.config.audit_feature)
            counted = tf.cast(rows, tf.float32)
            self._audits[name].add(values, batch.domain, counted, feature)


def _make_audits(
    config: ECATConfig, schema: ModelSchema, sources: tuple[str, ...]
) -> dict[str, audit.WeightAudit]:
    """Returns what keeps the mean w_da and gates by domain."""
    values = audit.num_values("ecat", config.audit_feature, schema.features)
    audits = {}
    if config.use_da and sources:
        audits["w_da"] = audit.WeightAudit(schema.domains, values)
    for tap in config.taps if config.use_gate else ():
        audits[f"gate_{tap}"] = audit.WeightAudit(schema.domains, values)
    return audits
