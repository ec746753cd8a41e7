"""Exact metrics of scored rows, NumPy float64: no thresholds, no sampling."""

import dataclasses
from typing import Any, Literal

import numpy as np

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class GroupedAUC:
    """AUC inside groups, averaged over groups.

    Attributes:
      value: Weighted mean in [0, 1]; None if no group has both classes.
      num_groups: Groups that count.
      num_skipped: Groups of one class, left out.
    """

    value: float | None
    num_groups: int
    num_skipped: int


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
    """Rows of similar predicted probability.

    Attributes:
      rows: Rows in the bin.
      mean_prob: Mean predicted probability.
      mean_label: Share of positives.
    """

    rows: int
    mean_prob: float
    mean_label: float


def auc(labels: Any, scores: Any, weights: Any = None) -> float | None:
    """Returns the area under the ROC curve: P(score of a positive > of a negative).

    Ties count one half.  Equal to the trapezoid area over all thresholds.

    Source: Mann and Whitney, 1947 (the U statistic over the number of pairs).
    Differs: pairs may be weighted by the product of row weights.

    Args:
      labels: [N] 0 or 1.
      scores: [N] logits or probabilities; finite.
      weights: [N] >= 0, or None for 1.

    Returns:
      Value in [0, 1], or None ("undefined") where a class has no row of weight > 0.

    Raises:
      ValueError: For NaN scores, labels other than 0 and 1, wrong shapes.

    >>> auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    labels, scores, weights = _checked("auc", labels, scores, weights)
    order = np.argsort(scores, kind="stable")
    scores = scores[order]
    positive = weights[order] * labels[order]
    negative = weights[order] - positive
    if positive.sum() <= 0 or negative.sum() <= 0:
        return None
    starts = _run_starts(scores[1:] != scores[:-1])
    positive = np.add.reduceat(positive, starts)  # by distinct score
    negative = np.add.reduceat(negative, starts)
    below = np.cumsum(negative) - 0.5 * negative
    return float(positive @ below / (positive.sum() * negative.sum()))


def logloss(
    labels: Any, *, logits: Any = None, probs: Any = None, weights: Any = None
) -> float | None:
    """Returns the weighted mean of `-log p(label)`; None without rows.

    Args:
      labels: [N] 0 or 1.
      logits: [N]; exact for any size.  Give these or `probs`.
      probs: [N] in [0, 1]; clipped to one float64 step from 0 and 1.
      weights: [N] >= 0, or None for 1.

    >>> round(logloss([1, 0], probs=[0.5, 0.5]), 4)
    0.6931
    """
    if (logits is None) == (probs is None):
        raise ValueError(
            "logloss must get exactly one of logits and probs; got "
            f"{'neither' if logits is None else 'both'}."
        )
    given = logits if probs is None else probs
    labels, given, weights = _checked("logloss", labels, given, weights)
    if weights.sum() <= 0:
        return None
    if probs is None:
        losses = np.logaddexp(0.0, given) - labels * given
    else:
        _check_probs("logloss", given)
        step = np.finfo(np.float64).eps
        clipped = np.clip(given, step, 1.0 - step)
        losses = -np.log(np.where(labels == 1, clipped, 1.0 - clipped))
    return float(np.average(losses, weights=weights))


def pcoc(labels: Any, probs: Any, weights: Any = None) -> float | None:
    """Returns predicted over observed positives; 1 = calibrated, > 1 = too high.

    Args:
      labels: [N] 0 or 1.
      probs: [N] in [0, 1].
      weights: [N] >= 0, or None for 1.

    Returns:
      The ratio, or None without positives.
    """
    labels, probs, weights = _checked("pcoc", labels, probs, weights)
    _check_probs("pcoc", probs)
    observed = weights @ labels
    return float(weights @ probs / observed) if observed > 0 else None


def gauc(
    labels: Any,
    scores: Any,
    groups: Any,
    weight: Literal["impressions", "clicks", "uniform"] = "impressions",
) -> GroupedAUC:
    """Returns the mean of AUCs inside groups (users), groups of one class left out.

    Source: Zhu et al. (OCPC), KDD 2017, section 4.2.
    Differs: none.

    Args:
      labels: [N] 0 or 1.
      scores: [N] finite.
      groups: [N] ids of any sortable type.
      weight: What a group counts for: its rows, its positives, or 1.
    """
    if weight not in ("impressions", "clicks", "uniform"):
        raise ValueError(
            f"gauc.weight must be 'impressions', 'clicks' or 'uniform'; got {weight!r}."
        )
    labels, scores, _ = _checked("gauc", labels, scores, None)
    groups = np.asarray(groups)
    if groups.shape != labels.shape:
        raise ValueError(
            f"gauc.groups must have shape {labels.shape}; got {groups.shape}."
        )
    if labels.size == 0:
        return GroupedAUC(None, 0, 0)
    order = np.lexsort((scores, groups))
    labels, scores, groups = labels[order], scores[order], groups[order]
    new_group = groups[1:] != groups[:-1]
    ties = _run_starts(new_group | (scores[1:] != scores[:-1]))
    starts = _run_starts(new_group)
    positive = np.add.reduceat(labels, starts)  # by group
    rows = np.diff(np.append(starts, labels.size)).astype(np.float64)
    # Negatives below, over all groups; those of earlier groups come off per group.
    tie_positive = np.add.reduceat(labels, ties)
    tie_negative = np.diff(np.append(ties, labels.size)) - tie_positive
    below = np.cumsum(tie_negative) - 0.5 * tie_negative
    pairs = np.add.reduceat(tie_positive * below, np.searchsorted(ties, starts))
    negative = rows - positive
    pairs -= positive * (np.cumsum(negative) - negative)
    kept = (positive > 0) & (negative > 0)
    if not kept.any():
        return GroupedAUC(None, 0, int(kept.size))
    values = pairs[kept] / (positive[kept] * negative[kept])
    counts = {"impressions": rows, "clicks": positive, "uniform": np.ones_like(rows)}
    value = float(np.average(values, weights=counts[weight][kept]))
    return GroupedAUC(value, int(kept.sum()), int((~kept).sum()))


def calibration_bins(
    labels: Any, probs: Any, num_bins: int = 10
) -> list[CalibrationBin]:
    """Returns bins of (nearly) equally many rows, by rising predicted probability.

    Args:
      labels: [N] 0 or 1.
      probs: [N] in [0, 1].
      num_bins: >= 1; fewer come out if there are fewer rows.
    """
    labels, probs, _ = _checked("calibration_bins", labels, probs, None)
    _check_probs("calibration_bins", probs)
    if num_bins < 1:
        raise ValueError(
            f"calibration_bins.num_bins must be >= 1; got {num_bins}. Take 10."
        )
    order = np.argsort(probs, kind="stable")
    parts = np.array_split(order, min(num_bins, max(order.size, 1)))
    return [
        CalibrationBin(p.size, float(probs[p].mean()), float(labels[p].mean()))
        for p in parts
        if p.size
    ]


def rimp(value: float | None, reference: float | None) -> float | None:
    """Returns `value / reference - 1`, SSCTL's and ECAT's RImp; None if undefined."""
    if value is None or not reference:
        return None
    return value / reference - 1.0


def relaimpr(value: float | None, reference: float | None) -> float | None:
    """Returns `(value - 0.5) / (reference - 0.5) - 1`, M3oE's RelaImpr.

    Args:
      value: AUC in [0, 1].
      reference: AUC it is compared with.

    Returns:
      A ratio (0.02 = 2 %), or None where either is undefined or the reference is 0.5.

    >>> round(relaimpr(0.7661, 0.7607), 4)
    0.0207
    """
    if value is None or reference is None or reference == 0.5:
        return None
    return (value - 0.5) / (reference - 0.5) - 1.0


def probs_of(logits: Any) -> Array:
    """Returns sigmoid(logits) in float64, without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


def _checked(
    owner: str, labels: Any, scores: Any, weights: Any
) -> tuple[Array, Array, Array]:
    labels = np.asarray(labels, np.float64)
    scores = np.asarray(scores, np.float64)
    weights = np.ones_like(labels) if weights is None else np.asarray(weights, float)
    for name, array in (("labels", labels), ("scores", scores), ("weights", weights)):
        if array.ndim != 1 or array.shape != labels.shape:
            raise ValueError(
                f"{owner}.{name} must be of one shape [N]; got {array.shape} beside "
                f"labels {labels.shape}."
            )
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(
            f"{owner}.scores must be finite; got {scores[bad]} (row {bad}). "
            "Find the step where the model diverged."
        )
    wrong = (labels != 0) & (labels != 1)
    if wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{owner}.labels must be 0 or 1; got {labels[bad]} (row {bad}). "
            "Leave masked rows out."
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"{owner}.weights must be finite and >= 0.")
    return labels, scores, weights


def _check_probs(owner: str, probs: Array) -> None:
    if probs.size and (probs.min() < 0 or probs.max() > 1):
        raise ValueError(
            f"{owner}.probs must be in [0, 1]; got {probs.min()} to {probs.max()}. "
            "Pass logits through probs_of first."
        )


def _run_starts(change: Array) -> Array:
    """Index of the first element of each run, from where neighbours differ."""
    return np.concatenate(([0], np.flatnonzero(change) + 1))
