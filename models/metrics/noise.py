"""How sure an AUC difference is: noise of the test rows and noise of the seeds.

Everything about test rows rests on one thing: the *influence* of each row on an AUC.
Its sum of squares is the variance (DeLong), its inner product with another model's is
the covariance, sums inside a user make both honest where a user has many rows, and
sums over cells carry them to means over domains and tasks.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from models.metrics.auc import auc as auc_of

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """Difference of two correlated numbers against 0.

    Attributes:
      difference: a - b.
      standard_error: Of the difference; None if undefined.
      p_value: Two-sided; None if undefined.
    """

    difference: float | None
    standard_error: float | None
    p_value: float | None


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Resampled difference of two models' mean AUC over cells.

    Attributes:
      difference: a - b on all rows.
      standard_error: Standard deviation over resamples.
      low: Lower end of the 95 % percentile interval.
      high: Upper end.
      p_value: Two-sided: twice the smaller share of resamples beyond 0, at least
        1 / resamples.
      num_resamples: Resamples drawn.
      num_undefined: (cell, resample) pairs of one class, left out of their mean.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    num_resamples: int
    num_undefined: int


@dataclasses.dataclass(frozen=True)
class SeedStats:
    """Mean and spread over seeds; std with n - 1, None for a single seed."""

    mean: float
    std: float | None
    num_seeds: int


def influence(labels: Any, scores: Any) -> tuple[float | None, Array]:
    """Returns the AUC and each row's influence on it.

    With V10 the share of negatives that a positive beats and V01 the share of
    positives that beat a negative (ties one half), m positives and n negatives:
    `(V10 - AUC) / sqrt(m (m-1))` and `(V01 - AUC) / sqrt(n (n-1))`, so that the sum
    of squares is DeLong's variance `S10 / m + S01 / n`.

    Source: DeLong et al., Biometrics 1988; sorting as in Sun and Xu, 2014.
    Differs: none in value; kept by row so that rows can be summed by user or cell.

    Args:
      labels: [N] 0 or 1.
      scores: [N] finite.

    Returns:
      AUC (None with a class missing) and [N] float64: 0 where the AUC is undefined,
      NaN where a class has a single row (no variance).
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    value = auc_of(labels, scores)
    result = np.zeros(labels.shape, np.float64)
    if value is None:
        return None, result
    is_positive = labels == 1
    positive, negative = scores[is_positive], scores[~is_positive]
    m, n = positive.size, negative.size
    if min(m, n) < 2:
        return value, np.full_like(result, np.nan)
    result[is_positive] = (_share_below(positive, negative) - value) / math.sqrt(
        m * (m - 1)
    )
    result[~is_positive] = (1.0 - _share_below(negative, positive) - value) / math.sqrt(
        n * (n - 1)
    )
    return value, result


def delong_variance(labels: Any, scores: Any) -> float | None:
    """Returns the variance of one AUC over draws of test rows; None if undefined."""
    value, rows = influence(labels, scores)
    return None if value is None else _number(rows @ rows)


def delong_covariance(labels: Any, scores: Any) -> tuple[Array, Array]:
    """Returns AUCs [M] and their covariance [M, M] for M models on the same rows.

    Args:
      labels: [N] 0 or 1, both present at least twice.
      scores: [M, N] finite.
    """
    pairs = [influence(labels, s) for s in scores]
    if any(value is None for value, _ in pairs):
        raise ValueError(
            "delong_covariance.labels must hold both classes; got one. "
            "Leave this cell out and count it as undefined."
        )
    rows = np.stack([rows for _, rows in pairs])
    return np.array([value for value, _ in pairs]), rows @ rows.T


def delong_test(
    labels: Any, scores_a: Any, scores_b: Any, units: Any = None
) -> PairedTest:
    """Returns the test of two correlated AUCs on the same rows.

    Source: DeLong et al., Biometrics 1988; with units Obuchowski, Biometrics 1997.
    Differs: with units, no factor I/(I-1) for the number of units.

    Args:
      labels: [N] 0 or 1.
      scores_a: [N] of model a.
      scores_b: [N] of model b.
      units: [N] ids of what is drawn (users); None = rows.
    """
    a, rows_a = influence(labels, scores_a)
    b, rows_b = influence(labels, scores_b)
    if a is None or b is None:
        return PairedTest(None, None, None)
    return normal_test(a - b, _by_unit(rows_a - rows_b, _codes(units)))


def normal_test(difference: float, rows: Array) -> PairedTest:
    """Returns the z test of a difference whose influence by unit is `rows`."""
    return _normal(difference, _number(math.sqrt(rows @ rows)))


def combine(difference: float, errors: Sequence[float | None]) -> PairedTest:
    """Returns the z test of a difference with independent errors; None is left out."""
    known = [e for e in errors if e is not None]
    return _normal(difference, math.hypot(*known) if known else None)


def paired_bootstrap(
    *,
    domain: Any,
    labels: Any,
    scores_a: Any,
    scores_b: Any,
    label_mask: Any = None,
    units: Any = None,
    num_resamples: int = 200,
    seed: int = 0,
) -> Bootstrap:
    """Returns the difference in mean AUC over (domain, task) cells, resampled.

    All cells and both models see the same resample.  Rows (or whole units) are drawn
    with replacement over the full test set, which enters as integer weights on scores
    sorted once.

    Args:
      domain: [N] int, >= 0.
      labels: [N, T] 0 or 1.
      scores_a: [N, T] finite, of model a.
      scores_b: [N, T] of model b.
      label_mask: [N, T], nonzero where the label counts; None = all.
      units: [N] ids of what is drawn (users); None = rows.
      num_resamples: >= 2.
      seed: Of the draws.

    Raises:
      ValueError: If no cell has both classes, or for fewer than 2 resamples.
    """
    if num_resamples < 2:
        raise ValueError(
            "paired_bootstrap.num_resamples must be >= 2; "
            f"got {num_resamples}. Take 200."
        )
    domain, labels = np.asarray(domain), np.asarray(labels)
    both = np.asarray(scores_a), np.asarray(scores_b)
    cells = _sorted_cells(domain, labels, both, _mask(label_mask, labels))
    if not cells:
        raise ValueError(
            "paired_bootstrap.labels must hold both classes in some cell; got none."
        )
    codes = _codes(units)
    codes = np.arange(domain.size) if codes is None else codes
    difference = _cell_differences(cells, np.ones(domain.size)).mean()
    drawn, undefined = _resample(cells, codes, num_resamples, seed)
    beyond = min((drawn <= 0).mean(), (drawn >= 0).mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Bootstrap(
        difference=float(difference),
        standard_error=float(drawn.std(ddof=1)),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, max(2 * beyond, 1 / num_resamples))),
        num_resamples=num_resamples,
        num_undefined=undefined,
    )


def seed_stats(values: Sequence[float] | Array) -> SeedStats:
    """Returns mean and spread of one number over seeds."""
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ValueError("seed_stats.values must hold at least one seed; got none.")
    std = float(array.std(ddof=1)) if array.size > 1 else None
    return SeedStats(float(array.mean()), std, int(array.size))


def seed_test(a: Sequence[float] | Array, b: Sequence[float] | Array) -> PairedTest:
    """Returns the t test over seeds: paired for equal numbers of seeds, else Welch.

    Args:
      a: One number per seed, model a; the i-th seed of both is the same seed.
      b: The same of model b.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    difference = float(first.mean() - second.mean())
    if min(first.size, second.size) < 2:
        return PairedTest(difference, None, None)
    if first.size == second.size:
        error = float((first - second).std(ddof=1) / math.sqrt(first.size))
        degrees = first.size - 1.0
    else:
        parts = [x.var(ddof=1) / x.size for x in (first, second)]
        error = math.sqrt(sum(parts))
        spread = sum(
            p**2 / (x.size - 1) for p, x in zip(parts, (first, second), strict=True)
        )
        degrees = sum(parts) ** 2 / spread if spread else 1.0
    if error == 0:
        return PairedTest(difference, 0.0, 1.0 if difference == 0 else 0.0)
    p_value = 2 * stats.t.sf(abs(difference) / error, degrees)
    return PairedTest(difference, error, float(p_value))


class _Sorted:
    """Rows of one cell sorted by one model's score, for many weighted AUCs."""

    def __init__(self, labels: Array, scores: Array, rows: Array) -> None:
        order = np.argsort(scores, kind="stable")
        ranked = scores[order]
        if not np.isfinite(ranked).all():
            raise ValueError("paired_bootstrap.scores must be finite; got NaN or inf.")
        self.rows, self.labels = rows[order], labels[order].astype(np.float64)
        change = np.flatnonzero(ranked[1:] != ranked[:-1]) + 1
        self.starts = np.concatenate(([0], change))

    def auc(self, weights: Array) -> float:
        weights = weights[self.rows]
        positive = np.add.reduceat(weights * self.labels, self.starts)
        negative = np.add.reduceat(weights, self.starts) - positive
        pairs = positive.sum() * negative.sum()
        if pairs <= 0:
            return np.nan
        return positive @ (np.cumsum(negative) - 0.5 * negative) / pairs


def _sorted_cells(
    domain: Array, labels: Array, both: Sequence[Array], mask: Array
) -> list[tuple[_Sorted, ...]]:
    """Each cell that has both classes, sorted by either model."""
    return [
        tuple(_Sorted(labels[kept, t], s[kept, t], kept) for s in both)
        for d in np.unique(domain)
        for t in range(labels.shape[1])
        if (kept := np.flatnonzero((domain == d) & mask[:, t])).size
        and 0 < labels[kept, t].sum() < kept.size
    ]


def _resample(
    cells: list[tuple[_Sorted, ...]], codes: Array, num_resamples: int, seed: int
) -> tuple[Array, int]:
    """Mean differences of the resamples that have one; cells of one class in all."""
    num_units = int(codes.max()) + 1
    rng = np.random.default_rng(seed)
    drawn, undefined = np.empty(num_resamples), 0
    for i in range(num_resamples):
        counts = np.bincount(
            rng.integers(num_units, size=num_units), minlength=num_units
        )
        values = _cell_differences(cells, counts[codes].astype(np.float64))
        undefined += int(np.isnan(values).sum())
        drawn[i] = np.nanmean(values) if np.isfinite(values).any() else np.nan
    return drawn[np.isfinite(drawn)], undefined


def _cell_differences(cells: list[tuple[_Sorted, ...]], weights: Array) -> Array:
    return np.array([a.auc(weights) - b.auc(weights) for a, b in cells])


def _share_below(values: Array, others: Array) -> Array:
    """Share of `others` below each value, ties one half."""
    others = np.sort(others)
    order = np.argsort(values)  # sorted queries keep the search in cache
    ranked = values[order]
    below = np.searchsorted(others, ranked, "left")
    below = below + np.searchsorted(others, ranked, "right")
    result = np.empty(values.size)
    result[order] = below / (2.0 * others.size)
    return result


def _mask(label_mask: Any, labels: Array) -> Array:
    if label_mask is None:
        return np.ones(labels.shape, bool)
    return np.asarray(label_mask) > 0


def _codes(units: Any) -> Array | None:
    return None if units is None else np.unique(units, return_inverse=True)[1]


def _by_unit(rows: Array, codes: Array | None) -> Array:
    return rows if codes is None else np.bincount(codes, weights=rows)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _normal(difference: float, error: float | None) -> PairedTest:
    if error is None:
        return PairedTest(difference, None, None)
    if error == 0:
        return PairedTest(difference, 0.0, 1.0 if difference == 0 else 0.0)
    p_value = 2 * stats.norm.sf(abs(difference) / error)
    return PairedTest(difference, error, float(p_value))
