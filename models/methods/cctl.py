"""CCTL: companion towers; source rows weighed by how much they help the target."""

from collections.abc import Mapping
from typing import Any, Literal

import tensorflow as tf
import tf_keras as keras
from pydantic import Field, model_validator

from features.schema import ModelSchema
from models import losses, method, sync
from models.audit import WeightAudit, num_values
from models.cctl import transfer
from models.cctl.losses import CompanionLoss, Parts, row_mask
from models.cctl.model import CompanionModel, TowerModel
from models.cctl.reinforce import WindowedReinforce
from models.layers import representation
from models.method import MAIN, Batches, Method, MethodConfig, Metrics, PeriodicEvent
from models.optimizers.groups import apply_gradients
from tfrecords_tools.batch import Batch

SOURCE = "source"  # stream
MIXED, PURE, SELECTOR = "mixed", "pure", "selector"  # optimiser groups


class CCTLConfig(MethodConfig):
    """Settings of `cctl`.

    Optimiser groups besides `embedding` and `dense` (SAN): `mixed`, `pure`, `selector`;
    without a config of its own a group follows `dense`.
    """

    loss: Literal["row_mean"] = "row_mean"
    target_domain: str = Field("", description="name; must be given")
    source_domains: tuple[str, ...] = Field((), description="names; () = all others")
    target_features: tuple[str, ...] = Field((), description="names; () = all")
    source_features: tuple[str, ...] = Field((), description="names; () = all")
    source_batch_share: float = Field(1.0, gt=0)
    hidden_units: tuple[int, ...] = (256, 128, 32)
    norm: Literal["none", "layer"] = "none"
    embedding_stddev: float = Field(0.01, gt=0)
    scn_embedding: Literal["shared", "separate"] = "shared"
    source_embedding: Literal["own", "target"] = Field(
        "own", description="tables that source rows are read by"
    )
    san_units: tuple[int, ...] = (64,)
    selector_units: tuple[int, ...] = (64, 32)
    mode: Literal["soft", "bernoulli"] = "soft"
    alpha: float = Field(1.0, ge=0, le=1)
    window: int = Field(1000, ge=1, description="steps between two syncs")
    gamma: float = Field(0.8, ge=0, le=1)
    reward: Literal["level", "delta"] = "level"
    reward_scale: Literal["std", "none"] = "std"
    baseline: Literal["ema", "none"] = "ema"
    reward_decay: float = Field(0.99, ge=0, lt=1)
    ren_weight: float = Field(0.1, ge=0)
    ren_id: representation.Penalty = "relu"
    ren_ids: tuple[str, ...] = ()
    ren_sequences: dict[str, str] = {}
    ren_sequence_stop: representation.Side = "none"
    serve: Literal["pure", "synced"] = "synced"
    audit_feature: str = ""

    @model_validator(mode="after")
    def _check(self) -> "CCTLConfig":
        groups = self.optimizer.groups
        if groups.get(MIXED) != groups.get(PURE):
            raise ValueError(
                "optimizer.groups must hold equal settings for `mixed` and `pure`: "
                "towers that learn differently differ by more than the source rows"
            )
        if self.source_embedding == "target" and self.ren_weight:
            raise ValueError(
                "ren_weight must be 0 with source_embedding: target, where an id has "
                f"one vector and there is nothing to keep apart; got {self.ren_weight}."
            )
        return self


class CCTL(Method):
    """Collaborative cross-domain transfer learning to one target domain.

    `L = L_pure + L_tgt + sum_s p l / B_t + ren_weight L_ren`.  p carries no gradient;
    the selector learns by REINFORCE from `r = L_pure - L_tgt`, measured on the same
    target rows before the step's update.  Every `window` steps: the selector's step,
    then the pure tower becomes the mixed one's twin.

    Source: Zhang et al., KDD 2023 (CCTL), Eq. (1)-(12).
    Differs: p is held constant in the loss (else it falls to 0); a moving baseline and
    division by the reward's deviation (`baseline`, `reward_scale`: none are the
    paper's); a step is credited with later rewards only; sums are means, source rows
    weighing B_s / B_t together; only the selector learns from the reward, SAN from the
    loss; both towers share E^t, each giving it half its gradient (`separate`: not);
    slots and step counters are synced too; with alpha = 0 p is 1; REN's id term ends
    at orthogonal (`ren_id`); several tasks: losses and rewards are summed.

    `source_embedding = target` is ours, for domains that share users and items: source
    rows are read by E^t, so that what they teach about an id reaches the target.  With
    `scn_embedding = separate` it is the mixed side's E^t, so that the reward sees it,
    and the pure side's follows at each sync.
    """

    Config = CCTLConfig
    config: CCTLConfig
    model: CompanionModel
    # Any: there or not by the config, and their users ask.
    reinforce: Any = None
    audit: Any = None
    ren: Any = None

    def __init__(self, config: CCTLConfig, schema: ModelSchema):
        super().__init__(config, schema)
        if SELECTOR in self.optimizers:
            self.optimizers[SELECTOR].base_learning_rate *= config.alpha
        self._make_state()
        self._towers = {name: self.tower_model(name) for name in (MIXED, PURE)}
        self.sync()  # the towers start as twins

    def build_model(self) -> CompanionModel:
        """Returns the model, its variables created."""
        config = self.config
        self.transfer = transfer.resolve(
            "CCTL",
            self.schema,
            target_domain=config.target_domain,
            source_domains=config.source_domains,
            target_features=config.target_features,
            source_features=config.source_features,
        )
        model = CompanionModel(
            self.transfer,
            self.schema.tasks,
            hidden_units=config.hidden_units,
            norm=config.norm,
            stddev=config.embedding_stddev,
            separate=config.scn_embedding == "separate",
            served=self._served(),
            own_source=config.source_embedding == "own",
            selector_units=config.selector_units if config.alpha else None,
            san_units=config.san_units,
        )
        model.create(method.example_features(self.schema))
        return model

    def _served(self) -> Literal["mixed", "pure"]:
        """After a sync the pure tower is what the mixed one is now."""
        return "pure" if self.config.serve == "pure" else "mixed"

    def _make_state(self) -> None:
        config, model = self.config, self.model
        state: dict[str, Any] = {}
        if model.selector is not None:
            state["reinforce"] = self.reinforce = WindowedReinforce(
                model.selector.trainable_variables,
                gamma=config.gamma,
                baseline=config.baseline,
                scale=config.reward_scale,
                decay=config.reward_decay,
                reward=config.reward,
            )
            state["audit"] = self.audit = WeightAudit(
                self.transfer.sources,
                num_values("CCTL", config.audit_feature, self.transfer.source_fields),
            )
        names = transfer.paired_fields(
            "CCTL", self.transfer, config.ren_ids, config.ren_sequences
        )
        if model.source is not None and config.ren_weight and any(names):
            state["ren"] = self.ren = representation.RepresentationEnhancement(
                names[0],
                model.source,
                sequences=names[1],
                kind=config.ren_id,
                stop=config.ren_sequence_stop,
            )
        self.companion = CompanionLoss(model, config.mode, self.ren)
        state["draws"] = self.companion.draws
        self._state = state

    def variable_groups(self) -> dict[str, list[tf.Variable]]:
        """Returns groups `embedding`, `dense` (SAN), `mixed`, `pure`, `selector`."""
        groups, model = super().variable_groups(), self.model
        own = {
            MIXED: list(model.mixed.trainable_variables),
            PURE: list(model.pure.trainable_variables),
            SELECTOR: list(getattr(model.selector, "trainable_variables", [])),
        }
        taken = {v.ref() for variables in own.values() for v in variables}
        groups["dense"] = [v for v in groups["dense"] if v.ref() not in taken]
        return groups | own

    def streams(self) -> dict[str, method.Stream]:
        """Returns `main` (target rows) and `source`."""
        found = {MAIN: method.Stream(domains=(self.transfer.target,))}
        if self.transfer.sources:
            found[SOURCE] = method.Stream(
                domains=self.transfer.sources,
                batch_share=self.config.source_batch_share,
            )
        return found

    def serving_domains(self) -> tuple[str, ...]:
        """Returns the target alone."""
        return (self.transfer.target,)

    def loss(self, batches: Batches) -> tuple[tf.Tensor, Metrics]:
        """Returns this replica's share of the whole loss, and of the parts to log."""
        return self._total(self._parts(batches))

    def _parts(self, batches: Batches) -> Parts:
        source = batches[SOURCE] if self.transfer.sources else None
        return self.companion.parts(batches[MAIN], source)

    def _total(self, parts: Parts) -> tuple[tf.Tensor, Metrics]:
        towers = parts.pure + parts.target + parts.source
        loss = towers + self.config.ren_weight * parts.ren
        return loss, {
            "loss": loss,
            "loss_pure": parts.pure,
            "loss_target": parts.target,
            "loss_source": parts.source,
            "loss_ren": parts.ren,
            "loss_ren_ids": parts.ren_ids,
            "loss_ren_sequences": parts.ren_sequences,
            "reward": parts.pure - parts.target,
            "source_weight": parts.mean_prob,
        }

    def train_step(self, batches: Batches) -> Metrics:
        """Updates all but the selector, whose score and reward it takes note of."""
        with tf.GradientTape(persistent=True) as tape:
            parts = self._parts(batches)
            loss, metrics = self._total(parts)
        if self.reinforce is not None:
            self._credit(tape, parts, batches[MAIN])
        apply_gradients(
            tape, loss, {k: v for k, v in self.optimizers.items() if k != SELECTOR}
        )
        del tape
        self._note(parts, batches)
        return metrics

    def _credit(self, tape: tf.GradientTape, parts: Parts, main: Batch) -> None:
        variables = self.model.selector.trainable_variables
        scores = [
            losses.global_sum(tf.convert_to_tensor(g))
            for g in tape.gradient(parts.score, variables)
        ]
        reward = losses.global_sum(parts.pure - parts.target)
        seen = losses.global_sum(tf.reduce_sum(row_mask(main))) > 0
        self.reinforce.observe(reward, scores, seen)
        self.companion.next_draws()

    def _note(self, parts: Parts, batches: Batches) -> None:
        if SOURCE not in batches:
            return
        features = batches[SOURCE].features
        index = self.model.source_index(features)
        if self.audit is not None:
            values = features.get(self.config.audit_feature)
            self.audit.add(parts.probs, index, parts.mask, values)
        if self.ren is not None:
            self.ren.note(features, index, self.model.source, parts.mask)

    def periodic_events(self) -> list[PeriodicEvent]:
        """Returns the end of a window."""
        return [PeriodicEvent("window", self.config.window, self.end_window)]

    def end_window(self) -> dict[str, float]:
        """Steps the selector, forgets the window, syncs; returns the mean weights."""
        values = {}
        if self.reinforce is not None and int(self.reinforce.num_steps.numpy()):
            recent = self.audit.recent()
            values = {f"weight/{name}": mean for name, mean in recent.items()}
            values["baseline"] = float(self.reinforce.baseline.numpy())
            self.audit.mark()
            tf.distribute.get_strategy().run(self._step_selector)
            self.reinforce.end_window()
        self.sync()
        return values

    def _step_selector(self) -> None:
        """One ascent step; every replica gives its part of the same gradient."""
        parts = tf.distribute.get_strategy().num_replicas_in_sync
        variables = self.model.selector.trainable_variables
        self.optimizers[SELECTOR].apply_gradients(
            [
                (-tf.identity(credit) / parts, variable)
                for credit, variable in zip(
                    self.reinforce.credit, variables, strict=True
                )
            ]
        )

    def sync(self) -> None:
        """Makes the pure tower the mixed one's twin, optimiser state included."""
        sync.copy_training_state(*self.model.twins(), self.optimizers)

    def extra_state(self) -> dict[str, Any]:
        """Returns trace, credit, baseline, draws, audit and REN's marks."""
        return dict(self._state)

    def scalars(self) -> Mapping[str, float]:
        """Returns mean source weights since the start, and the reward's averages."""
        if self.reinforce is None:
            return {}
        means = {f"weight/{k}": v for k, v in self.audit.means().items()}
        return means | {
            "reward/baseline": float(self.reinforce.baseline.numpy()),
            "reward/std": float(self.reinforce.square.numpy()) ** 0.5,
        }

    def audit_tables(self) -> Mapping[str, WeightAudit]:
        """Returns the weights p of source rows, as `source_weight`."""
        return {} if self.audit is None else {"source_weight": self.audit}

    def tower_model(self, tower: str) -> TowerModel:
        """Returns a scoring model of target rows on `mixed`'s or `pure`'s variables."""
        model = self.model
        is_mixed = tower == MIXED
        found = TowerModel(
            model.target if is_mixed else model.pure_target,
            model.mixed if is_mixed else model.pure,
            self.schema.tasks,
        )
        method.build(found, self.schema)
        return found

    def watched_models(self) -> Mapping[str, keras.Model]:
        """Returns the tower that is not served."""
        return {k: v for k, v in self._towers.items() if k != self._served()}

    def serving_model(self) -> keras.Model:
        """Returns what scores target rows: one tower and its embeddings."""
        return self._towers[self._served()]
