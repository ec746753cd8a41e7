"""Learns vocabularies, numeric parameters and popularity from the training rows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa

from features import fit
from features.dataset import Dataset
from features.fitted import Fitted
from features.spec import SPLITS, DatasetSpec
from pipeline.errors import JobError
from pipeline.transforms import combine

TRAIN = SPLITS.index("train")


@dataclasses.dataclass(frozen=True)
class RowCounts:
    """Rows read, rows rejected by reason, and one of the rejected rows of each."""

    read: int
    rejected: Mapping[str, int]
    examples: Mapping[str, str]


class FitFeatures(beam.PTransform):
    """(split index, batch) -> one `Fitted`, from training rows only.

    Args:
      spec: The dataset spec.
      domains: `FittedDomains`, or a side input of it.
      counts: Side input of `RowCounts`: too many rejected rows, or none left to
        train on, end the job here, before the dear steps.
      previous_data_dir: Data set whose vocabularies are continued.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        *,
        domains: Any,
        counts: Any,
        previous_data_dir: str | None,
    ) -> None:
        super().__init__()
        self.spec, self.domains, self.counts = spec, domains, counts
        self.previous_data_dir = previous_data_dir

    def expand(self, rows: beam.PCollection) -> beam.PCollection[Fitted]:
        """Adds the steps."""
        return (
            rows
            | "Keep training rows" >> beam.Filter(_is_training)
            | "Count training values" >> beam.Map(_partial_counts, self.spec)
            | "Add up training values"
            >> beam.CombineGlobally(combine.MergePartials(fit.merge))
            | "Fit features"
            >> beam.Map(
                _fit,
                self.spec,
                self.previous_data_dir,
                domains=self.domains,
                counts=self.counts,
            )
        )


def check_counts(spec: DatasetSpec, counts: RowCounts) -> None:
    """Raises JobError for an empty input or too many rejected rows."""
    if counts.read == 0:
        raise JobError(
            f"source must have rows; data set {spec.name} has none in "
            f"{spec.source.path or spec.source.reader!r}. Check raw_dir and the path."
        )
    bad = sum(counts.rejected.values())
    share = bad / counts.read
    if share <= spec.max_rejected_share:
        return
    reasons = "; ".join(
        f"{count} x {reason}, such as {counts.examples[reason][:200]}"
        for reason, count in sorted(counts.rejected.items(), key=lambda x: -x[1])
    )
    raise JobError(
        f"max_rejected_share must be at least the share of rejected rows; got "
        f"{spec.max_rejected_share} and {share:.4g} ({bad} of {counts.read} rows of "
        f"data set {spec.name}): {reasons}. Mend the raw rows, or raise the share "
        "with --set max_rejected_share=..."
    )


def _is_training(row: tuple[int, pa.RecordBatch]) -> bool:
    return row[0] == TRAIN


def _partial_counts(row: tuple[int, pa.RecordBatch], spec: DatasetSpec) -> Any:
    return fit.partial_counts(spec, row[1])


def _fit(
    merged: Any,
    spec: DatasetSpec,
    previous_data_dir: str | None,
    *,
    domains: Any,
    counts: RowCounts,
) -> Fitted:
    check_counts(spec, counts)
    if merged is None:
        raise JobError(
            f"split must leave rows to train on; got none of {counts.read} rows of "
            f"data set {spec.name} (split.by={spec.split.by}). Check the split rule."
        )
    previous = (
        Dataset.open(previous_data_dir).info.fitted if previous_data_dir else None
    )
    return fit.fit(spec, merged, domains, previous=previous)
