"""Popularity of items, and copies of rows in other domains: pure, vectorised.

Source: AREAD (arXiv 2412.11905), "popularity-based counterfactual augmentation"; the
formulas are those of its official code, since the paper gives none.
"""

import numpy as np

WEIGHT_UNIT = 1 << 16  # weights are whole numbers of this: sums do not depend on order
_MIN_LACK = 100.0  # rows that every minor domain lacks at least
_LACK_QUANTILE = 0.3


def popularity(positives: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns (positives + 1) / (rows + 2), float64 [N].

    Args:
      positives: Training rows with a positive label, int64 [N].
      rows: Training rows with a label, int64 [N].

    >>> popularity(np.array([0, 4]), np.array([2, 4])).round(2).tolist()
    [0.25, 0.83]
    """
    result: np.ndarray = (positives + 1) / (rows + 2)
    return result


def draw_weights(positives: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns 1 / popularity in units of 1 / WEIGHT_UNIT, int64 [N], at least 1."""
    weights = np.rint(WEIGHT_UNIT / popularity(positives, rows))
    return np.maximum(weights, 1).astype(np.int64)


def shares_of_copies(rows: np.ndarray, copies: int) -> np.ndarray:
    """Returns which share of the copies each minor domain gets, float64 [M].

    lack_d = max(100, (sum of rows + copies) / M - rows_d)
    share_d = exp(lack_d / q) / sum of the same, q the 30 % quantile of the lacks

    Args:
      rows: Training rows of each minor domain, int64 [M].
      copies: Copies in all.
    """
    lack = np.maximum(_MIN_LACK, (rows.sum() + copies) / len(rows) - rows)
    scaled = lack / np.quantile(lack, _LACK_QUANTILE)
    shares = np.exp(scaled - scaled.max())
    result: np.ndarray = shares / shares.sum()
    return result


def whole_numbers(shares: np.ndarray, total: int) -> np.ndarray:
    """Returns whole numbers near total * shares that add up to `total`, int64 [M].

    >>> whole_numbers(np.array([0.5, 0.3, 0.2]), 4).tolist()
    [2, 1, 1]
    """
    exact = shares * total
    result = np.floor(exact).astype(np.int64)
    rest = total - int(result.sum())
    # Largest remainders first; the sort is stable, so ties go to the first.
    result[np.argsort(-(exact - result), kind="stable")[:rest]] += 1
    return result


def times_drawn(
    weights: np.ndarray, before: int, total: int, draws: int, start: float
) -> np.ndarray:
    """Returns how often each row is drawn, int64 [N]: systematic sampling.

    All rows stand in a line, each as long as its weight; `draws` marks stand at equal
    steps.  A row is drawn once for each mark in it, so draws * weight / total times,
    rounded up or down, and `draws` in all whatever part of the line is looked at.

    Args:
      weights: Of some rows that stand together, int64 [N].
      before: Sum of the weights before them.
      total: Sum of all weights, positive.
      draws: Marks on the whole line.
      start: Where the first mark stands in its step, between 0 and 1 exclusive.
    """
    edges = before + np.concatenate([[0], np.cumsum(weights)])
    marks = np.ceil(edges * (draws / total) - start)
    return np.diff(marks).astype(np.int64)
