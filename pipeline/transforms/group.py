"""Rows grouped by user: duplicates, histories and the per-user split need this."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features import canonical, hashing
from features import spec as spec_lib
from features.derive import histories
from features.domains import FittedDomains
from features.spec import DatasetSpec
from pipeline import progress
from pipeline.transforms import record_batches

ROWS = "rows"
DUPLICATES = "duplicates"


def is_needed(spec: DatasetSpec) -> bool:
    """Returns whether anything in the spec looks at a user's other rows."""
    return (
        spec.drop_duplicates
        or isinstance(spec.split, spec_lib.PerUserTemporalSplit)
        or any(
            isinstance(f, spec_lib.Sequence) and f.column is None for f in spec.features
        )
    )


class GroupUsers(beam.PTransform):
    """Batches -> one batch per bucket of users, with histories; `duplicates` counted.

    A bucket holds all rows of its users, ordered by user, time and row id, so the
    result does not depend on how rows were batched before.

    Args:
      spec: The dataset spec.
      num_buckets: Buckets of users.
      domains: `FittedDomains`, or a side input of it.
    """

    def __init__(self, spec: DatasetSpec, num_buckets: int, *, domains: Any) -> None:
        super().__init__()
        self.spec, self.num_buckets, self.domains = spec, num_buckets, domains

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> Any:
        """Adds the steps."""
        return (
            rows
            | "Key by user bucket" >> beam.ParDo(_KeyByUser(self.num_buckets))
            | "Group by user bucket" >> beam.GroupByKey()
            | "Add histories"
            >> beam.ParDo(_AddHistories(self.spec), self.domains).with_outputs(
                DUPLICATES, main=ROWS
            )
        )


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch])
class _KeyByUser(beam.DoFn):
    def __init__(self, num_buckets: int) -> None:
        self._num_buckets = num_buckets

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        keys = record_batches.integers(batch, "user_key").astype(np.uint64)
        buckets = hashing.mix64(keys) % np.uint64(self._num_buckets)
        # uint16: NumPy sorts it by radix, in linear time.
        yield from record_batches.split_by(batch, buckets.astype(np.uint16))


@beam.typehints.with_output_types(pa.RecordBatch)
class _AddHistories(beam.DoFn):
    def __init__(self, spec: DatasetSpec) -> None:
        self._spec = spec

    def process(
        self, keyed: tuple[int, Iterable[pa.RecordBatch]], domains: FittedDomains
    ) -> Iterator[Any]:
        batch = record_batches.concat(keyed[1])
        rows = batch.num_rows
        batch = record_batches.take(batch, user_order(self._spec, batch))
        if self._spec.drop_duplicates:
            batch = drop_duplicates(batch)
            yield beam.pvalue.TaggedOutput(DUPLICATES, rows - batch.num_rows)
        table = histories.add_histories(
            self._spec, pa.Table.from_batches([batch]), domains.names
        )
        progress.report("group", rows)
        yield record_batches.one_batch(table)


def user_order(spec: DatasetSpec, batch: pa.RecordBatch) -> np.ndarray:
    """Returns the row positions ordered by user, time and row id, int64 [B]."""
    keys = [record_batches.integers(batch, "row_id")]
    if spec.keys.time is not None:
        name = canonical.canonical_name(spec, spec.keys.time, "time")
        keys.append(record_batches.integers(batch, name))
    keys.append(record_batches.integers(batch, "user_key"))
    return np.lexsort(keys)


def drop_duplicates(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the first of all rows of one content.

    Args:
      batch: Rows in `user_order`, so equal rows stand together.
    """
    row_id = record_batches.integers(batch, "row_id")
    first = np.ones(len(row_id), bool)
    first[1:] = row_id[1:] != row_id[:-1]
    if first.all():
        return batch
    return record_batches.take(batch, np.flatnonzero(first))
