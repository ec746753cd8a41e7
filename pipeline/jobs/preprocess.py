"""The preprocessing job: raw logs -> a prepared data set.

read -> join -> check -> domains -> histories -> splits -> fit -> encode -> global
shuffle -> record files.  `build` is the pipeline, `run` is the launcher around it:
it publishes the folder once everything in it is complete.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa

from features.dataset import Dataset, DatasetInfo
from features.spec import SPLITS
from pipeline import launch
from pipeline.errors import JobError
from pipeline.options import PreprocessOptions
from pipeline.publish import Staging
from pipeline.transforms import (
    combine,
    fit,
    group,
    place,
    read,
    record_batches,
    samples,
    shuffle,
    statistics,
    write,
)

REJECTED_FILE = "rejected/rows.jsonl"


def build(
    pipeline: beam.Pipeline, options: PreprocessOptions, folder: pathlib.Path
) -> None:
    """Adds the whole job to a pipeline; it writes below `folder`."""
    spec = options.spec
    record_batches.register_coder()
    raw = pipeline | "Read rows" >> read.ReadRows(spec, options.raw_dir)
    assign = place.AssignDomains(spec)
    placed = raw[read.ROWS] | "Place in domains" >> assign
    rows, duplicates = placed[place.ROWS], None
    if group.is_needed(spec):
        grouped = rows | "Group users" >> group.GroupUsers(
            spec, options.user_buckets, domains=assign.domains
        )
        rows, duplicates = grouped[group.ROWS], grouped[group.DUPLICATES]
    split = rows | "Place in splits" >> place.AssignSplits(spec)
    rejected = (
        raw[read.REJECTED],
        placed[place.REJECTED],
        split[place.REJECTED],
    ) | "All rejected rows" >> beam.Flatten()
    counts = _count_rows(pipeline, raw[read.READ], rejected)
    rows = split[place.ROWS]
    fitted = beam.pvalue.AsSingleton(
        rows
        | "Fit"
        >> fit.FitFeatures(
            spec,
            domains=assign.domains,
            counts=counts,
            previous_data_dir=options.previous_data_dir,
        )
    )
    plan = _plan_files(split[place.SPLIT_ROWS], options.rows_per_file)
    encoded = rows | "Encode" >> write.EncodeAndShuffle(
        options, fitted=fitted, plan=plan
    )
    files = encoded[write.ROWS] | "Write" >> write.WriteFiles(options, folder)
    unknown = encoded[write.UNKNOWN] | "Add up unknown ids" >> beam.CombineGlobally(
        combine.MergePartials(combine.add_counts, {})
    )
    _write_for_people(rows, rejected, options, folder)
    dropped = _sum(duplicates)
    _ = (
        pipeline
        | "Begin summary" >> beam.Create([None], reshuffle=False)
        | "Write summary"
        >> beam.Map(
            launch.write_summary,
            folder,
            fitted=fitted,
            files=beam.pvalue.AsList(files),
            unknown=beam.pvalue.AsSingleton(unknown),
            counts=counts,
            duplicates=dropped,
        )
    )


def _plan_files(
    split_rows: beam.PCollection, rows_per_file: int
) -> beam.pvalue.AsSingleton:
    return beam.pvalue.AsSingleton(
        split_rows
        | "Add up split rows"
        >> beam.CombineGlobally(combine.MergePartials(combine.add_counts, {}))
        | "Plan files" >> beam.Map(shuffle.ShardPlan.from_rows, rows_per_file)
    )


def _write_for_people(
    rows: beam.PCollection,
    rejected: beam.PCollection,
    options: PreprocessOptions,
    folder: pathlib.Path,
) -> None:
    """Adds what nobody trains on: samples, statistics and the rejected rows."""
    _ = rows | "Samples" >> samples.WriteSamples(folder, options.seed)
    if options.statistics:
        _ = rows | "Statistics" >> statistics.WriteStatistics(
            folder,
            options.statistics_sample_rate,
            options.seed,
            by_day=options.statistics_by_day,
        )
    _ = (
        rejected
        | "Key rejected rows" >> beam.Map(_keyed)
        | "Gather rejected rows" >> beam.GroupByKey()
        | "Write rejected rows" >> beam.Map(_write_rejected, folder)
    )


def run(options: PreprocessOptions) -> Dataset:
    """Runs the job and publishes the data set.

    Raises:
      JobError: For a target that exists, bad input, or too many rejected rows.
      Exception: What the runner raised; `pipeline.errors.root_cause` shortens it.
    """
    _check_references(options)
    with Staging(options.data_dir, overwrite=options.overwrite) as staging:
        with launch.beam_pipeline(
            options.beam_args, show_progress=options.show_progress
        ) as pipeline:
            build(pipeline, options, staging.path)
        summary = launch.take_summary(staging.path)
        info = _info(options, summary)
        info.save(staging.path)
        if options.statistics:
            from pipeline import validation

            report = validation.validate(
                staging.path,
                options.spec,
                info.fitted.domains,
                schema_path=options.schema_path,
                previous_data_dir=options.previous_data_dir,
            )
            if options.fail_on_anomalies and report.has_errors:
                raise JobError(
                    "statistics must have no anomalies (--fail_on_anomalies); got "
                    f"{len(report.anomalies)}:\n{report.to_text()}\nMend the raw rows, "
                    "or allow what is right in a curated schema (--schema). Nothing "
                    "was published; without the flag the data set is, with a report."
                )
        staging.publish()
    return Dataset.open(options.data_dir)


def _check_references(options: PreprocessOptions) -> None:
    """Finds out now, not after an hour, that another data set or schema is amiss."""
    if options.previous_data_dir is not None:
        Dataset.open(options.previous_data_dir)
    if options.schema_path is not None:
        from pipeline.validation import schema

        schema.load(pathlib.Path(options.schema_path))


def _info(options: PreprocessOptions, summary: Mapping[str, Any]) -> DatasetInfo:
    fitted, spec = summary["fitted"], options.spec
    files, counts = write.add_up_files(spec, fitted.domains, summary["files"])
    unknown: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for (split, feature), count in sorted(summary["unknown"].items()):
        unknown[split][feature] = count
    rejected = dict(sorted(summary["counts"].rejected.items()))
    if summary["duplicates"]:
        rejected["duplicate of another row"] = summary["duplicates"]
    return DatasetInfo(
        spec=spec,
        fitted=fitted,
        counts=counts,
        unknown=unknown,
        rejected=rejected,
        seed=options.seed,
        record_format=options.record_format,
        block_rows=options.block_rows if options.record_format == "block" else 1,
        compression=options.compression,
        files=files,
    )


def _count_rows(
    pipeline: beam.Pipeline, read_rows: beam.PCollection, rejected: beam.PCollection
) -> beam.pvalue.AsSingleton:
    reasons = (
        rejected
        | "Count reasons" >> beam.Map(_reasons)
        | "Add up reasons"
        >> beam.CombineGlobally(combine.MergePartials(_merge_reasons, {}))
    )
    total = read_rows | "Add up rows read" >> beam.CombineGlobally(sum)
    return beam.pvalue.AsSingleton(
        pipeline
        | "Begin counts" >> beam.Create([None], reshuffle=False)
        | "Join counts"
        >> beam.Map(
            _row_counts,
            beam.pvalue.AsSingleton(total),
            beam.pvalue.AsSingleton(reasons),
        )
    )


def _sum(numbers: beam.PCollection | None) -> beam.pvalue.AsSingleton | int:
    if numbers is None:
        return 0
    return beam.pvalue.AsSingleton(
        numbers | "Add up duplicates" >> beam.CombineGlobally(sum)
    )


def _row_counts(
    _: None, total: int, reasons: dict[str, tuple[int, str]]
) -> fit.RowCounts:
    return fit.RowCounts(
        read=int(total),
        rejected={reason: count for reason, (count, _) in reasons.items()},
        examples={reason: row for reason, (_, row) in reasons.items()},
    )


def _reasons(batch: pa.RecordBatch) -> dict[str, tuple[int, str]]:
    reasons = batch.to_pandas().groupby("reason")["row"].agg(["size", "min"])
    result = {}
    for reason, (count, row) in reasons.iterrows():
        beam.metrics.Metrics.counter("preprocess.rejected", reason).inc(int(count))
        result[reason] = (int(count), row)
    return result


def _merge_reasons(
    partials: list[dict[str, tuple[int, str]]],
) -> dict[str, tuple[int, str]]:
    """Returns counts added up; the least row is the example, in any merge order."""
    total: dict[str, tuple[int, str]] = {}
    for partial in partials:
        for reason, (count, row) in partial.items():
            before, example = total.get(reason, (0, row))
            total[reason] = (before + count, min(example, row))
    return total


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch])
def _keyed(batch: pa.RecordBatch) -> tuple[int, pa.RecordBatch]:
    return 0, batch


def _write_rejected(
    keyed: tuple[int, Iterable[pa.RecordBatch]], folder: pathlib.Path
) -> str:
    """Writes every rejected row; sorted, so that the file is the same every time."""
    lines = sorted(
        json.dumps(row, sort_keys=True)
        for batch in keyed[1]
        for row in batch.to_pylist()
    )
    with write.replacing(folder / REJECTED_FILE) as path:
        path.write_text("\n".join(lines) + "\n", "utf-8")
    return REJECTED_FILE
