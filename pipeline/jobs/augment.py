"""Popularity-based counterfactual augmentation of minor domains, as a stream.

Positives on unpopular items in major domains are copied to minor domains, where only
the domain changes: what if the row had been shown there?  The copies, and by default
the training rows with them, are written to `<data_dir>/streams/<name>`, and counts per
domain to `augmentation.json`.  Popularity is that of training rows only.

Source: AREAD (arXiv 2412.11905), section on popularity-based counterfactual
augmentation, with the formulas of its code (`features/derive/augmentation.py`).
Differs: majors, minors and unpopular items by training rows only (the code counts all
rows); draws are systematic instead of independent; mode `capped` (default) bounds the
copies of a domain by its real rows, since the paper's form makes more than half of a
minor domain's rows copies, all positive.  `paper` is the literal form.
"""

import json
import pathlib
from typing import Any

import apache_beam as beam
import numpy as np

from features.dataset import Dataset
from features.schema import LABEL_PREFIX
from features.spec import Categorical, Numeric, raw_column
from pipeline import launch
from pipeline.augmentation import AugmentOptions, ColdItems, Quotas, report
from pipeline.errors import JobError
from pipeline.publish import Staging
from pipeline.transforms import combine, copies, prepared, record_batches, stream

REPORT_FILE = "augmentation.json"


def build(
    pipeline: beam.Pipeline, options: AugmentOptions, folder: pathlib.Path
) -> None:
    """Adds the whole job to a pipeline; it writes below `folder`."""
    record_batches.register_coder()
    dataset = Dataset.open(options.data_dir)
    quotas = Quotas.of(options, dataset.info)
    item = prepared.item_column(dataset, options.item_feature)
    files = prepared.RowFiles.of(dataset, "train")
    names = (item, "domain", "row_id", LABEL_PREFIX + quotas.task)
    rows = pipeline | "Read rows" >> prepared.ReadPrepared(files, names)
    cold = beam.pvalue.AsSingleton(
        rows
        | "Popularity" >> copies.CountItems(item, quotas.task)
        | "Find unpopular items" >> beam.Map(ColdItems.of, options)
    )
    drawn = rows | "Draw copies" >> copies.DrawCopies(
        item=item, options=options, quotas=quotas, cold=cold
    )
    columns = tuple(c.name for c in dataset.info.columns)
    whole = (
        drawn[copies.COPIES]
        | "Take rows"
        >> prepared.TakeRows(files, (copies.COPY_DOMAIN, copies.COPY_NUMBER))
        | "Change domains" >> beam.Map(copies.as_copies)
    )
    if options.include_train:
        real = pipeline | "Read training rows" >> prepared.ReadPrepared(files, columns)
        whole = (whole, real) | "Copies and training rows" >> beam.Flatten()
    written = whole | "Write rows" >> stream.WriteStream(
        _writing(options, dataset), folder, columns
    )
    _ = (
        pipeline
        | "Begin summary" >> beam.Create([None], reshuffle=False)
        | "Write summary"
        >> beam.Map(
            _write_summary,
            folder,
            files=beam.pvalue.AsList(written),
            cold=cold,
            counts=beam.pvalue.AsSingleton(
                drawn[copies.COUNTS]
                | "Add up copies"
                >> beam.CombineGlobally(combine.MergePartials(combine.add_counts, {}))
            ),
        )
    )


def run(options: AugmentOptions) -> Dataset:
    """Runs the job and publishes the stream.

    Raises:
      JobError: When no domain is major or minor, a feature reads the domain's own
        column, or no row can be copied.
      LookupError: For an unknown task.
    """
    dataset = Dataset.open(options.data_dir)
    quotas = Quotas.of(options, dataset.info)
    _check_features(dataset)
    target = stream.stream_dir(options.data_dir, options.name)
    with Staging(target, overwrite=options.overwrite, option="name") as staging:
        with launch.beam_pipeline(
            options.beam_args, show_progress=options.show_progress
        ) as pipeline:
            build(pipeline, options, staging.path)
        summary = launch.take_summary(staging.path)
        files = summary.pop("files")
        info = stream.stream_info(dataset.info, _writing(options, dataset), files)
        values = report(options, dataset.info, quotas, summary)
        if not values["copies"]:
            raise JobError(
                f"augment must copy rows; got none ({values['cold_items']} of "
                f"{values['items']} items are unpopular, candidates "
                f"{values['candidates']}). Raise --cold_at_most, --rate or "
                "--max_copies, or lower --major_share."
            )
        info.save(staging.path)
        text = json.dumps(values, indent=1, sort_keys=True) + "\n"
        (staging.path / REPORT_FILE).write_text(text, "utf-8")
        staging.publish()
    return Dataset.open(target)


def _writing(options: AugmentOptions, dataset: Dataset) -> Any:
    return stream.write_options(
        dataset.info, seed=options.seed, rows_per_file=options.rows_per_file
    )


def _check_features(dataset: Dataset) -> None:
    """Refuses a feature that would tell copies from the domain's real rows."""
    spec = dataset.info.spec
    for feature in spec.features:
        if isinstance(feature, Categorical | Numeric):
            if raw_column(feature) == spec.domain.column:
                raise JobError(
                    "features must not read the column that makes the domains, since a "
                    f"copy changes the domain only; got {feature.name!r}, which reads "
                    f"{spec.domain.column!r}. Prepare the data set with --set "
                    f"features.{feature.name}=null; the domain indicator says the same."
                )


def _write_summary(
    _: None,
    folder: pathlib.Path,
    *,
    files: list[Any],
    cold: ColdItems,
    counts: dict[Any, int],
) -> str:
    return launch.write_summary(
        None,
        folder,
        files=files,
        items=len(cold.items),
        cold_items=int(np.count_nonzero(cold.is_cold)),
        cold_at_most=cold.at_most,
        candidates={k[1]: n for k, n in counts.items() if k[0] == "candidates"},
        copies={k[1:]: n for k, n in counts.items() if k[0] == "copies"},
    )
