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


class WriteSamples(beam.PTransform):
    """(split index, batch) -> `samples/<split>.parquet`: first rows of the shuffle."""

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
    """Rows of a bundle that may be among the first ones of their split.

    The rows before the SAMPLE_ROWS-th best so far are few after some batches: taking
    that many of every batch cost a tenth of the job.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def start_bundle(self) -> None:
        self._best: dict[int, np.ndarray] = {}

    def process(
        self, row: tuple[int, pa.RecordBatch]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        split, batch = row
        ids = record_batches.integers(batch, "row_id")
        keys = record_batches.order_keys(ids, self._seed)
        best = self._best.get(split, np.zeros(0, np.uint64))
        if len(best) == SAMPLE_ROWS:
            rows = np.flatnonzero(keys < best[-1])
            if not len(rows):
                return
            batch, keys = record_batches.take(batch, rows), keys[rows]
        self._best[split] = np.sort(np.concatenate([best, keys]))[:SAMPLE_ROWS]
        yield split, _first(batch, self._seed)


def _first(batch: pa.RecordBatch, seed: int) -> pa.RecordBatch:
    keys = record_batches.order_keys(record_batches.integers(batch, "row_id"), seed)
    order = np.argsort(keys, kind="stable")[:SAMPLE_ROWS]
    return record_batches.plain(record_batches.take(batch, order))


def _write(
    keyed: tuple[int, Iterable[pa.RecordBatch]], folder: pathlib.Path, seed: int
) -> str:
    batch = _first(record_batches.concat(keyed[1]), seed)
    name = f"samples/{SPLITS[keyed[0]]}.parquet"
    with replacing(folder / name) as path:
        pq.write_table(pa.Table.from_batches([batch]), path)
    return name
