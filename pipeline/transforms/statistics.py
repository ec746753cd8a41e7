"""TFDV statistics of canonical rows, inside the job: by split and by domain."""

import pathlib
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from features import hashing
from features.spec import SPLITS
from pipeline import progress, quiet
from pipeline.transforms import record_batches
from pipeline.transforms.write import replacing

NOT_DATA = ("row_id", "user_key")
SLICE_PREFIX = "domain_"  # + domain index; the launcher knows the names
DAY_PREFIX = "day_"  # + YYYYMMDD
# TFDV works column by column in Python for each slice of each batch, so few large
# batches cost less than many small ones.
BATCH_ROWS = 65_536


class WriteStatistics(beam.PTransform):
    """(split index, batch) -> `stats/<split>.pb`, a DatasetFeatureStatisticsList.

    Args:
      folder: Data folder.
      sample_rate: Share of rows, chosen by a seeded hash of the row, so that the same
        rows are taken for any number of workers.
      seed: Of the sample.
      by_day: Whether to add a slice a day, for drift from day to day.
    """

    def __init__(
        self, folder: pathlib.Path, sample_rate: float, seed: int, *, by_day: bool
    ) -> None:
        super().__init__()
        self.folder, self.sample_rate, self.seed = folder, sample_rate, seed
        self.by_day = by_day

    def expand(self, rows: beam.PCollection) -> Any:
        """Adds the steps."""
        tfdv = quiet.tfdv()
        slices = [by_domain, by_day] if self.by_day else [by_domain]
        options = tfdv.StatsOptions(experimental_slice_functions=slices)
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


def by_day(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yields the rows of each day under its slice key."""
    column = batch.column(batch.schema.get_field_index("day"))
    for day, piece in record_batches.split_by(batch, column.flatten().to_numpy()):
        yield f"{DAY_PREFIX}{day:08d}", piece


class _ToLists(beam.DoFn):
    """Rows of one split as TFDV wants them: every column a list, in large batches."""

    def __init__(self, split: int, sample_rate: float, seed: int) -> None:
        self._split, self._rate, self._seed = split, sample_rate, seed
        self._held: list[pa.RecordBatch] = []
        self._num_rows = 0

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
        if not batch.num_rows:
            return
        self._held.append(batch)
        self._num_rows += batch.num_rows
        if self._num_rows >= BATCH_ROWS:
            yield self._release()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._held:
            window = GlobalWindow()
            yield WindowedValue(self._release(), window.max_timestamp(), [window])

    def _release(self) -> pa.RecordBatch:
        progress.report("examine", self._num_rows)
        batch = record_batches.concat(map(record_batches.plain, self._held))
        self._held, self._num_rows = [], 0
        return to_lists(batch)


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
