"""Command line: writes a prepared data set again in another record format.

Block to row or back, other block sizes, with or without compression: the same rows
in the same order and the same files, in a new folder that appears when it is whole.
Memory: one file, decoded, at a time.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import tqdm

from features.dataset import DATASET_FILE, SUCCESS_FILE, Dataset
from features.spec import SPLITS
from tfrecords_tools import command, decode, encode

EPILOG = """examples:
  python -m tfrecords_tools.repack data/synthetic data/synthetic_rows --format row
  python -m tfrecords_tools.repack data/log data/log_gz --compression GZIP
  python -m tfrecords_tools.repack data/log data/log_8k --format block --block_rows 8192
"""
_SUFFIXES = {"": ".tfrecord", "GZIP": ".tfrecord.gz"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    return command.run("repack", lambda: _run(arguments))


def repack(
    dataset: Dataset,
    out_dir: str | pathlib.Path,
    *,
    record_format: Any | None = None,
    block_rows: int | None = None,
    compression: Any | None = None,
    progress: bool = False,
) -> Dataset:
    """Writes the rows of `dataset` to a new folder; returns it opened.

    Args:
      dataset: An opened data set.
      out_dir: Folder to make; it must not exist.
      record_format: "block" or "row"; None keeps the format.
      block_rows: Rows a block; None keeps it (4,096 when rows become blocks).
      compression: "" or "GZIP"; None keeps it.
      progress: Whether to show a progress bar on standard error.

    Raises:
      ValueError: When `out_dir` exists, or for a format that cannot be written.
      records.RecordError: For a corrupt or truncated file.
    """
    out_dir = pathlib.Path(out_dir)
    old = dataset.info
    record_format = old.record_format if record_format is None else record_format
    compression = old.compression if compression is None else compression
    if block_rows is None:
        was_block = old.record_format == "block"
        block_rows = old.block_rows if was_block else encode.DEFAULT_BLOCK_ROWS
    encode.check_format(record_format, block_rows, compression)
    if out_dir.exists():
        raise ValueError(
            f"repack.out_dir must not exist yet; got {out_dir}. Choose another folder."
        )
    info = dataclasses.replace(
        old,
        record_format=record_format,
        block_rows=block_rows if record_format == "block" else 1,
        compression=compression,
        files={
            split: tuple(_renamed(name, compression) for name in names)
            for split, names in old.files.items()
        },
    )
    work_dir = out_dir.with_name(f".{out_dir.name}.tmp-{os.getpid()}")
    try:
        _copy_the_rest(dataset.data_dir, work_dir)
        _write_files(dataset, Dataset(work_dir, info), progress=progress)
        info.save(work_dir)
        (work_dir / SUCCESS_FILE).touch()
        work_dir.rename(out_dir)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return Dataset.open(out_dir)


def _write_files(source: Dataset, target: Dataset, *, progress: bool) -> None:
    splits = list(source.info.files)
    total = sum(map(source.info.num_rows, splits))
    with tqdm.tqdm(
        total=total, unit="rows", unit_scale=True, disable=not progress
    ) as bar:
        for split in splits:
            for old, new in zip(source.files(split), target.files(split), strict=True):
                batch = decode.read_table(
                    old,
                    source.info.columns,
                    record_format=source.info.record_format,
                    compression=source.info.compression,
                )
                new.parent.mkdir(parents=True, exist_ok=True)
                encode.write_records(
                    new,
                    batch,
                    record_format=target.info.record_format,
                    block_rows=target.info.block_rows,
                    compression=target.info.compression,
                )
                bar.update(batch.num_rows)


def _copy_the_rest(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies all but the record files: vocabularies, statistics, rejected rows ..."""
    ours = {*SPLITS, DATASET_FILE, SUCCESS_FILE}

    def leave_out(folder: str, names: list[str]) -> set[str]:
        return ours & set(names) if pathlib.Path(folder) == source else set()

    shutil.copytree(source, target, ignore=leave_out)


def _renamed(name: str, compression: str) -> str:
    for suffix in sorted(_SUFFIXES.values(), key=len, reverse=True):
        if name.endswith(suffix):
            return name.removesuffix(suffix) + _SUFFIXES[compression]
    return name


def _run(arguments: argparse.Namespace) -> int:
    compression = arguments.compression
    result = repack(
        Dataset.open(arguments.data_dir),
        arguments.out_dir,
        record_format=arguments.format,
        block_rows=arguments.block_rows,
        compression="" if compression == "none" else compression,
        progress=sys.stderr.isatty(),
    )
    rows = sum(result.info.num_rows(split) for split in result.info.files)
    print(f"{result.data_dir}: {rows:,} rows, {result.info.record_format} format")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("repack", __doc__, EPILOG)
    parser.add_argument("out_dir", type=pathlib.Path, help="folder to make")
    parser.add_argument("--format", choices=encode.RECORD_FORMATS)
    parser.add_argument("--block_rows", type=int)
    parser.add_argument("--compression", choices=("none", "GZIP"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
