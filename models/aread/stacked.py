"""`StackedTrial`: all candidates of a domain trained side by side, the base frozen."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from models.aread import trial
from models.aread.config import SearchConfig
from models.aread.masks import Mask
from models.layers import hierarchy_math
from models.layers.hierarchy import DOMAIN
from models.losses import bce
from tfrecords_tools.batch import Batch

Tensors = dict[str, tf.Tensor]
# Adam's published decays and epsilon, as in `GroupConfig`.
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclasses.dataclass(frozen=True)
class Copies:
    """Z copies of the hierarchy's weights in training: [Z, ...] each.

    Attributes:
      weights: By name; the domain's vector in place of all domains'.
      first: Adam's first moments.
      second: Adam's second moments.
    """

    weights: Tensors
    first: Tensors
    second: Tensors


class _Rows(NamedTuple):
    """Frozen rows: all that trials of a batch share.

    Attributes:
      inputs: Of the hierarchy, [N_1, R, I].
      added: To its outputs, [N_L, R, T] or 0.
      labels: [R, T].
      weights: Of labels, [R, T].
    """

    inputs: tf.Tensor
    added: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor


class StackedTrial:
    """Trains Z candidates of a domain as one model, on the hierarchy only.

    Embeddings and base experts are frozen, so their outputs are computed once a batch
    for all candidates.  Copies are tensors, never variables: the weights in training
    are not touched at all.

    Differs: the paper trains each candidate on all parameters (`FullTrial`); no
    dropout in the few steps of a candidate.

    Args:
      model: With `base` and `hierarchy`.
      config: Settings of the search.
    """

    def __init__(self, model: Any, config: SearchConfig):
        self.model = model
        self.config = config
        self._base = tf.function(model.base, autograph=False)
        self._step = tf.function(self._train_step, autograph=False)
        self._gates = tf.function(self._gates_of, autograph=False)
        self._sums = tf.function(self._score_sums, autograph=False)

    def run(
        self,
        domain: int,
        candidates: Sequence[Mask],
        train: Sequence[Batch],
        score: Sequence[Batch],
    ) -> tuple[list[Mask], list[float]]:
        """Returns the pruned candidates and their losses on `score`.

        Args:
          domain: Index of the domain that all batches are of.
          candidates: Z live masks.
          train: A batch a step.
          score: Batches to measure on, the same for all candidates.
        """
        found = list(candidates)
        copies = self.start(domain, len(found))
        running = np.ones(len(found), bool)
        for number, batch in enumerate(train, start=1):
            copies = self.train_step(copies, self.rows(batch), found, running, number)
            gates = [g.numpy() for g in self._gates(copies.weights, stack(found))]
            for z in np.flatnonzero(running):
                own = [g[z] for g in gates]
                found[z] = trial.pruned(found[z], own, self.config)
                running[z] = not trial.is_sparse(found[z], self.config)
            if not running.any():
                break
        return found, self.score(copies, found, score)

    def start(self, domain: int, count: int) -> Copies:
        """Returns copies of the present weights with fresh moments."""
        weights = {}
        for name, variable in self.model.hierarchy.named.items():
            value = tf.convert_to_tensor(variable)
            value = value[domain] if name == DOMAIN else value
            weights[name] = tf.broadcast_to(value, [count, *value.shape])
        zeros = {name: tf.zeros_like(value) for name, value in weights.items()}
        return Copies(weights, zeros, zeros)

    def rows(self, batch: Batch) -> _Rows:
        """Returns a batch with what the base computes in place of features."""
        inputs, added = self._base(batch.features)
        return _Rows(
            tf.cast(inputs, tf.float32),
            tf.cast(added, tf.float32),
            batch.labels,
            batch.weight[:, tf.newaxis] * batch.label_mask,
        )

    def train_step(
        self,
        copies: Copies,
        rows: _Rows,
        masks: Sequence[Mask],
        running: np.ndarray,
        number: int,
    ) -> Copies:
        """Returns the copies after one Adam step; those not `running` stay.

        Args:
          copies: Z of them.
          rows: A batch.
          masks: Z masks.
          running: bool [Z].
          number: Of the step, from 1.
        """
        after = self._step(
            (copies.weights, copies.first, copies.second),
            stack(masks),
            rows,
            tf.constant(running),
            tf.constant(number, tf.float32),
        )
        return Copies(*after)

    def score(
        self, copies: Copies, masks: Sequence[Mask], batches: Sequence[Batch]
    ) -> list[float]:
        """Returns each candidate's loss: cross-entropy of the average, over rows."""
        total: Any = 0.0
        for batch in batches:
            sums = self._sums(copies.weights, stack(masks), self.rows(batch))
            total += sums.numpy()
        return [trial.task_sum(part) for part in total]

    def _outputs(
        self, weights: Tensors, masks: list[tf.Tensor], rows: _Rows
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns outputs [Z, N_L, R, T] and active [Z, N_L, 1, 1]."""
        hierarchy = self.model.hierarchy
        matrices = [
            hierarchy_math.mixing(logits, mask)
            for logits, mask in zip(self._logits(weights, masks), masks, strict=True)
        ]

        def mix(layer: int, e: tf.Tensor) -> tf.Tensor:
            count, size, width = e.shape[0], tf.shape(e)[2], e.shape[3]
            flat = tf.reshape(e, [count, e.shape[1], -1])
            mixed = tf.matmul(matrices[layer - 1], flat)
            return tf.reshape(mixed, [count, mixed.shape[1], size, width])

        outputs = hierarchy_math.run_experts(
            weights, rows.inputs, mix, hierarchy.depths, norm=hierarchy.norm
        )
        active = tf.reduce_max(masks[-1], axis=1)
        return outputs + rows.added, active[..., tf.newaxis, tf.newaxis]

    def _logits(self, weights: Tensors, masks: list[tf.Tensor]) -> list[tf.Tensor]:
        return hierarchy_math.gate_logits(
            weights,
            weights[DOMAIN],
            tf.reduce_max(masks[0], axis=2),
            len(self.model.hierarchy.num_experts),
        )

    def _gates_of(self, weights: Tensors, masks: list[tf.Tensor]) -> list[tf.Tensor]:
        return [tf.nn.softmax(logits) for logits in self._logits(weights, masks)]

    def _train_step(
        self,
        copies: tuple[Tensors, Tensors, Tensors],
        masks: list[tf.Tensor],
        rows: _Rows,
        running: tf.Tensor,
        number: tf.Tensor,
    ) -> tuple[Tensors, Tensors, Tensors]:
        weights, first, second = copies
        with tf.GradientTape() as tape:
            tape.watch(weights)
            outputs, active = self._outputs(weights, masks, rows)
            values = hierarchy_math.bagging(
                outputs, active, rows.labels, self.config.bagging
            )
            # Copies share nothing, so the sum gives each the gradient of its own loss.
            loss = tf.reduce_sum(
                tf.math.divide_no_nan(
                    tf.reduce_sum(values * rows.weights, axis=1),
                    tf.reduce_sum(rows.weights, axis=0),
                )
            )
        gradients = tape.gradient(loss, weights)
        after: tuple[Tensors, Tensors, Tensors] = ({}, {}, {})
        for name, gradient in gradients.items():
            old = (weights[name], first[name], second[name])
            keep = tf.reshape(running, [-1] + [1] * (gradient.shape.rank - 1))
            rate = self.config.candidate_learning_rate
            new = _adam(*old, gradient, rate=rate, number=number)
            for kept, a, b in zip(after, new, old, strict=True):
                kept[name] = tf.where(keep, a, b)
        return after

    def _score_sums(
        self,
        weights: Tensors,
        masks: list[tf.Tensor],
        rows: _Rows,
    ) -> tf.Tensor:
        """Returns [Z, 2, T]: sums of losses and of weights."""
        outputs, active = self._outputs(weights, masks, rows)
        logits = hierarchy_math.average_logits(outputs, active)
        values = bce(logits, tf.broadcast_to(rows.labels, tf.shape(logits)))
        sums = tf.reduce_sum(values * rows.weights, axis=1)
        counts = tf.reduce_sum(rows.weights, axis=0)
        return tf.stack([sums, tf.broadcast_to(counts, tf.shape(sums))], axis=1)


def stack(masks: Sequence[Mask]) -> list[tf.Tensor]:
    """Returns the masks of Z candidates as tensors [Z, N_l, N_{l+1}] float32."""
    return [
        tf.constant(np.stack(layer), tf.float32) for layer in zip(*masks, strict=True)
    ]


def _adam(
    weight: tf.Tensor,
    first: tf.Tensor,
    second: tf.Tensor,
    gradient: tf.Tensor,
    *,
    rate: float,
    number: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns weight and moments after step `number` (from 1) of Adam."""
    first = BETA_1 * first + (1.0 - BETA_1) * gradient
    second = BETA_2 * second + (1.0 - BETA_2) * tf.square(gradient)
    root = tf.sqrt(second / (1.0 - tf.pow(BETA_2, number)))
    step = rate * first / (1.0 - tf.pow(BETA_1, number)) / (root + EPSILON)
    return weight - step, first, second
