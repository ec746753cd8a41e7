"""The contract of a method: a model, its training rule and what of it serves.

To add a method write one file in `models/methods/` and one line in
`models/registry.py`.  Everything a method needs of the outside stands here; the
trainer knows methods through this class only.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import tensorflow as tf
import tf_keras as keras
from pydantic import Field

from features.config import Config
from features.schema import ModelSchema
from models import losses, passes
from models.audit import Matrix, WeightAudit
from models.layers.partitioned_norm import PartitionedNorm
from models.optimizers.base import RowOptimizer
from models.optimizers.groups import OptimizerConfig, apply_gradients, make_optimizers
from tfrecords_tools.batch import Batch
from tfrecords_tools.selection import ALL_HASHES

Batches = dict[str, Batch]
Metrics = dict[str, tf.Tensor]
MAIN = "main"


@dataclasses.dataclass(frozen=True)
class Stream:
    """A named input: which rows, and how many of them a step.

    Attributes:
      split: Split to read.
      domains: Domains to keep; empty = all.
      batch_share: Rows a step as a share of the run's batch size.
      per_epoch: In place of `batch_share`: so many rows a step that one epoch, a pass
        of stream `main`, is a pass of this stream too.
      path: Another prepared folder (below the data folder), or "" for the data set.
      hash_range: Part of the rows to keep, [low, high) of a hash of `row_id` in 0..1
        (`read.row_hash`): streams with ranges that do not meet share no row, not
        even a row that is there twice.
      vectors: Folder of vectors (`RowVectors`) to add to its batches, as features
        `vectors/<name>` float32 [B, width]; "" for none.
      event_only: Drawn by periodic events only, never by a training step.
    """

    split: str = "train"
    domains: tuple[str, ...] = ()
    batch_share: float = 1.0
    per_epoch: bool = False
    path: str = ""
    hash_range: tuple[float, float] = ALL_HASHES
    vectors: str = ""
    event_only: bool = False


@dataclasses.dataclass(frozen=True)
class PeriodicEvent:
    """Something done every `every_steps` steps, after that step.

    `every_steps` may be text, as RunConfig.eval_every: "0.5 epochs" of the main stream.
    `run` is called outside the step function; it must be idempotent and keep all it
    remembers in `Method.extra_state`, so that a resumed run does the same.  With
    `takes_batch` it gets the next training batches; with `draws` a function
    `draw(stream) -> Batch | None` that gives the next batch of a stream each time it
    is called (None for an `event_only` stream without rows).
    """

    name: str
    every_steps: int | str
    run: Callable[..., Mapping[str, float] | None]
    takes_batch: bool = False
    draws: bool = False


class MethodConfig(Config):
    """Settings every method has; a method adds its own."""

    optimizer: OptimizerConfig = OptimizerConfig()
    loss: Literal["row_mean", "cell_mean"] = "row_mean"
    rows_per_pass: int = Field(
        0,
        ge=0,
        description="rows of one forward and backward pass; a larger batch takes "
        "several, whose gradients are added up to the same step; 0 = one pass",
    )


class Method(tf.Module, abc.ABC):
    """Base of all methods.  See DESIGN in the docs for the contract in words.

    Attributes:
      config: The method's own config.
      schema: Inputs, domains and tasks.
      model: `call(features, training=False) -> {task: float32 logits [B]}`, rows in
        input order, only the row's own domain head.
      optimizers: Optimiser per variable group; every trainable variable is in one.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: MethodConfig, schema: ModelSchema):
        super().__init__()
        # Any: a method's own Config class, which only the method itself knows.
        self.config: Any = config
        self.schema = schema
        self.model = self.build_model()
        build(self.model, schema)
        if config.rows_per_pass:
            self._check_passes()
        self.optimizers = make_optimizers(config.optimizer, self.variable_groups())

    @abc.abstractmethod
    def build_model(self) -> keras.Model:
        """Returns the training model (not yet built)."""

    def variable_groups(self) -> dict[str, list[tf.Variable]]:
        """Returns trainable variables by group; every variable exactly once.

        Groups `embedding` (updated row by row) and `dense` are known to
        `OptimizerConfig`; a method may add its own and give them an optimiser there.
        """
        groups: dict[str, list[tf.Variable]] = {"embedding": [], "dense": []}
        for variable in self.model.trainable_variables:
            is_table = "embedding_table" in variable.name
            groups["embedding" if is_table else "dense"].append(variable)
        return groups

    def streams(self) -> dict[str, Stream]:
        """Returns the input streams by name."""
        return {MAIN: Stream()}

    def serving_domains(self) -> tuple[str, ...]:
        """Returns the domains it is evaluated on and exported for, in index order."""
        return self.schema.domains

    def loss(self, batches: Batches) -> tuple[tf.Tensor, Metrics]:
        """Returns this replica's share of the loss, and scalars to log.

        The sum over replicas is the loss of the global batch: denominators are
        summed over replicas (`losses.global_sum`), numerators are not.
        """
        batch = batches[MAIN]
        logits = self.stacked_logits(batch, training=True)
        loss = losses.task_loss(
            logits, batch, self.config.loss, num_domains=self.schema.num_domains
        )
        return loss, {"loss": loss}

    def train_step(self, batches: Batches) -> Metrics:
        """Does one optimiser step in pure TensorFlow; returns scalars to log.

        Returned scalars are shares: the trainer sums them over replicas.
        """
        return self.step(batches, self.optimizers)

    def step(self, batches: Batches, optimizers: Mapping[str, RowOptimizer]) -> Metrics:
        """Lets these optimisers (all or some) take a step on `loss`."""
        if self.config.rows_per_pass:
            loss = passes.step(
                batches[MAIN],
                lambda part: self.stacked_logits(part, training=True),
                optimizers,
                rows=self.config.rows_per_pass,
                kind=self.config.loss,
                num_domains=self.schema.num_domains,
            )
            return {"loss": loss}
        with tf.GradientTape() as tape:
            loss, metrics = self.loss(batches)
        apply_gradients(tape, loss, optimizers)
        return metrics

    def _check_passes(self) -> None:
        """Refuses passes where a row's loss depends on other rows of the batch."""
        reason = ""
        if type(self).loss is not Method.loss:
            reason = "has a loss of its own over the whole batch"
        elif any(isinstance(part, PartitionedNorm) for part in self.model.submodules):
            reason = "normalises by statistics of the whole batch"
        if reason:
            raise ValueError(
                f"{type(self.config).__name__}.rows_per_pass must be 0 where rows of a "
                f"batch depend on each other; got {self.config.rows_per_pass}, but "
                f"{type(self).__name__} {reason}. Set it to 0 or lower "
                "RunConfig.batch_size."
            )

    def stacked_logits(self, batch: Batch, *, training: bool) -> tf.Tensor:
        """Returns logits [B, T] float32 of the training model."""
        features = {**batch.features, "valid": batch.valid}
        outputs = self.model(features, training=training)
        return tf.stack([outputs[task] for task in self.schema.tasks], axis=1)

    def periodic_events(self) -> list[PeriodicEvent]:
        """Returns events between steps (mask search, sync, fusion step ...)."""
        return []

    def extra_state(self) -> dict[str, Any]:
        """Returns trackables besides model and optimisers to put in checkpoints."""
        return {}

    def scalars(self) -> Mapping[str, float]:
        """Returns values to log at every evaluation (fusion weights, thresholds)."""
        return {}

    def audit_tables(self) -> Mapping[str, WeightAudit]:
        """Returns what was let in from other domains, by name (weights, gates)."""
        return {}

    def matrices(self) -> Mapping[str, Matrix]:
        """Returns tables to look at after training, by what they show."""
        return {}

    def watched_models(self) -> Mapping[str, keras.Model]:
        """Returns other models to score at every evaluation, by name.

        Their validation metrics are logged as `<name>/<metric>` and decide nothing.
        Same call contract and variables as `serving_model`; a pass over the rows each.
        """
        return {}

    def serving_model(self) -> keras.Model:
        """Returns the model that serves; same call contract, training=False."""
        return self.model

    def export_model(self) -> keras.Model:
        """Returns what is saved: the serving model with the weights of this moment.

        A method may turn into constants what only training moves (fusion weights,
        masks).
        """
        return self.serving_model()

    def serving_variables(self) -> list[tf.Variable]:
        """Returns the allow-list: exactly the variables the export may hold."""
        return list(self.export_model().variables)


def example_features(schema: ModelSchema, rows: int = 2) -> dict[str, tf.Tensor]:
    """Returns zero-valued inputs of the right shapes: builds models, traces calls."""
    features = {"domain": tf.zeros([rows], tf.int32)}
    for info in schema.features:
        if info.kind == "number":
            features[info.name] = tf.zeros([rows], tf.float32)
        elif info.kind == "id":
            if info.role != "domain":
                features[info.name] = tf.zeros([rows], tf.int32)
        else:
            features[info.name] = tf.zeros([rows, info.length], tf.int32)
    return features


def build(model: keras.Model, schema: ModelSchema) -> None:
    """Creates a model's variables by one call on example inputs."""
    model(example_features(schema), training=False)
