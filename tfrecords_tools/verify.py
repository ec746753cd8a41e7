"""Command line: checks every byte and every row of a prepared data set.

Checksums of all records; files listed against files present; rows by split, domain
and label against dataset.json; every id, label and number in its range; and the
fingerprint against the spec and the vocabularies.  Prints each finding; the exit
status is 0 only without one.
"""

import argparse
import collections
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import tqdm

from features.dataset import Dataset
from features.schema import LABEL_PREFIX, MASKED_LABEL
from features.spec import SPLITS
from tfrecords_tools import command, decode, plan, records

EPILOG = """examples:
  python -m tfrecords_tools.verify data/synthetic
  python -m tfrecords_tools.verify data/synthetic --split train
"""

Counts = collections.Counter[tuple[str, str, str]]  # (domain, what, task) -> rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = command.parser("verify", __doc__, EPILOG)
    command.add_split(parser)
    arguments = parser.parse_args(argv)
    return command.run("verify", lambda: _run(arguments))


def verify(
    dataset: Dataset, splits: Sequence[str] = SPLITS, *, progress: bool = False
) -> list[str]:
    """Returns what is wrong with a data set, one text each; [] when it is sound.

    Args:
      dataset: An opened data set (opening it has checked the fingerprint).
      splits: Splits to check.
      progress: Whether to show a progress bar on standard error.
    """
    findings = list(_check_listing(dataset, splits))
    total = sum(dataset.info.num_rows(split) for split in splits)
    with tqdm.tqdm(
        total=total, unit="rows", unit_scale=True, disable=not progress
    ) as bar:
        for split in splits:
            counts: Counts = collections.Counter()
            whole = True
            for path in dataset.files(split):
                if not path.exists():
                    whole = False
                    continue
                found = list(_check_file(dataset, path, counts, bar))
                whole &= not found
                findings += found
            if whole:
                findings += _check_counts(dataset, split, counts)
    return findings


def _run(arguments: argparse.Namespace) -> int:
    dataset = Dataset.open(arguments.data_dir)
    splits = [arguments.split] if arguments.split else list(SPLITS)
    findings = verify(dataset, splits, progress=sys.stderr.isatty())
    for finding in findings:
        print(f"tfrecords_tools.verify: {finding}", file=sys.stderr)
    if findings:
        return 1
    rows = sum(dataset.info.num_rows(split) for split in splits)
    files = sum(len(dataset.files(split)) for split in splits)
    print(
        f"{dataset.data_dir}: sound; {rows:,} rows in {files} files, "
        f"fingerprint {dataset.info.fingerprint}"
    )
    return 0


def _check_listing(dataset: Dataset, splits: Sequence[str]) -> Iterator[str]:
    for split in splits:
        listed = set(dataset.files(split))
        for path in sorted(p for p in listed if not p.exists()):
            yield f"{path} must exist, dataset.json lists it. Restore the file."
        folder = dataset.data_dir / split
        for path in sorted({*folder.rglob("*.tfrecord*")} - listed):
            yield f"{path} must be listed in dataset.json, or not be there. Remove it."


def _check_file(
    dataset: Dataset, path: pathlib.Path, counts: Counts, bar: tqdm.tqdm
) -> Iterator[str]:
    info = dataset.info
    rows = 0
    reported: set[str] = set()
    try:
        for batch in decode.read_batches(
            path,
            info.columns,
            record_format=info.record_format,
            compression=info.compression,
        ):
            for column, rule in _bad_columns(dataset, batch):
                if column not in reported:
                    reported.add(column)
                    yield (
                        f"{path}: column {column!r} must be {rule} (first in rows "
                        f"{rows} to {rows + batch.num_rows - 1}). Prepare the data "
                        "set again."
                    )
            if "domain" not in reported:
                _count(dataset, batch, counts)
            rows += batch.num_rows
            bar.update(batch.num_rows)
        if info.record_format == "block" and not info.compression:
            announced = int(plan.find_blocks([path]).rows.sum())
            if announced != rows:
                yield (
                    f"{path}: every block but the last must hold {info.block_rows} "
                    f"rows; they hold {rows} in all, full ones would {announced}. "
                    "Repack the data set (python -m tfrecords_tools.repack)."
                )
    except (records.RecordError, decode.DecodeError) as error:
        yield str(error)


def _bad_columns(dataset: Dataset, batch: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    """Yields the columns with a value out of range, and the range in words."""
    info = dataset.info
    sizes = {f.name: f.num_ids for f in info.model_schema.features}
    sizes["domain"] = len(info.fitted.domains)
    for column in info.columns:
        array = batch.column(batch.schema.get_field_index(column.name))
        values = (array.flatten() if column.length > 1 else array).to_numpy()
        if not len(values):
            continue
        if column.dtype == "float32":
            if not np.isfinite(values).all():
                yield column.name, "finite"
        elif column.name.startswith(LABEL_PREFIX):
            if values.min() < MASKED_LABEL or values.max() > 1:
                yield column.name, "0, 1 or -1 (masked)"
        elif column.name in sizes and not (
            0 <= values.min() and values.max() < sizes[column.name]
        ):
            yield (
                column.name,
                f"0 to {sizes[column.name] - 1}; got {values.min()} to {values.max()}",
            )


def _count(dataset: Dataset, batch: pa.RecordBatch, counts: Counts) -> None:
    info = dataset.info
    domain = batch["domain"].to_numpy()
    for index, name in enumerate(info.fitted.domains):
        here = domain == index
        counts[name, "rows", ""] += int(here.sum())
        for task in info.spec.task_names:
            labels = batch[LABEL_PREFIX + task].to_numpy()[here]
            counts[name, "labelled", task] += int((labels >= 0).sum())
            counts[name, "positives", task] += int((labels == 1).sum())


def _check_counts(dataset: Dataset, split: str, counts: Counts) -> Iterator[str]:
    for (domain, what, task), found in sorted(counts.items()):
        noted = dataset.info.counts.get(split, {}).get(domain, {}).get(what, 0)
        if task and isinstance(noted, dict):
            noted = noted.get(task, 0)
        if noted != found:
            of = f" of task {task!r}" if task else ""
            yield (
                f"{dataset.data_dir}: {what}{of} in split {split!r}, domain "
                f"{domain!r} must be {noted} as dataset.json says; the files hold "
                f"{found}. Prepare the data set again."
            )


if __name__ == "__main__":
    sys.exit(main())
