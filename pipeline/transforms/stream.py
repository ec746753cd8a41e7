"""Streams: further training rows of a prepared data set, in a folder of their own.

`<data_dir>/streams/<name>/` is a prepared data set with the same spec, vocabularies and
fingerprint, and rows in the split `train` only.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from features.dataset import DatasetInfo
from features.spec import SPLITS
from pipeline.options import WriteOptions
from pipeline.transforms import combine, place, shuffle, write
from pipeline.transforms.fit import TRAIN

FOLDER = "streams"


def stream_dir(data_dir: str | pathlib.Path, name: str) -> pathlib.Path:
    """Returns the folder of a stream."""
    return pathlib.Path(data_dir) / FOLDER / name


def write_options(info: DatasetInfo, *, seed: int, rows_per_file: int) -> WriteOptions:
    """Returns how a stream is written: in the record format of its data set."""
    return WriteOptions(
        spec=info.spec,
        seed=seed,
        record_format=info.record_format,
        block_rows=info.block_rows,
        rows_per_file=rows_per_file,
        compression=info.compression,
    )


def stream_info(info: DatasetInfo, options: WriteOptions, files: Any) -> DatasetInfo:
    """Returns the `DatasetInfo` of a stream from what `WriteStream` gave."""
    names, counts = write.add_up_files(info.spec, info.fitted.domains, files)
    return dataclasses.replace(
        info,
        counts=counts,
        unknown={split: {} for split in SPLITS},
        rejected={},
        seed=options.seed,
        files=names,
    )


class WriteStream(beam.PTransform):
    """Encoded batches, further columns ignored -> (path, split, counts) of files.

    Args:
      options: How rows are written.
      folder: Folder of the stream.
      columns: Names of the columns of an encoded row.
    """

    def __init__(
        self, options: WriteOptions, folder: pathlib.Path, columns: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.options, self.folder, self.columns = options, folder, columns

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection:
        """Adds the steps."""
        plan = beam.pvalue.AsSingleton(
            rows
            | "Count rows by day" >> beam.Map(_rows_by_day, self.options)
            | "Add up rows by day"
            >> beam.CombineGlobally(combine.MergePartials(combine.add_counts, {}))
            | "Plan files"
            >> beam.Map(shuffle.ShardPlan.from_rows, self.options.rows_per_file)
        )
        return (
            rows
            | "Divide into files"
            >> beam.ParDo(_Divide(self.options, self.columns), plan)
            | "Write" >> write.WriteFiles(self.options, self.folder)
        )


@beam.typehints.with_output_types(tuple[str, pa.RecordBatch])
class _Divide(beam.DoFn):
    def __init__(self, options: WriteOptions, columns: tuple[str, ...]) -> None:
        self._options, self._columns = options, columns

    def process(
        self, batch: pa.RecordBatch, plan: shuffle.ShardPlan
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        spec, names = self._options.spec, list(self._columns)
        encoded = pa.RecordBatch.from_arrays([batch[name] for name in names], names)
        days = place.partition_days(spec, encoded)
        narrow = write.narrow(spec, encoded)
        yield from plan.divide(TRAIN, narrow, days, self._options.seed)


def _rows_by_day(
    batch: pa.RecordBatch, options: WriteOptions
) -> dict[tuple[int, int], int]:
    import numpy as np

    days = place.partition_days(options.spec, batch)
    distinct, rows = np.unique(days, return_counts=True)
    return {
        (TRAIN, day): count
        for day, count in zip(distinct.tolist(), rows.tolist(), strict=True)
    }
