"""Several methods and seeds on one data set: one table, JSON, an HTML report."""

import argparse
import json
import logging
import pathlib
import sys

from features.dataset import Dataset
from models.comparison import report, runner, table
from models.comparison.experiment import Experiment, load_experiment

EPILOG = """examples:
  python -m models.compare --experiment demo --data_dir data --workdir runs/demo
  python -m models.compare --experiment my.yaml --data_dir data/x --workdir runs/x \\
      --seeds 5 --entries m3oe,mmoe
"""


def compare(
    experiment: Experiment,
    data_dir: str,
    workdir: str | pathlib.Path,
    *,
    seeds: int,
    labels: tuple[str, ...] = (),
    time_limit_secs: float | None = None,
) -> dict:
    """Runs what is missing, writes JSON and report; returns the summary.

    Raises:
      LookupError: For an unknown entry.
      ValueError: For a config, workdir or data set that cannot be used.
    """
    workdir = pathlib.Path(workdir)
    dataset = Dataset.open(data_dir)
    results = runner.run_entries(
        experiment,
        data_dir,
        workdir,
        seeds=seeds,
        labels=labels,
        time_limit_secs=time_limit_secs,
    )
    summary = table.summarise(experiment, results)
    (workdir / "comparison.json").write_text(json.dumps(summary, indent=2), "utf-8")
    if results:
        report.write_report(workdir / "report.html", summary, results, dataset)
    return summary


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m models.compare",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experiment", required=True, help="a name, or a YAML file")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 .. n - 1")
    parser.add_argument("--entries", default="", help="only these, comma separated")
    parser.add_argument(
        "--time_limit_minutes", type=float, help="begin no run after it"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        summary = compare(
            load_experiment(args.experiment, args.set),
            args.data_dir,
            args.workdir,
            seeds=args.seeds,
            labels=tuple(filter(None, args.entries.split(","))),
            time_limit_secs=args.time_limit_minutes and 60 * args.time_limit_minutes,
        )
    except (ValueError, LookupError, RuntimeError, OSError) as error:
        print(f"compare failed: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    print(table.to_text(summary))
    print(f"report: {pathlib.Path(args.workdir) / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
