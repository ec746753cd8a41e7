"""`PseudoLabelling`: what the classifier of domains learns from, and says."""

from typing import Any, NamedTuple

import tensorflow as tf

from models import losses
from models.audit import WeightAudit
from models.layers.pseudo_domains import (
    PRIOR_FLOOR,
    ConfidenceWeights,
    DomainClasses,
    MovingMean,
    pseudo_labels,
)
from tfrecords_tools.batch import Batch

Metrics = dict[str, tf.Tensor]


class Copies(NamedTuple):
    """The copies of a batch's rows in their pseudo domains, row by row.

    Attributes:
      domain: Pseudo domain index, int32 [B].
      weight: float32 [B] in 0..1; 0 for rows that are not copied.
    """

    domain: tf.Tensor
    weight: tf.Tensor


class PseudoLabelling(tf.Module):
    """Losses of the classifier, copies of dominant rows, and the state of both.

    Source: Liu et al., 2025 (SSCTL), Eq. (3) and (4).
    Differs: options `balance_labels` and `balance_classes` for classes of very
    different sizes.

    Args:
      classes: What the classifier tells apart.
      confidence: Gives copies their weight; None = no copies are asked for.
      momentum: Of the moving shares of the classes; see `MovingMean`.
      bias_correction: Likewise.
      balance_labels: Divide probabilities by the classes' shares before choosing.
      balance_classes: Weigh each class by the inverse of its share in the loss.
      focal_gamma: See `losses.softmax_focal`.
      audit: Takes in the weights of copies by pseudo domain; None = no audit.
      audit_feature: Feature it takes values of, "" = none.
    """

    def __init__(
        self,
        classes: DomainClasses,
        confidence: ConfidenceWeights | None,
        *,
        momentum: float,
        bias_correction: bool,
        balance_labels: bool = False,
        balance_classes: bool = False,
        focal_gamma: float = 2.0,
        audit: WeightAudit | None = None,
        audit_feature: str = "",
    ):
        super().__init__(name="pseudo_labelling")
        self.audit, self.audit_feature = audit, audit_feature
        self.classes, self.confidence = classes, confidence
        self.balance_labels, self.balance_classes = balance_labels, balance_classes
        self.focal_gamma = focal_gamma
        self.shares: MovingMean | None = None
        if balance_labels or balance_classes:
            self.shares = MovingMean(
                classes.count,
                start=1.0 / classes.count,
                momentum=momentum,
                bias_correction=bias_correction,
                name="class_shares",
            )

    def classifier_loss(
        self, class_logits: tf.Tensor, batch: Batch
    ) -> tuple[tf.Tensor, Metrics]:
        """Returns this replica's share of the mean focal loss, and of the accuracy.

        Over rows of the classes' domains; 0 without such rows.

        Args:
          class_logits: [B, M] float32, in the order of the batch.
          batch: Its domain, weight and valid are read.
        """
        label = self.classes.class_of(batch.domain)
        counted = _counted(batch) & (label >= 0)
        self._move_shares(label, counted)
        weights = tf.where(counted, batch.weight, 0.0)
        right = tf.argmax(class_logits, axis=1, output_type=tf.int32) == label
        accuracy = _mean(tf.cast(right, tf.float32), weights)
        if self.balance_classes and self.shares is not None:
            inverse = 1.0 / tf.maximum(self.shares.value, PRIOR_FLOOR)
            weights *= tf.gather(inverse, tf.maximum(label, 0))
        focal = losses.softmax_focal(class_logits, label, gamma=self.focal_gamma)
        loss = _mean(tf.where(counted, focal, 0.0), weights)
        return loss, {"classifier_loss": loss, "classifier_accuracy": accuracy}

    def copies(self, class_logits: tf.Tensor, batch: Batch) -> tuple[Copies, Metrics]:
        """Returns the copies of dominant rows; moves the confidence statistics first.

        Metrics are means over dominant rows: the weight, and the share that each
        pseudo domain has of them.

        Args:
          class_logits: [B, M] float32, in the order of the batch.
          batch: Its domain, weight and valid are read.
        """
        if self.confidence is None:
            raise TypeError("PseudoLabelling.copies needs confidence weights.")
        prior: Any = None
        if self.balance_labels and self.shares is not None:
            prior = tf.convert_to_tensor(self.shares.value)
        labels = pseudo_labels(class_logits, self.classes, prior)
        counted = _counted(batch) & (self.classes.class_of(batch.domain) < 0)
        self.confidence.update(labels.confidence, labels.label, counted)
        weight = self.confidence.weights(labels.confidence, labels.label)
        weight = tf.where(counted, weight, 0.0)
        ones = tf.cast(counted, tf.float32)
        if self.audit is not None:
            values = batch.features.get(self.audit_feature)
            self.audit.add(weight, labels.label, ones, values)
        member = tf.one_hot(labels.label, self.classes.count)
        metrics = {"pseudo_mean_weight": _mean(weight, ones)}
        for name, column in zip(
            self.classes.names, tf.unstack(member, axis=1), strict=True
        ):
            metrics[f"pseudo_share/{name}"] = _mean(column, ones)
        return Copies(labels.domain, weight), metrics

    def metric_names(self) -> list[str]:
        """Returns the names of all metrics that it gives."""
        names = ["classifier_loss", "classifier_accuracy"]
        if self.confidence is not None:
            names.append("pseudo_mean_weight")
            names += [f"pseudo_share/{name}" for name in self.classes.names]
        return names

    def scalars(self) -> dict[str, float]:
        """Returns mean and sigma of confidences, over all or by pseudo domain."""
        if self.confidence is None:
            return {}
        mean = self.confidence.mean.numpy()
        sigma = self.confidence.variance.numpy() ** 0.5
        ends = [f"/{n}" for n in self.classes.names] if len(mean) > 1 else [""]
        given = {}
        for end, mu, width in zip(ends, mean, sigma, strict=True):
            given[f"confidence_mean{end}"] = float(mu)
            given[f"confidence_sigma{end}"] = float(width)
        return given

    def _move_shares(self, label: tf.Tensor, counted: tf.Tensor) -> None:
        if self.shares is None:
            return
        member = tf.one_hot(label, self.classes.count)
        member *= tf.cast(counted, tf.float32)[:, tf.newaxis]
        count = losses.global_sum(tf.reduce_sum(member, axis=0))
        rows = tf.reduce_sum(count)
        is_seen = tf.fill([self.classes.count], rows > 0)
        self.shares.update(tf.math.divide_no_nan(count, rows), is_seen)


def copies_loss(
    logits: tf.Tensor,
    copy_logits: tf.Tensor,
    batch: Batch,
    copies: Copies,
    kind: losses.LossKind,
    *,
    num_domains: int,
) -> tf.Tensor:
    """Returns the share of what copies add to `losses.task_loss` of the rows.

    `row_mean`: `sum_t sum_b w_b l(copy b) / (real rows of task t)`: per real row, not
    per copy, so that a weight means the same in every batch.  `cell_mean`: a copy is
    one more row, of weight w_b, in the cell of its pseudo domain.

    Args:
      logits: Of the rows in their own domain, [B, T].
      copy_logits: Of the same rows in their pseudo domain, [B, T].
      batch: The rows.
      copies: Pseudo domain and weight w of each.
      kind: `row_mean` or `cell_mean`.
      num_domains: D.
    """
    weight = batch.weight * copies.weight
    if kind == "row_mean":
        mask = batch.label_mask
        rows = losses.global_sum(tf.tensordot(batch.weight, mask, axes=1))
        each = weight[:, tf.newaxis] * mask * losses.bce(copy_logits, batch.labels)
        shares = tf.math.divide_no_nan(tf.reduce_sum(each, axis=0), rows)
        return tf.reduce_sum(shares)
    both = batch._replace(
        features={"domain": tf.concat([batch.domain, copies.domain], axis=0)},
        labels=tf.concat([batch.labels] * 2, axis=0),
        label_mask=tf.concat([batch.label_mask] * 2, axis=0),
        weight=tf.concat([batch.weight, weight], axis=0),
    )
    total = losses.task_loss(
        tf.concat([logits, copy_logits], axis=0), both, kind, num_domains=num_domains
    )
    return total - losses.task_loss(logits, batch, kind, num_domains=num_domains)


def _counted(batch: Batch) -> tf.Tensor:
    return batch.valid & (batch.weight > 0)


def _mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Returns this replica's share of the weighted mean; 0 where nothing weighs."""
    total = losses.global_sum(tf.reduce_sum(weights))
    return tf.math.divide_no_nan(tf.reduce_sum(weights * values), total)
