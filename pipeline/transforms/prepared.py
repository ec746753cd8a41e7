"""Rows of a prepared data set: some columns of all of them, then some rows whole.

A row's *place* is its file's index times 2**32 plus its number in the file: a job looks
at few columns, decides, and comes back for the rows it wants.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features.dataset import Dataset
from features.schema import EncodedColumn
from features.spec import Categorical, raw_column
from pipeline import progress
from pipeline.errors import JobError
from pipeline.transforms import record_batches

PLACE = "place"
_ROW_BITS = 32


@dataclasses.dataclass(frozen=True)
class RowFiles:
    """The record files of one split; small, so that steps can carry it.

    Attributes:
      paths: Files, in reading order.
      columns: All columns of a row.
      record_format: "block" or "row".
      compression: "" or "GZIP".
    """

    paths: tuple[pathlib.Path, ...]
    columns: tuple[EncodedColumn, ...]
    record_format: str
    compression: str

    @classmethod
    def of(cls, dataset: Dataset, split: str) -> "RowFiles":
        """Returns the files of a split."""
        info = dataset.info
        return cls(
            dataset.files(split), info.columns, info.record_format, info.compression
        )

    def read(
        self, index: int, names: Sequence[str] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields the number of the first row and the rows, for one file in order."""
        from tfrecords_tools import decode

        columns = [c for c in self.columns if names is None or c.name in names]
        first = 0
        for batch in decode.read_batches(
            self.paths[index],
            columns,
            record_format=self.record_format,
            compression=self.compression,
        ):
            yield first, batch
            first += batch.num_rows


class ReadPrepared(beam.PTransform):
    """Batches of some columns of all rows, with `place` int64.  Order is undefined."""

    def __init__(self, files: RowFiles, names: Sequence[str]) -> None:
        super().__init__()
        self.files, self.names = files, tuple(names)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[pa.RecordBatch]:
        """Adds the steps."""
        return (
            begin
            | "List files" >> beam.Create(range(len(self.files.paths)))
            | "Spread files" >> beam.Reshuffle()
            | "Read columns" >> beam.ParDo(_ReadColumns(self.files, self.names))
        )


@beam.typehints.with_output_types(pa.RecordBatch)
class _ReadColumns(beam.DoFn):
    def __init__(self, files: RowFiles, names: tuple[str, ...]) -> None:
        self._files, self._names = files, names

    def process(self, index: int) -> Iterator[pa.RecordBatch]:
        for first, batch in self._files.read(index, self._names):
            place = (index << _ROW_BITS) + first + np.arange(batch.num_rows)
            progress.report("read", batch.num_rows)
            yield pa.RecordBatch.from_arrays(
                [*batch.columns, pa.array(place)], [*batch.schema.names, PLACE]
            )


class TakeRows(beam.PTransform):
    """Batches with `place` -> the same rows whole, `place` and given columns beside.

    A place may come several times: its row is then given as often.

    Args:
      files: Where the places are.
      extra: Columns of the batches to keep beside the row.
    """

    def __init__(self, files: RowFiles, extra: Sequence[str] = ()) -> None:
        super().__init__()
        self.files, self.extra = files, (PLACE, *extra)

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection:
        """Adds the steps."""
        return (
            rows
            | "Key by source file" >> beam.ParDo(_KeyByFile(self.extra))
            | "Group by source file" >> beam.GroupByKey()
            | "Take whole rows" >> beam.ParDo(_TakeWhole(self.files))
        )


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch])
class _KeyByFile(beam.DoFn):
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        batch = pa.RecordBatch.from_arrays(
            [batch[name] for name in self._names], list(self._names)
        )
        file = record_batches.integers(batch, PLACE) >> _ROW_BITS
        yield from record_batches.split_by(batch, file)


@beam.typehints.with_output_types(pa.RecordBatch)
class _TakeWhole(beam.DoFn):
    def __init__(self, files: RowFiles) -> None:
        self._files = files

    def process(
        self, keyed: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        wanted = record_batches.concat(keyed[1])
        place = record_batches.integers(wanted, PLACE)
        wanted = record_batches.take(wanted, np.argsort(place, kind="stable"))
        rows = np.sort(place) - (keyed[0] << _ROW_BITS)
        for first, batch in self._files.read(keyed[0]):
            start, stop = np.searchsorted(rows, [first, first + batch.num_rows])
            if start == stop:
                continue
            taken = record_batches.take(batch, rows[start:stop] - first)
            beside = wanted.slice(start, stop - start)
            yield pa.RecordBatch.from_arrays(
                [*taken.columns, *beside.columns],
                [*taken.schema.names, *beside.schema.names],
            )


def item_column(dataset: Dataset, chosen: str | None = None) -> str:
    """Returns the column on disk that tells items apart.

    Args:
      dataset: A prepared data set.
      chosen: A categorical feature to take; None: the one that reads `keys.item`.

    Raises:
      JobError: When there is no such feature.
    """
    spec = dataset.info.spec
    known = [f for f in spec.features if isinstance(f, Categorical)]
    names = [f.name for f in known if raw_column(f) == spec.keys.item]
    if chosen is not None:
        names = [f.name for f in known if f.name == chosen]
    if not names:
        raise JobError(
            f"item_feature must be a categorical feature of data set {spec.name}; got "
            f"{chosen!r}, and "
            + ("" if chosen else f"no feature reads keys.item ({spec.keys.item!r}). ")
            + f"There are {', '.join(f.name for f in known)}: choose with "
            "--item_feature."
        )
    return names[0]


def train_days(dataset: Dataset, **days: int | None) -> None:
    """Raises JobError for a day that is given to a data set without days."""
    if dataset.info.spec.day_source is not None:
        return
    given: dict[str, Any] = {k: v for k, v in days.items() if v is not None}
    if given:
        raise JobError(
            f"{next(iter(given))} must be left out for a data set without days; got "
            f"{given}. Give the spec keys.day, or a keys.time that is no order."
        )
