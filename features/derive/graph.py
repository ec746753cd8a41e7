"""Pairs of nodes in sorted arrays: what a walk over a click graph needs, vectorised."""

from collections.abc import Iterator

import numpy as np

from features import hashing

PAIRS_AT_ONCE = 1 << 21  # pairs made before they are counted: bounds memory


def distinct(values: np.ndarray) -> np.ndarray:
    """Returns the sorted distinct values.

    Args:
      values: [N] integers.
    """
    return np.unique(values)


def contains(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Returns which values are among some sorted distinct ones, bool [N].

    Args:
      values: [N] integers.
      among: [M] integers, ascending.
    """
    if not len(among):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(among, values), len(among) - 1)
    found: np.ndarray = among[place] == values
    return found


def distinct_pairs(
    first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each pair once, ordered by (first, second), and how often it came.

    Args:
      first: [N] int64.
      second: [N] int64.

    Returns:
      first and second of the P distinct pairs, and counts int64 [P].
    """
    order = np.lexsort([second, first])
    first, second = first[order], second[order]
    new = np.ones(len(first), bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, len(first)))
    return first[starts], second[starts], counts


def smallest_hashes(first: np.ndarray, second: np.ndarray, most: int) -> np.ndarray:
    """Returns which pairs are among the `most` of their `first` by hash, bool [N].

    A pure function of the set of pairs: a larger `most` only adds pairs.

    Args:
      first: [N] int64.
      second: [N] int64, distinct for each `first`.
      most: Pairs kept of each `first`, at least 1.
    """
    mixed = hashing.mix64(first.astype(np.uint64))
    hashes = hashing.mix64(mixed ^ second.astype(np.uint64))
    order = np.lexsort([second, hashes, first])
    ranked = first[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])[: len(ranked)]
    sizes = np.diff(np.append(starts, len(ranked)))
    keep = np.empty(len(first), bool)
    keep[order] = np.arange(len(ranked)) - np.repeat(starts, sizes) < most
    return keep


def products(
    group: np.ndarray, is_left: np.ndarray, is_right: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (left, right) positions of all pairs inside the groups, some at a time.

    Memory is bounded by PAIRS_AT_ONCE pairs and the largest right side of a group.

    Args:
      group: [N] integers, ascending.
      is_left: [N] bool.
      is_right: [N] bool.
    """
    left, right = np.flatnonzero(is_left), np.flatnonzero(is_right)
    starts = np.searchsorted(group[right], group[left], side="left")
    lengths = np.searchsorted(group[right], group[left], side="right") - starts
    ends = np.cumsum(lengths)
    first = 0
    while first < len(left):
        before = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, before + PAIRS_AT_ONCE, side="right"))
        last = max(last, first + 1)
        chosen = slice(first, last)
        total = int(lengths[chosen].sum())
        offsets = np.cumsum(lengths[chosen]) - lengths[chosen]
        index = np.arange(total) + np.repeat(starts[chosen] - offsets, lengths[chosen])
        if total:
            yield np.repeat(left[chosen], lengths[chosen]), right[index]
        first = last
