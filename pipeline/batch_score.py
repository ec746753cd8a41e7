"""Scores raw logs, or a prepared split, with exported models, as a Beam job.

Flags that are not listed here are Beam's own pipeline options.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

from features.config import ConfigError
from pipeline import launch

EPILOG = """examples:
  python -m pipeline.batch_score --model m3oe=export/ranker --data_dir data \\
      --raw_dir raw --source_path 'today/*.parquet' --output_dir scores/today
  python -m pipeline.batch_score --model a=export/a --model b=export/b/20260101 \\
      --data_dir data --split test --output_dir scores/test
  python -m pipeline.batch_score --model m3oe=export/ranker --data_dir data \\
      --raw_dir raw --keys user_id item_id request_id --output_dir scores/today \\
      --direct_running_mode=multi_processing --direct_num_workers=2

The output folder holds scores/part-*.parquet (keys, row_id, domain, one column
<model>/<task> and <model>/version per model; null where a model does not serve the
row's domain), histograms.json (per model, task and domain), scores.json, rejected/
(each row with its reason) and _SUCCESS.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the job's own flags."""
    result = launch.parser("batch_score", description=__doc__, epilog=EPILOG)
    add = result.add_argument
    add(
        "--model",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="an exported model (its newest version, or a version folder); repeatable",
    )
    add("--data_dir", required=True, help="data set that the models were trained on")
    add("--output_dir", required=True, help="folder to write")
    add("--raw_dir", help="folder of raw logs; without it, --split is scored")
    add("--source_path", help="files below raw_dir (a glob) instead of the spec's")
    add("--split", choices=("train", "validation", "test"), default="test")
    add("--keys", nargs="+", help="columns to pass through (default user item time)")
    add(
        "--histories",
        choices=("compute", "column"),
        default="compute",
        help="from earlier rows of the raw log, or ready list columns in it",
    )
    add("--output_format", choices=("parquet", "tfrecord"), default="parquet")
    add("--num_shards", type=int, default=8, help="score files")
    add("--max_rejected_share", type=float, help="default: the data set's")
    add("--check_fingerprint", action=argparse.BooleanOptionalAction, default=True)
    add("--overwrite", action="store_true")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args, beam_args = parser().parse_known_args(argv)
    start = time.monotonic()
    result = launch.attempt("batch_score", lambda: _run(args, beam_args))
    if result is None:
        return 1
    secs = time.monotonic() - start
    for domain, rows in result["rows_by_domain"].items():
        print(f"{domain:20}{rows:12,} rows")
    for reason, count in result["rejected"].items():
        print(f"rejected: {count:,} x {reason}")
    print(f"{result['rows']:,} rows in {secs:.1f} s ({result['rows'] / secs:,.0f}/s)")
    print(f"scores: {pathlib.Path(args.output_dir) / 'scores'}")
    return 0


def _run(args: argparse.Namespace, beam_args: list[str]) -> dict[str, Any]:
    """Runs the job; returns what `scores.json` says."""
    # Here, not at the top: --help need not wait for Beam.
    from pipeline.jobs import batch_score

    values = launch.option_values(args, beam_args)
    values["models"] = _models(values.pop("model"))
    return batch_score.run(batch_score.ScoreOptions.parse(values))


def _models(items: list[str]) -> dict[str, str]:
    models: dict[str, str] = {}
    for item in items:
        name, separator, path = item.partition("=")
        if not separator or not name or not path:
            raise ConfigError(f"--model must be written NAME=PATH; got {item!r}.")
        if name in models:
            raise ConfigError(f"--model names must differ; {name!r} stands twice.")
        models[name] = path
    return models


if __name__ == "__main__":
    sys.exit(main())
