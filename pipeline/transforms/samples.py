"""A few canonical raw rows of each split: exports are checked with them."""

import pathlib
from collections.abc import Iterable

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
            | "Take first rows" >> beam.Map(_first_keyed, self.seed)
            | "Group samples" >> beam.GroupByKey()
            | "Write samples" >> beam.Map(_write, self.folder, self.seed)
        )


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch])
def _first_keyed(
    row: tuple[int, pa.RecordBatch], seed: int
) -> tuple[int, pa.RecordBatch]:
    return row[0], _first(row[1], seed)


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
