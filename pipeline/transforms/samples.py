"""A few canonical raw rows of each split: exports are checked with them."""

import pathlib
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.spec import SPLITS
from pipeline.transforms import record_batches
from pipeline.transforms.write import replacing

SAMPLE_ROWS = 512
DOMAIN_ROWS = 32  # of every domain at least: an export may serve a small one alone


class WriteSamples(beam.PTransform):
    """(split index, batch) -> `samples/<split>.parquet`: first rows of the shuffle.

    SAMPLE_ROWS of the split, and DOMAIN_ROWS of each of its domains.
    """

    def __init__(self, folder: pathlib.Path, seed: int) -> None:
        super().__init__()
        self.folder, self.seed = folder, seed

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        """Adds the steps."""
        return (
            rows
            | "Take first rows" >> beam.ParDo(_TakeFirst(self.seed))
            | "Group samples" >> beam.GroupByKey()
            | "Write samples" >> beam.Map(_write, self.folder, self.seed)
        )


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch])
class _TakeFirst(beam.DoFn):
    """Rows of a bundle that may be among the first ones of their split or domain.

    The rows before the last of the best so far are few after some batches: taking
    that many of every batch cost a tenth of the job.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def start_bundle(self) -> None:
        self._best: dict[int, _Best] = {}

    def process(
        self, row: tuple[int, pa.RecordBatch]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        split, batch = row
        best = self._best.setdefault(split, _Best())
        rows = best.take(_keys(batch, self._seed), _domains(batch))
        if len(rows):
            yield split, _first(record_batches.take(batch, rows), self._seed)


class _Best:
    """The smallest keys seen: of all rows, and of each domain."""

    def __init__(self) -> None:
        self._keys: dict[int, np.ndarray] = {}  # -1 = of all rows

    def take(self, keys: np.ndarray, domain: np.ndarray) -> np.ndarray:
        """Returns which rows may be among the first ones; keeps their keys."""
        chosen = self._update(-1, keys, SAMPLE_ROWS)
        for index in np.unique(domain).tolist():
            own = np.flatnonzero(domain == index)
            chosen = np.union1d(
                chosen, own[self._update(index, keys[own], DOMAIN_ROWS)]
            )
        return chosen

    def _update(self, group: int, keys: np.ndarray, size: int) -> np.ndarray:
        best = self._keys.get(group, np.zeros(0, np.uint64))
        rows = np.arange(len(keys))
        if len(best) == size:
            rows = np.flatnonzero(keys < best[-1])
        if len(rows):
            self._keys[group] = np.sort(np.concatenate([best, keys[rows]]))[:size]
        return rows


def _keys(batch: pa.RecordBatch, seed: int) -> np.ndarray:
    return record_batches.order_keys(record_batches.integers(batch, "row_id"), seed)


def _domains(batch: pa.RecordBatch) -> np.ndarray:
    return record_batches.integers(batch, "domain")


def _first(batch: pa.RecordBatch, seed: int) -> pa.RecordBatch:
    order = np.argsort(_keys(batch, seed), kind="stable")
    domain = _domains(batch)[order]
    # Rank of each row among those of its domain, in the order of the shuffle.
    by_domain = np.argsort(domain, kind="stable")
    starts = np.searchsorted(domain[by_domain], domain[by_domain])
    rank = np.empty(len(order), np.int64)
    rank[by_domain] = np.arange(len(order)) - starts
    keep = (np.arange(len(order)) < SAMPLE_ROWS) | (rank < DOMAIN_ROWS)
    return record_batches.plain(record_batches.take(batch, order[keep]))


def _write(
    keyed: tuple[int, Iterable[pa.RecordBatch]], folder: pathlib.Path, seed: int
) -> str:
    batch = _first(record_batches.concat(keyed[1]), seed)
    name = f"samples/{SPLITS[keyed[0]]}.parquet"
    with replacing(folder / name) as path:
        pq.write_table(pa.Table.from_batches([batch]), path)
    return name
