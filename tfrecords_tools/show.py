"""Command line: shows what a prepared data set holds.

Rows by split, domain and label; sizes on disk; and the first rows, decoded back to
raw values.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from features import encode
from features.dataset import Dataset
from features.spec import SPLITS
from tfrecords_tools import command, decode

EPILOG = """examples:
  python -m tfrecords_tools.show data/synthetic
  python -m tfrecords_tools.show data/synthetic --split test --rows 20
  python -m tfrecords_tools.show data --file train/part-00000-of-00004.tfrecord
"""
_MIB = 2**20
_SHOWN_CHARS = 60  # of one value: long histories are cut


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    return command.run("show", lambda: _run(arguments))


def summary(dataset: Dataset, splits: Sequence[str] = SPLITS) -> str:
    """Returns counts, sizes and format of a data set as text."""
    info = dataset.info
    block = f", {info.block_rows} rows a block" if info.record_format == "block" else ""
    lines = [
        f"{info.spec.name}  {dataset.data_dir}",
        f"fingerprint {info.fingerprint}, {info.record_format} format{block}, "
        f"compression {info.compression or 'none'}, shuffle seed {info.seed}",
    ]
    sizes = info.fitted.num_ids(info.spec)
    if sizes:
        lines.append("ids: " + ", ".join(f"{n} {size:,}" for n, size in sizes.items()))
    if info.rejected:
        reasons = ", ".join(f"{k} {n:,}" for k, n in sorted(info.rejected.items()))
        lines.append(f"rejected rows: {reasons}")
    for split in splits:
        lines += ["", *_split_lines(dataset, split)]
    return "\n".join(lines)


def first_rows(
    dataset: Dataset, paths: Sequence[pathlib.Path], rows: int
) -> list[dict[str, Any]]:
    """Returns the first rows of some files as raw values by column name."""
    info = dataset.info
    encoded = decode.read_table(
        paths,
        info.columns,
        record_format=info.record_format,
        compression=info.compression,
        max_rows=rows,
    )
    return encode.decode(info.spec, info.fitted, encoded).to_pylist()


def _run(arguments: argparse.Namespace) -> int:
    dataset = Dataset.open(arguments.data_dir)
    splits = [arguments.split] if arguments.split else list(SPLITS)
    print(summary(dataset, splits))
    if arguments.rows < 1:
        return 0
    if arguments.file is not None:
        listings = [(str(arguments.file), [_listed_path(dataset, arguments.file)])]
    else:
        listings = [(split, list(dataset.files(split))) for split in splits]
    for title, paths in listings:
        print(f"\nfirst rows of {title}")
        for line in _row_lines(first_rows(dataset, paths, arguments.rows)):
            print(line)
    return 0


def _listed_path(dataset: Dataset, name: pathlib.Path) -> pathlib.Path:
    paths = [dataset.data_dir / name, name]
    for path in paths:
        if path.exists():
            return path
    raise LookupError(
        f"--file must be a file of {dataset.data_dir}; got {str(name)!r}. "
        "Paths are as dataset.json lists them."
    )


def _split_lines(dataset: Dataset, split: str) -> Iterator[str]:
    info = dataset.info
    paths = dataset.files(split)
    size = sum(path.stat().st_size for path in paths if path.exists())
    rows = info.num_rows(split)
    yield (
        f"{split}: {rows:,} rows, {len(paths)} files, {size / _MIB:.2f} MiB "
        f"({size / max(rows, 1):.0f} bytes a row)"
    )
    tasks = info.spec.task_names
    head = ["domain", "rows", "share"]
    for task in tasks:
        head += [f"{task} +", f"{task} rate", f"{task} masked"]
    table = [head]
    for domain in info.fitted.domains:
        counts = info.counts.get(split, {}).get(domain, {})
        n = counts.get("rows", 0)
        line = [domain, f"{n:,}", f"{n / max(rows, 1):.1%}"]
        for task in tasks:
            labelled = counts.get("labelled", {}).get(task, 0)
            positive = counts.get("positives", {}).get(task, 0)
            rate = f"{positive / labelled:.4f}" if labelled else "-"
            line += [f"{positive:,}", rate, f"{n - labelled:,}"]
        table.append(line)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        first, *rest = (f"{t:>{w}}" for t, w in zip(line, widths, strict=True))
        yield "  " + "  ".join([first.strip().ljust(widths[0]), *rest])


def _row_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield f"  row {number}"
        width = max(map(len, row))
        for name, value in row.items():
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            if len(text) > _SHOWN_CHARS:
                text = text[: _SHOWN_CHARS - 3] + "..."
            yield f"    {name:<{width}}  {text}"
    if not rows:
        yield "  (none)"


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("show", __doc__, EPILOG)
    command.add_split(parser)
    parser.add_argument(
        "--rows", type=int, default=5, help="rows to show of each; 0 for none"
    )
    parser.add_argument(
        "--file", type=pathlib.Path, help="show the first rows of this file instead"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
