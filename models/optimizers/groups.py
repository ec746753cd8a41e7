"""Optimisers by variable group: their config, making them, applying gradients."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import pydantic
import tensorflow as tf
from tensorflow_recommenders.experimental import optimizers as tfrs_optimizers

from features.config import Config, lookup_error
from models.optimizers.adagrad import Adagrad, AdagradDecay
from models.optimizers.adam import Adam
from models.optimizers.base import RowOptimizer
from models.optimizers.schedule import ScheduleConfig
from models.optimizers.sgd import SGD

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices | None

_READ_BY = {  # field: kinds that read it
    "beta_1": ("adam", "lazy_adam"),
    "beta_2": ("adam", "lazy_adam"),
    "epsilon": ("adam", "lazy_adam", "adagrad", "lazy_adagrad", "adagrad_decay"),
    "initial_accumulator": ("adagrad", "lazy_adagrad", "adagrad_decay"),
    "accumulator_decay_rate": ("adagrad_decay",),
    "accumulator_decay_steps": ("adagrad_decay",),
}


class GroupConfig(Config):
    """Optimiser of one group of variables.

    Attributes:
      kind: `adam`, `adagrad`, `sgd` take every row of a table into every step;
        `lazy_adam`, `lazy_adagrad`, `adagrad_decay` touch the looked-up rows only.
        On dense gradients lazy and plain are the same.
      learning_rate: > 0.
      beta_1: Adam's decay of the first moment.
      beta_2: Adam's decay of the second moment.
      epsilon: Added to the root of the (bias-corrected) second moment.
      initial_accumulator: Adagrad's start value, and AdagradDecay's floor.
      accumulator_decay_rate: AdagradDecay's factor.
      accumulator_decay_steps: Steps between two of its decays.
      l2: `l2 * w` is added to the gradient, inside the optimiser: the whole variable
        for dense gradients, looked-up rows only for lazy kinds on tables.
      clip_norm: Largest gradient norm of this group (not of all groups); 0 = off.
      schedule: Learning-rate schedule.
    """

    kind: Literal[
        "adam", "lazy_adam", "sgd", "adagrad", "lazy_adagrad", "adagrad_decay"
    ] = "adam"
    learning_rate: float = pydantic.Field(default=1e-3, gt=0)
    beta_1: float = pydantic.Field(default=0.9, ge=0, lt=1)
    beta_2: float = pydantic.Field(default=0.999, ge=0, lt=1)
    epsilon: float = pydantic.Field(default=1e-8, gt=0)
    initial_accumulator: float = pydantic.Field(default=0.1, ge=0)
    accumulator_decay_rate: float = pydantic.Field(default=0.9, gt=0, le=1)
    accumulator_decay_steps: int = pydantic.Field(default=100_000, ge=1)
    l2: float = pydantic.Field(default=0.0, ge=0)
    clip_norm: float = pydantic.Field(default=0.0, ge=0)
    schedule: ScheduleConfig = ScheduleConfig()

    @pydantic.model_validator(mode="after")
    def _check(self) -> "GroupConfig":
        for name, kinds in _READ_BY.items():
            default = type(self).model_fields[name].default
            if self.kind not in kinds and getattr(self, name) != default:
                raise ValueError(
                    f"{name} must be left at {default} with kind {self.kind!r}, which "
                    f"does not read it ({', '.join(kinds)} do); "
                    f"got {getattr(self, name)}. Remove it or change the kind."
                )
        return self


class OptimizerConfig(Config):
    """Optimisers of all groups.

    Attributes:
      embedding: Tables, looked up row by row.
      dense: All other variables, and every group without a config of its own.
      groups: Config of groups that a method adds, by name.
    """

    embedding: GroupConfig = GroupConfig(kind="lazy_adam")
    dense: GroupConfig = GroupConfig()
    groups: dict[str, GroupConfig] = {}

    @pydantic.field_validator("groups")
    @classmethod
    def _check(cls, groups: dict[str, GroupConfig]) -> dict[str, GroupConfig]:
        for name in ("embedding", "dense"):
            if name in groups:
                raise ValueError(
                    f"must not hold {name!r}, which has a key of its own. "
                    f"Write optimizer.{name}."
                )
        return groups


def make_optimizers(
    config: OptimizerConfig, groups: Mapping[str, Sequence[tf.Variable]]
) -> dict[str, RowOptimizer]:
    """Returns an optimiser, slots created, for each group that has variables.

    Call it in the scope of the distribution strategy.

    Args:
      config: Optimiser settings.
      groups: Variables by group name; every variable in exactly one group.

    Raises:
      LookupError: If the config names a group that is not there.
      ValueError: If a variable is in two groups or twice in one.
    """
    for name in config.groups:
        if name not in groups:
            raise lookup_error("optimizer.groups key", name, groups)
    owner: dict[object, str] = {}
    for name, variables in groups.items():
        for variable in variables:
            if variable.ref() in owner:
                raise ValueError(
                    "variable_groups must hold every variable exactly once; got "
                    f"{variable.name!r} in {owner[variable.ref()]!r} and {name!r}."
                )
            owner[variable.ref()] = name
    configs = {"embedding": config.embedding, "dense": config.dense, **config.groups}
    return {
        name: make_optimizer(configs.get(name, config.dense), variables, name)
        for name, variables in groups.items()
        if variables
    }


def make_optimizer(
    config: GroupConfig, variables: Sequence[tf.Variable], name: str
) -> RowOptimizer:
    """Returns the optimiser of one group."""
    shared: dict[str, Any] = {
        "learning_rate": config.learning_rate,
        "schedule": config.schedule,
        "l2": config.l2,
        "clip_norm": config.clip_norm,
        "lazy": config.kind in ("lazy_adam", "lazy_adagrad", "adagrad_decay"),
        "name": name,
    }
    match config.kind:
        case "sgd":
            # Without l2 an absent row has no step to take: update rows, same result.
            shared["lazy"] = config.l2 == 0
            return SGD(variables, **shared)
        case "adam" | "lazy_adam":
            return Adam(
                variables,
                beta_1=config.beta_1,
                beta_2=config.beta_2,
                epsilon=config.epsilon,
                **shared,
            )
        case "adagrad" | "lazy_adagrad":
            shared["lazy"] = shared["lazy"] or config.l2 == 0
            return Adagrad(
                variables,
                initial_accumulator=config.initial_accumulator,
                epsilon=config.epsilon,
                **shared,
            )
        case _:
            return AdagradDecay(
                variables,
                initial_accumulator=config.initial_accumulator,
                epsilon=config.epsilon,
                decay_rate=config.accumulator_decay_rate,
                decay_steps=config.accumulator_decay_steps,
                **shared,
            )


def apply_gradients(
    tape: tf.GradientTape, loss: tf.Tensor, optimizers: Mapping[str, RowOptimizer]
) -> None:
    """Takes all gradients of `loss` at once and lets each group's optimiser step.

    Args:
      tape: Tape that recorded `loss`.
      loss: Scalar; a replica's share of it (see `models.losses`).
      optimizers: As `make_optimizers` gave them, all or some.
    """
    take_step(tape.gradient(loss, trained_by(optimizers)), optimizers)


def trained_by(optimizers: Mapping[str, RowOptimizer]) -> list[tf.Variable]:
    """Returns the variables of these optimisers, group by group."""
    return [v for o in optimizers.values() for v in o.model_variables]


def take_step(
    gradients: Sequence[Gradient], optimizers: Mapping[str, RowOptimizer]
) -> None:
    """Lets each group's optimiser step.

    Sparse gradients of tables stay sparse.  A variable that the loss does not depend
    on has no gradient and is left as it is, slots included; a group without any
    gradient does not step and its counter stays.  On several replicas gradients are
    summed.

    TFRS's CompositeOptimizer hands each gradient to its group.  It is made anew at
    each trace, because a method may step some of its groups only (alternating
    updates); it creates no variable.

    Args:
      gradients: One for each of `trained_by(optimizers)`.
      optimizers: As `make_optimizers` gave them, all or some.
    """
    pairs = [
        (gradient, variable)
        for gradient, variable in zip(gradients, trained_by(optimizers), strict=True)
        if gradient is not None
    ]
    if not pairs:
        return
    composite = tfrs_optimizers.CompositeOptimizer(
        [(o, lambda o=o: o.model_variables) for o in optimizers.values()]
    )
    composite.apply_gradients(pairs)
