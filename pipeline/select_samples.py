"""Chooses source rows near a target domain's users and items (GST), as a Beam job.

Flags that are not listed here are Beam's own pipeline options.
"""

import argparse
import json
import sys
import time
from typing import Any

from features.dataset import Dataset
from pipeline import launch, similarity
from pipeline.selection import SelectOptions

EPILOG = """examples:
  python -m pipeline.select_samples --data_dir data --target_domains video
  python -m pipeline.select_samples --data_dir data --target_domains video \\
      --edge_tasks click like --hops 1 --max_ratio 5
  python -m pipeline.select_samples --data_dir data --target_domains video \\
      --hops 1 --similar top_n=20 min_cosine=0.5
  python -m pipeline.select_samples --data_dir data --target_domains video \\
      --cutoff_day 20240105 --first_day 20240106 --last_day 20240106 \\
      --name gst_20240106 --direct_running_mode=multi_processing \\
      --direct_num_workers=2

The rows are written to <data_dir>/streams/<name>, a prepared data set with the spec
and vocabularies of data_dir; selection.json in it says how many rows of which hop and
domain were chosen, and their positive rates.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the job's own flags."""
    result = launch.parser("select_samples", description=__doc__, epilog=EPILOG)
    add = result.add_argument
    add("--data_dir", required=True, help="prepared data set")
    add("--target_domains", nargs="+", required=True, help="domains to help")
    add(
        "--source_domains", nargs="+", help="domains of the graph (default: the others)"
    )
    add(
        "--edge_tasks", nargs="+", help="tasks whose positives are edges (default: all)"
    )
    add(
        "--hops", type=int, choices=(0, 1, 2), help="from the target's nodes; default 2"
    )
    add("--degree_cap", type=int, help="edges that a node hands on; default 100")
    add("--min_co_clicks", type=int, help="common users of items, hop two; default 2")
    add("--cluster_features", nargs="+", help="their clusters of many seeds are near")
    add("--cluster_min_share", type=float, help="seeds in such a cluster; default 0.1")
    add(
        "--similar",
        nargs="*",
        metavar="NAME=VALUE",
        help="also add, as hop 3, nodes whose co-occurrence vector is near a seed's "
        "(default: none); bare, or with sides=[users,items] dim=64 min_count=2 "
        "min_cosine=0.6 top_n=10 max_seeds=100000, which are the defaults",
    )
    add(
        "--require_seed",
        action=argparse.BooleanOptionalAction,
        help="user or item of a row must be a seed (default)",
    )
    add("--max_ratio", type=float, help="rows kept a target row; default 3")
    add("--cutoff_day", type=int, help="YYYYMMDD: no edge or seed is newer")
    add("--first_day", type=int, help="of the rows that may be chosen")
    add("--last_day", type=int, help="of these rows; default: cutoff_day")
    add("--item_feature", help="feature that tells items apart (default: keys.item's)")
    add("--name", help="of the stream; default gst")
    add("--seed", type=int, help="of the choice and the shuffle; default 0")
    add("--rows_per_file", type=int, help="default 131072")
    add("--num_buckets", type=int, help="parts of the graph in memory; default 32")
    add("--overwrite", action="store_true", help="replace the stream, at the very end")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args, beam_args = parser().parse_known_args(argv)
    start = time.monotonic()
    done = launch.attempt("select_samples", lambda: _run(args, beam_args))
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
    values = launch.option_values(args, beam_args)
    if args.similar is not None:
        values["similar"] = similarity.parse_settings(args.similar)
    options = SelectOptions.parse(values)
    # Here, not at the top: --help need not wait for Beam.
    from pipeline.jobs import select_samples

    dataset = select_samples.run(options)
    path = dataset.data_dir / select_samples.REPORT_FILE
    return dataset, json.loads(path.read_text("utf-8"))


def summary(report: dict[str, Any]) -> str:
    """Returns the report as a few lines of text."""
    hops = ", ".join(f"hop {h}: {n:,}" for h, n in report["rows_by_hop"].items())
    lines = [
        f"{report['rows']:,} of {report['source_rows']:,} source rows ({hops}); "
        f"{report['target_rows']:,} target rows, so {report['max_rows']:,} at most"
    ]
    for name, cell in report["domains"].items():
        rates = ", ".join(
            f"{task} {_percent(rate)} (source {_percent(source)})"
            for task, rate in cell["positive_rate"].items()
            for source in [cell["source_positive_rate"][task]]
        )
        lines.append(
            f"{name:20}{cell['rows']:12,} of {cell['source_rows']:12,}  {rates}"
        )
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


if __name__ == "__main__":
    sys.exit(main())
