"""Which domain and which split a row belongs to."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features import canonical, domains, splits
from features import spec as spec_lib
from features.spec import DatasetSpec
from pipeline.transforms import combine, record_batches

ROWS = "rows"
REJECTED = "rejected"
SPLIT_ROWS = "split_rows"


class AssignDomains(beam.PTransform):
    """Canonical batches -> `rows` with an int32 column `domain`, and `rejected`.

    Also gives the `FittedDomains` as `self.domains`: a value, or a side input where
    the rule has to count the rows first.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.domains: Any = None

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> Any:
        """Adds the steps."""
        if _domains_need_counts(self.spec):
            counts = (
                rows
                | "Count domain values" >> beam.Map(_domain_counts, self.spec)
                | "Add up domain values"
                >> beam.CombineGlobally(combine.MergePartials(combine.add_counts, {}))
            )
            self.domains = beam.pvalue.AsSingleton(
                counts | "Fit domains" >> beam.Map(_fit_domains, self.spec)
            )
        else:
            self.domains = _fit_domains({}, self.spec)
        return rows | "Assign domains" >> beam.ParDo(
            _AssignDomains(self.spec), self.domains
        ).with_outputs(REJECTED, main=ROWS)


class AssignSplits(beam.PTransform):
    """Batches with `domain` -> `rows` (split index, batch), `rejected`, `split_rows`.

    `split_rows` are counts by (split index, day or 0), one dict a batch.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__()
        self.spec = spec

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> Any:
        """Adds the steps."""
        if _splits_need_counts(self.spec):
            counts = (
                rows
                | "Count rows to split" >> beam.Map(_split_counts, self.spec)
                | "Add up rows to split"
                >> beam.CombineGlobally(combine.MergePartials(_merge_split_counts))
            )
            plan = beam.pvalue.AsSingleton(
                counts | "Plan splits" >> beam.Map(_plan_splits, self.spec)
            )
        else:
            plan = splits.fit_split_plan(self.spec, None)
        return rows | "Assign splits" >> beam.ParDo(
            _AssignSplits(self.spec), plan
        ).with_outputs(REJECTED, SPLIT_ROWS, main=ROWS)


def _domains_need_counts(spec: DatasetSpec) -> bool:
    match spec.domain:
        case spec_lib.ValueMapDomain():
            return False
        case spec_lib.ColumnDomain():
            return spec.domain.values is None
        case _:
            return True


def _splits_need_counts(spec: DatasetSpec) -> bool:
    return not isinstance(
        spec.split,
        spec_lib.TemporalSplit | spec_lib.PerUserTemporalSplit | spec_lib.ColumnSplit,
    )


def _domain_counts(batch: pa.RecordBatch, spec: DatasetSpec) -> dict[str, int]:
    values, counts = domains.domain_counts(spec, batch)
    return dict(zip(_plain(values), _plain(counts), strict=True))


def _fit_domains(counts: dict[str, int], spec: DatasetSpec) -> Any:
    values = pa.array(list(counts), pa.string())
    return domains.fit_domains(spec, values, np.array([*counts.values()], np.int64))


def _split_counts(batch: pa.RecordBatch, spec: DatasetSpec) -> Any:
    return splits.split_counts(spec, batch, record_batches.integers(batch, "domain"))


def _merge_split_counts(partials: list[Any]) -> Any:
    merged = partials[0]
    for partial in partials[1:]:
        merged = splits.merge_split_counts(merged, partial)
    return merged


def _plan_splits(merged: Any, spec: DatasetSpec) -> Any:
    return splits.fit_split_plan(spec, merged)


@beam.typehints.with_output_types(pa.RecordBatch)
class _AssignDomains(beam.DoFn):
    def __init__(self, spec: DatasetSpec) -> None:
        self._spec = spec

    def process(self, batch: pa.RecordBatch, fitted: Any) -> Iterator[Any]:
        index = domains.assign_domains(fitted.values, fitted.default, self._spec, batch)
        good, rejected = reject(batch, index < 0, _domain_reason(self._spec))
        if rejected is not None:
            yield beam.pvalue.TaggedOutput(REJECTED, rejected)
        if good.num_rows:
            column = pa.array(index[index >= 0].astype(np.int32))
            yield pa.RecordBatch.from_arrays(
                [*good.columns, column], [*good.schema.names, "domain"]
            )


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch])
class _AssignSplits(beam.DoFn):
    def __init__(self, spec: DatasetSpec) -> None:
        self._spec = spec

    def process(self, batch: pa.RecordBatch, plan: Any) -> Iterator[Any]:
        domain = record_batches.integers(batch, "domain")
        split = splits.assign_splits(self._spec, batch, domain, plan)
        if isinstance(self._spec.split, spec_lib.TemporalSplit) and split.min() < 0:
            # The spec says which times take part: no fault of the other rows.
            inside = np.flatnonzero(split >= 0)
            batch, split = record_batches.take(batch, inside), split[inside]
        good, rejected = reject(batch, split < 0, _split_reason(self._spec))
        if rejected is not None:
            yield beam.pvalue.TaggedOutput(REJECTED, rejected)
        if not good.num_rows:
            return
        counts: dict[tuple[int, int], int] = {}
        for number, piece in record_batches.split_by(good, split[split >= 0]):
            days, rows = np.unique(
                partition_days(self._spec, piece), return_counts=True
            )
            for day, count in zip(days.tolist(), rows.tolist(), strict=True):
                counts[number, day] = count
            yield number, piece
        yield beam.pvalue.TaggedOutput(SPLIT_ROWS, counts)


def partition_days(spec: DatasetSpec, batch: pa.RecordBatch) -> np.ndarray:
    """Returns the day whose folder a row goes to, 0 without partitions; int64 [B]."""
    if not spec.partition_by_day:
        return np.zeros(batch.num_rows, np.int64)
    return record_batches.integers(batch, "day").astype(np.int64)


def reject(
    batch: pa.RecordBatch, is_bad: np.ndarray, reason: str
) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
    """Returns the good rows, and the bad ones as `reason` and `row` (None if none)."""
    if not is_bad.any():
        return batch, None
    rows = np.flatnonzero(is_bad)
    rejected = canonical.rejected_rows(batch, rows, [reason] * len(rows))
    return batch.filter(pa.array(~is_bad)), rejected


def _domain_reason(spec: DatasetSpec) -> str:
    return f"{spec.domain.column} must be a value of a domain"


def _split_reason(spec: DatasetSpec) -> str:
    return f"{spec.split_column} must put the row into a split"


def _plain(values: Any) -> list[Any]:
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values.tolist())
