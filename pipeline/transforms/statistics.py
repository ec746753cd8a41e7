"""TFDV statistics of canonical rows, inside the job: by split and by domain."""

import pathlib
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features import hashing
from features.spec import SPLITS
from pipeline.transforms import record_batches
from pipeline.transforms.write import replacing

NOT_DATA = ("row_id", "user_key")
SLICE_PREFIX = "domain_"  # + domain index; the launcher knows the names


class WriteStatistics(beam.PTransform):
    """(split index, batch) -> `stats/<split>.pb`, a DatasetFeatureStatisticsList.

    Args:
      folder: Data folder.
      sample_rate: Share of rows, chosen by a seeded hash of the row, so that the same
        rows are taken for any number of workers.
      seed: Of the sample.
    """

    def __init__(self, folder: pathlib.Path, sample_rate: float, seed: int) -> None:
        super().__init__()
        self.folder, self.sample_rate, self.seed = folder, sample_rate, seed

    def expand(self, rows: beam.PCollection) -> list[beam.PCollection]:
        """Adds the steps."""
        import tensorflow_data_validation as tfdv

        options = tfdv.StatsOptions(experimental_slice_functions=[by_domain])
        return [
            rows
            | f"Rows of {split}"
            >> beam.ParDo(_ToLists(index, self.sample_rate, self.seed))
            | f"Statistics of {split}" >> tfdv.GenerateStatistics(options)
            | f"Write statistics of {split}" >> beam.Map(_write, self.folder, split)
            for index, split in enumerate(SPLITS)
        ]


def by_domain(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yields the rows of each domain under its slice key."""
    column = batch.column(batch.schema.get_field_index("domain"))
    for index, piece in record_batches.split_by(batch, column.flatten().to_numpy()):
        yield f"{SLICE_PREFIX}{index}", piece


class _ToLists(beam.DoFn):
    """Rows of one split as TFDV wants them: every column a list column."""

    def __init__(self, split: int, sample_rate: float, seed: int) -> None:
        self._split, self._rate, self._seed = split, sample_rate, seed

    def process(self, row: tuple[int, pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        split, batch = row
        if split != self._split:
            return
        if self._rate < 1:
            keys = record_batches.order_keys(
                record_batches.integers(batch, "row_id"), self._seed + 1
            )
            limit = np.uint64(self._rate * 2**32)
            batch = record_batches.take(
                batch, np.flatnonzero(keys >> np.uint64(32) < limit)
            )
        if batch.num_rows:
            yield to_lists(batch)


def to_lists(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the batch with one-value columns as lists; a null is a missing value."""
    names = [name for name in batch.schema.names if name not in NOT_DATA]
    columns = [_listed(batch.column(batch.schema.get_field_index(n))) for n in names]
    return pa.RecordBatch.from_arrays(columns, names)


def _listed(column: pa.Array) -> pa.Array:
    if pa.types.is_list(column.type):
        if not pa.types.is_dictionary(column.type.value_type):
            return column
        offsets = np.concatenate([[0], np.cumsum(hashing.list_lengths(column))])
        values = column.flatten().dictionary_decode()
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type) and column.type != pa.float32():
        column = column.cast(pa.float32())
    missing = column.is_null().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(~missing)]).astype(np.int32)
    mask = np.append(missing, False)
    values = column.drop_null() if missing.any() else column
    return pa.ListArray.from_arrays(pa.array(offsets, mask=mask), values)


def _write(statistics: Any, folder: pathlib.Path, split: str) -> str:
    name = f"stats/{split}.pb"
    with replacing(folder / name) as path:
        path.write_bytes(statistics.SerializeToString(deterministic=True))
    return name
