"""Encodes rows and writes each file of the shuffle once, whole."""

import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features import encode
from features.fitted import Fitted
from features.schema import LABEL_PREFIX
from features.spec import NUM_RESERVED_IDS, SPLITS, DatasetSpec, Hashing
from pipeline import progress
from pipeline.options import WriteOptions
from pipeline.transforms import place, record_batches, shuffle

UNKNOWN = "unknown"
ROWS = "rows"
_INT32_IDS = 2**31 - 1 - NUM_RESERVED_IDS  # buckets whose ids are int32
SUFFIXES = {"": ".tfrecord", "GZIP": ".tfrecord.gz"}


class EncodeAndShuffle(beam.PTransform):
    """(split index, batch) -> `rows` (path, encoded batch) and `unknown` counts.

    `unknown` are dicts by (split name, feature) of ids that became UNKNOWN_ID.
    """

    def __init__(self, options: WriteOptions, *, fitted: Any, plan: Any) -> None:
        super().__init__()
        self.options, self.fitted, self.plan = options, fitted, plan

    def expand(self, rows: beam.PCollection) -> Any:
        """Adds the steps."""
        return rows | "Encode rows" >> beam.ParDo(
            _Encode(self.options.spec, self.options.seed), self.fitted, self.plan
        ).with_outputs(UNKNOWN, main=ROWS)


class WriteFiles(beam.PTransform):
    """(path, encoded batch) -> (path, split index, counts) of each written file.

    Counts: [D, 1 + 2 T] int64: rows, then labelled rows and positives by task.
    """

    def __init__(self, options: WriteOptions, folder: pathlib.Path) -> None:
        super().__init__()
        self.options, self.folder = options, folder

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        """Adds the steps."""
        return (
            rows
            | "Group by file" >> beam.GroupByKey()
            | "Write files" >> beam.ParDo(_WriteFile(self.options, self.folder))
        )


@beam.typehints.with_output_types(tuple[str, pa.RecordBatch])
class _Encode(beam.DoFn):
    def __init__(self, spec: DatasetSpec, seed: int) -> None:
        self._spec, self._seed = spec, seed

    def process(
        self,
        row: tuple[int, pa.RecordBatch],
        fitted: Fitted,
        plan: shuffle.ShardPlan,
    ) -> Iterator[Any]:
        split, batch = row
        encoded, unknown = encode.encode(self._spec, fitted, batch)
        days = place.partition_days(self._spec, batch)
        progress.report("encode", batch.num_rows)
        counts = {(SPLITS[split], name): int(n) for name, n in unknown.items()}
        yield beam.pvalue.TaggedOutput(UNKNOWN, counts)
        yield from plan.divide(split, narrow(self._spec, encoded), days, self._seed)


class _WriteFile(beam.DoFn):
    def __init__(self, options: WriteOptions, folder: pathlib.Path) -> None:
        self._options, self._folder = options, folder

    def process(
        self, keyed: tuple[str, Iterable[pa.RecordBatch]]
    ) -> Iterator[tuple[str, str, list[list[int]]]]:
        from tfrecords_tools import encode as records

        options = self._options
        name = keyed[0] + SUFFIXES[options.compression]
        batch = record_batches.concat(keyed[1])
        order = shuffled_order(batch, options.seed)
        batch = widen(record_batches.take(batch, order))
        with replacing(self._folder / name) as path:
            records.write_records(
                path,
                batch,
                record_format=options.record_format,
                block_rows=options.block_rows,
                compression=options.compression,
            )
        progress.report("write", batch.num_rows)
        counts = count_labels(options.spec, batch)
        yield name, name.partition("/")[0], counts.tolist()


def narrow(spec: DatasetSpec, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the batch with int32 for int64 where it fits: half the bytes to move.

    The spec decides, never the values, so that all batches have one schema.
    """
    wide = _wide_columns(spec)
    arrays = [
        column if name in wide else _with_integers(column, pa.int64(), pa.int32())
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, batch.schema.names)


def widen(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns what `narrow` was given."""
    arrays = [_with_integers(c, pa.int32(), pa.int64()) for c in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, batch.schema.names)


def _wide_columns(spec: DatasetSpec) -> set[str]:
    wide = {"row_id", "user_key"}
    for feature in spec.features:
        table = spec.feature(spec.table_of(feature.name))
        rule = getattr(table, "encoding", None)
        if isinstance(rule, Hashing) and rule.num_buckets > _INT32_IDS:
            wide.add(feature.name)
    return wide


def _with_integers(column: pa.Array, old: pa.DataType, new: pa.DataType) -> pa.Array:
    if column.type == old:
        return column.cast(new)
    if pa.types.is_fixed_size_list(column.type) and column.type.value_type == old:
        values = column.flatten().cast(new)
        return pa.FixedSizeListArray.from_arrays(values, column.type.list_size)
    return column


def shuffled_order(batch: pa.RecordBatch, seed: int) -> np.ndarray:
    """Returns row positions in the order of the global shuffle, int64 [B].

    Rows of one order key have one content: their order among each other is no matter.
    """
    row_id = record_batches.integers(batch, "row_id")
    return np.argsort(record_batches.order_keys(row_id, seed), kind="stable")


def count_labels(spec: DatasetSpec, batch: pa.RecordBatch) -> np.ndarray:
    """Returns [domains seen, 1 + 2 T] int64: rows, then labelled, positives by task."""
    domain = record_batches.integers(batch, "domain")
    columns = [np.bincount(domain)]
    for task in spec.task_names:
        label = record_batches.integers(batch, LABEL_PREFIX + task)
        for chosen in (label >= 0, label == 1):
            columns.append(np.bincount(domain[chosen], minlength=len(columns[0])))
    return np.stack(columns, axis=1).astype(np.int64)


def add_up_files(
    spec: DatasetSpec, domains: Sequence[str], files: Iterable[tuple[str, str, Any]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, dict[str, Any]]]]:
    """Returns `files` and `counts` of a `DatasetInfo`.

    Args:
      spec: The dataset spec.
      domains: Domain names in index order.
      files: What `WriteFiles` gave, in any order.
    """
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    counts: dict[str, dict[str, dict[str, Any]]] = {
        split: {name: _no_rows(spec) for name in domains} for split in SPLITS
    }
    for path, split, by_domain in sorted(files):
        names[split].append(path)
        for index, row in enumerate(by_domain):
            cell = counts[split][domains[index]]
            cell["rows"] += row[0]
            for t, task in enumerate(spec.task_names):
                cell["labelled"][task] += row[1 + 2 * t]
                cell["positives"][task] += row[2 + 2 * t]
    return {split: tuple(paths) for split, paths in names.items()}, counts


def _no_rows(spec: DatasetSpec) -> dict[str, Any]:
    return {
        "rows": 0,
        "labelled": dict.fromkeys(spec.task_names, 0),
        "positives": dict.fromkeys(spec.task_names, 0),
    }


class replacing:  # noqa: N801 (reads as a verb in a with statement)
    """Context manager: a path to write to, moved over `path` when all went well.

    A repeated or a doubled bundle then gives the same file, and never half of one.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")

    def __enter__(self) -> pathlib.Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._partial

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)
