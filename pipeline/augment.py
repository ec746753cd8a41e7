"""Copies positives on unpopular items to minor domains (AREAD), as a Beam job.

Flags that are not listed here are Beam's own pipeline options.
"""

import argparse
import json
import sys
import time
from typing import Any

from features.dataset import Dataset
from pipeline import launch
from pipeline.augmentation import NEGATIVE, POSITIVE, AugmentOptions

EPILOG = """examples:
  python -m pipeline.augment --data_dir data
  python -m pipeline.augment --data_dir data --mode paper --cold_at_most 0.05 \\
      --major_share 0.015 --minor_share 0.015 --name augmented_paper
  python -m pipeline.augment --data_dir data --negatives --no-include_train \\
      --direct_running_mode=multi_processing --direct_num_workers=2

The rows are written to <data_dir>/streams/<name>, a prepared data set with the spec
and vocabularies of data_dir and training rows only; augmentation.json in it has the
counts per domain.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the job's own flags."""
    result = launch.parser("augment", description=__doc__, epilog=EPILOG)
    add = result.add_argument
    add("--data_dir", required=True, help="prepared data set")
    add("--task", help="whose positives are copied (default: the first)")
    add(
        "--mode",
        choices=("capped", "paper"),
        help="capped (default): at most --max_copies copies a real row of a domain",
    )
    add("--rate", type=float, help="copies a training row, in all; default 0.1")
    add("--max_copies", type=float, help="of mode capped; default 4")
    add("--major_share", type=float, help="domains above give rows; default 0.03")
    add("--minor_share", type=float, help="domains up to here get some; default 0.02")
    add(
        "--cold_by",
        choices=("rate", "rows"),
        help="what makes an item unpopular: (positives + 1) / (rows + 2), or its rows",
    )
    add(
        "--cold_at_most",
        type=float,
        help="limit of that (default: the rate over all rows, or 4 rows)",
    )
    add(
        "--negatives",
        action=argparse.BooleanOptionalAction,
        help="copy negatives too, so that a domain keeps its positive rate",
    )
    add(
        "--include_train",
        action=argparse.BooleanOptionalAction,
        help="write the training rows too (default), or the copies only",
    )
    add("--item_feature", help="feature that tells items apart (default: keys.item's)")
    add("--name", help="of the stream; default augmented")
    add("--seed", type=int, help="of the draw and the shuffle; default 0")
    add("--rows_per_file", type=int, help="default 131072")
    add("--overwrite", action="store_true", help="replace the stream, at the very end")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args, beam_args = parser().parse_known_args(argv)
    start = time.monotonic()
    done = launch.attempt("augment", lambda: _run(args, beam_args))
    if done is None:
        return 1
    dataset, report = done
    print(summary(report))
    print(f"stream: {dataset.data_dir} ({time.monotonic() - start:.1f} s)")
    return 0


def _run(
    args: argparse.Namespace, beam_args: list[str]
) -> tuple[Dataset, dict[str, Any]]:
    """Runs the job; returns the stream and its report."""
    options = AugmentOptions.parse(launch.option_values(args, beam_args))
    # Here, not at the top: --help need not wait for Beam.
    from pipeline.jobs import augment

    dataset = augment.run(options)
    path = dataset.data_dir / augment.REPORT_FILE
    return dataset, json.loads(path.read_text("utf-8"))


def summary(report: dict[str, Any]) -> str:
    """Returns the report as a table."""
    lines = [
        f"{report['cold_items']:,} of {report['items']:,} items are unpopular (at most "
        f"{report['cold_at_most']:.4g}); candidates: {report['candidates']}",
        f"{'domain':20}{'part':8}{'rows':>12}{'copies +':>12}{'copies -':>12}"
        f"{report['task'] + ' %':>15}{'with copies %':>15}",
    ]
    for name, cell in report["domains"].items():
        rates = "".join(
            f"{'-':>15}" if cell[key] is None else f"{100 * cell[key]:15.2f}"
            for key in ("positive_rate", "positive_rate_with_copies")
        )
        lines.append(
            f"{name:20}{cell['part']:8}{cell['rows']:12,}"
            f"{cell['copies'][POSITIVE]:12,}{cell['copies'][NEGATIVE]:12,}{rates}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
