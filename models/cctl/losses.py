"""The losses of companion towers on a target and a source batch."""

from typing import Literal, NamedTuple

import tensorflow as tf

from models import losses
from models.cctl.model import CompanionModel, tower_logits
from models.layers import selector, tokens
from models.layers.mlp import MLP
from models.layers.representation import RepresentationEnhancement
from models.state import state_variable
from tfrecords_tools.batch import Batch


class Parts(NamedTuple):
    """What a forward pass over both streams gives; shares of this replica.

    Attributes:
      pure: Loss of the pure tower on target rows.
      target: Loss of the mixed tower on the same rows.
      source: Weighted loss of the mixed tower on source rows.
      ren_ids: Loss of the representation enhancement, of ids.
      ren_sequences: The same of sequences.
      score: Its gradient is the mean score of the selector.
      probs: p of source rows, float32 [B_s]; ones without a selector.
      mask: float32 [B_s], 1 for source rows that count.
      mean_prob: Mean of p over them.
    """

    pure: tf.Tensor
    target: tf.Tensor
    source: tf.Tensor
    ren_ids: tf.Tensor
    ren_sequences: tf.Tensor
    score: tf.Tensor
    probs: tf.Tensor
    mask: tf.Tensor
    mean_prob: tf.Tensor

    @property
    def ren(self) -> tf.Tensor:
        """Loss of the representation enhancement."""
        return self.ren_ids + self.ren_sequences


class CompanionLoss(tf.Module):
    """Losses of both towers, weights of source rows, and the score of the selector.

    Source: Zhang et al., KDD 2023 (CCTL), Eq. (3)-(5), (9), (12).
    Differs: see `CCTL`.

    Args:
      model: The towers.
      mode: `soft`: a source row weighs p; `bernoulli`: 1 with probability p, else 0.
      ren: Representation enhancement, or None.

    Attributes:
      draws: Seed and counter of the Bernoulli draws, int32 [2].
    """

    def __init__(
        self,
        model: CompanionModel,
        mode: Literal["soft", "bernoulli"],
        ren: RepresentationEnhancement | None,
    ):
        super().__init__()
        self._model, self._mode, self._ren = model, mode, ren
        self._num_domains = len(model.transfer.domains)
        seed = tf.random.uniform([], maxval=2**31 - 1, dtype=tf.int32)
        self.draws = state_variable(tf.stack([seed, 0]), "draws")

    def parts(self, main: Batch, source: Batch | None) -> Parts:
        """Returns all losses; pure: nothing is updated.

        Args:
          main: Target rows.
          source: Source rows; None where there are no sources.
        """
        model = self._model
        fields = model.target.by_field(main.features)
        mixed_x = pure_x = model.target.join(fields)
        if model.pure_target is model.target:
            # One target loss, in effect: as fast a table as that of a single model.
            mixed_x = pure_x = tokens.scale_gradient(mixed_x, 0.5)
        else:
            pure_x = model.pure_target(main.features)
        zero, none = tf.constant(0.0), tf.zeros([0])
        parts = Parts(
            pure=self._target(model.pure, pure_x, main),
            target=self._target(model.mixed, mixed_x, main),
            source=zero,
            ren_ids=zero,
            ren_sequences=zero,
            score=zero,
            probs=none,
            mask=none,
            mean_prob=zero,
        )
        if source is None:
            return parts
        if self._ren is not None:
            ids, sequences = self._ren.share(
                main.features, fields, model.source, row_mask(main)
            )
            parts = parts._replace(ren_ids=ids, ren_sequences=sequences)
        ratio = tf.shape(source.weight)[0] / tf.shape(main.weight)[0]
        return self._with_source(parts, source, tf.cast(ratio, tf.float32))

    def next_draws(self) -> None:
        """Makes the next step draw anew; in the step function."""
        self.draws.assign(self.draws + tf.constant([0, 1]))

    def _target(self, tower: MLP, x: tf.Tensor, batch: Batch) -> tf.Tensor:
        logits = tower_logits(tower, x, training=True)
        return losses.task_loss(
            logits, batch, "row_mean", num_domains=self._num_domains
        )

    def _with_source(self, parts: Parts, batch: Batch, ratio: tf.Tensor) -> Parts:
        """Adds what source rows give; `ratio` is B_s / B_t, also of a part batch."""
        model, mask = self._model, row_mask(batch)
        index = model.source_index(batch.features)
        x = model.source_rows(batch.features, index)
        probs = weights = tf.ones_like(mask)
        count, score = losses.global_sum(tf.reduce_sum(mask)), parts.score
        if model.selector is not None:
            logits = model.selector(x, index)
            probs = weights = tf.stop_gradient(tf.sigmoid(logits))
            taken = tf.ones_like(probs)
            if self._mode == "bernoulli":
                taken = weights = self._draw(probs)
            score = selector.score(logits, taken, mask, count)
        # A pass of their own, not joined to the target rows: where source rows weigh
        # nothing, both towers compute the same to the bit.
        logits = tower_logits(model.mixed, x, training=True)
        label_weights = batch.weight[:, tf.newaxis] * batch.label_mask  # [B, T]
        rows = label_weights * losses.bce(logits, batch.labels)
        means = tf.math.divide_no_nan(
            tf.reduce_sum(weights[:, tf.newaxis] * rows, axis=0),
            losses.global_sum(tf.reduce_sum(label_weights, axis=0)),
        )
        return parts._replace(
            source=ratio * tf.reduce_sum(means),
            score=score,
            probs=probs,
            mask=mask,
            mean_prob=tf.math.divide_no_nan(tf.reduce_sum(probs * mask), count),
        )

    def _draw(self, probs: tf.Tensor) -> tf.Tensor:
        """Returns 1 with probability p, else 0; the same within a step."""
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        seed = tf.identity(self.draws) + tf.stack([replica, 0])
        uniform = tf.random.stateless_uniform(tf.shape(probs), seed)
        return tf.cast(uniform < probs, tf.float32)


def row_mask(batch: Batch) -> tf.Tensor:
    """Returns float32 [B]: 1 for rows that are no padding and have a weight."""
    return tf.cast(tf.logical_and(batch.valid, batch.weight > 0), tf.float32)
