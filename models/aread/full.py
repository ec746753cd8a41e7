"""`FullTrial`: one candidate after the other, trained on all parameters."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from models.aread import trial
from models.aread.config import SearchConfig
from models.aread.masks import Mask
from models.layers import hierarchy_math
from models.losses import bce, task_mean
from models.optimizers.groups import (
    GroupConfig,
    OptimizerConfig,
    apply_gradients,
    make_optimizers,
)
from models.snapshot import VariableSnapshot
from tfrecords_tools.batch import Batch


class FullTrial:
    """Trains each candidate on all parameters from the same state, and puts it back.

    Every candidate starts with a fresh Adam of its own; the optimisers in training are
    not touched.

    Source: Luo et al., AAAI 2025 (AREAD), Algorithm 1, lines 6 to 15.
    Differs: the state is put back whole, bit by bit (the authors' code misses base
    experts and batch statistics); scores are taken without dropout and without the L2
    term.

    Args:
      model: With `all_outputs` and `hierarchy`.
      config: Settings of the search.
      groups: Trainable variables by group; tables in `embedding`.
    """

    def __init__(
        self,
        model: Any,
        config: SearchConfig,
        groups: dict[str, list[tf.Variable]],
    ):
        self.model = model
        self.config = config
        rate = config.candidate_learning_rate
        self._optimizers = make_optimizers(
            OptimizerConfig(
                embedding=GroupConfig(kind="lazy_adam", learning_rate=rate),
                dense=GroupConfig(learning_rate=rate),
            ),
            groups,
        )
        slots = [v for o in self._optimizers.values() for v in o.variables]
        self._fresh = VariableSnapshot(slots)
        self._step = tf.function(self._train_step, autograph=False)
        self._sums = tf.function(self._score_sums, autograph=False)

    def run(
        self,
        domain: int,
        candidates: Sequence[Mask],
        train: Sequence[Batch],
        score: Sequence[Batch],
    ) -> tuple[list[Mask], list[float]]:
        """Returns the pruned candidates and their losses on `score`.

        Every variable of the model, masks too, is then as before.

        Args:
          domain: Index of the domain that all batches are of.
          candidates: Z live masks.
          train: A batch a step.
          score: Batches to measure on, the same for all candidates.
        """
        before = VariableSnapshot(self.model.variables)
        found, scores = [], []
        try:
            for mask in candidates:
                before.restore()
                self._fresh.restore()
                found.append(self._train(domain, mask, train))
                scores.append(trial.task_sum(sum(map(self._numbers, score))))
        finally:
            before.restore()
        return found, scores

    def _train(self, domain: int, mask: Mask, batches: Sequence[Batch]) -> Mask:
        """Trains and prunes one candidate; the model is left in its state."""
        self._put(domain, mask)
        for batch in batches:
            self._step(batch)
            gates = [g[domain].numpy() for g in self.model.hierarchy.gates()]
            mask = trial.pruned(mask, gates, self.config)
            self._put(domain, mask)
            if trial.is_sparse(mask, self.config):
                break
        return mask

    def _put(self, domain: int, mask: Mask) -> None:
        for variable, layer in zip(self.model.hierarchy.masks, mask, strict=True):
            values = variable.numpy()
            values[domain] = layer
            variable.assign(values)

    def _train_step(self, batch: Batch) -> None:
        with tf.GradientTape() as tape:
            outputs, active = self.model.all_outputs(batch.features, training=True)
            values = hierarchy_math.bagging(
                outputs, active, batch.labels, self.config.bagging
            )
            domains = self.model.schema.num_domains
            loss = task_mean(values, batch, "row_mean", num_domains=domains)
        apply_gradients(tape, loss, self._optimizers)

    def _numbers(self, batch: Batch) -> Any:
        return self._sums(batch).numpy()

    def _score_sums(self, batch: Batch) -> tf.Tensor:
        """Returns [2, T]: sums of losses and of weights."""
        outputs, active = self.model.all_outputs(batch.features, training=False)
        values = bce(hierarchy_math.average_logits(outputs, active), batch.labels)
        weights = batch.weight[:, tf.newaxis] * batch.label_mask
        return tf.stack([tf.reduce_sum(values * weights, 0), tf.reduce_sum(weights, 0)])
