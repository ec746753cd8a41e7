"""Partial results merged over all workers, as one element."""

from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam

_MERGE_EVERY = 16  # partials kept apart before a merge: bounds memory


class MergePartials(beam.CombineFn):
    """Merges partial results with an associative and commutative function.

    Args:
      merge: list of partials -> one partial.  An empty input gives `empty`.
      empty: Result when there is no partial at all.
    """

    def __init__(self, merge: Callable[[list[Any]], Any], empty: Any = None) -> None:
        self._merge, self._empty = merge, empty

    def create_accumulator(self) -> list[Any]:
        """Returns no partials."""
        return []

    def add_input(self, mutable_accumulator: list[Any], element: Any) -> list[Any]:
        """Adds one partial."""
        mutable_accumulator.append(element)
        return self.compact(mutable_accumulator, _MERGE_EVERY)

    def merge_accumulators(self, accumulators: Iterable[list[Any]]) -> list[Any]:
        """Puts the partials of several workers together."""
        merged: list[Any] = []
        for accumulator in accumulators:
            merged = self.compact(merged + accumulator, _MERGE_EVERY)
        return merged

    def compact(self, accumulator: list[Any], most: int = 1) -> list[Any]:
        """Merges the partials when there are more than `most`."""
        if len(accumulator) <= most:
            return accumulator
        return [self._merge(accumulator)]

    def extract_output(self, accumulator: list[Any]) -> Any:
        """Returns the one partial."""
        # A single partial is merged too: merging puts its keys in order.
        return self._merge(accumulator) if accumulator else self._empty


def add_counts(partials: list[dict[Any, int]]) -> dict[Any, int]:
    """Returns the sum per key, keys in order.

    >>> add_counts([{"b": 1}, {"a": 2, "b": 3}])
    {'a': 2, 'b': 4}
    """
    total: dict[Any, int] = {}
    for partial in partials:
        for key, count in partial.items():
            total[key] = total.get(key, 0) + count
    return dict(sorted(total.items()))
