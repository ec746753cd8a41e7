"""Several methods and seeds on one data set: one table, JSON, an HTML report."""

import argparse
import json
import logging
import pathlib
import signal
import sys
from typing import Any

from features.dataset import Dataset
from models.comparison import report, runner, search, table, text
from models.comparison.experiment import Experiment, load_experiment

EPILOG = """examples:
  python -m models.compare --experiment demo --data_dir data --workdir runs/demo
  python -m models.compare --experiment my.yaml --data_dir data/x --workdir runs/x \\
      --seeds 5 --entries m3oe,mmoe --workers 2
  python -m models.compare --experiment my.yaml --data_dir data/x --workdir runs/x \\
      --search 8 --seeds 5

The same command again does what is missing.
"""


def compare(
    experiment: Experiment,
    data_dir: str,
    workdir: str | pathlib.Path,
    *,
    seeds: int,
    labels: tuple[str, ...] = (),
    time_limit_secs: float | None = None,
    workers: int = 1,
    search_trials: int = 0,
    references: text.References | None = None,
) -> dict:
    """Runs what is missing, writes JSON and report; returns the summary.

    The arguments are those of `runner.run_entries`; with `search_trials` the settings
    of every entry are first searched on validation; `references` are further columns
    of the report's table.  The time limit is for the search and for the seeds each.

    Raises:
      LookupError: For an unknown entry.
      ValueError: For a config, workdir or data set that cannot be used.
    """
    workdir = pathlib.Path(workdir)
    dataset = Dataset.open(data_dir)
    found = {}
    if search_trials:
        found = search.search(
            experiment,
            data_dir,
            workdir,
            trials=search_trials,
            labels=labels,
            time_limit_secs=time_limit_secs,
            workers=workers,
        )
        experiment = experiment.with_settings(
            {label: values["settings"] for label, values in found.items()}
        )
    results = runner.run_entries(
        experiment,
        data_dir,
        workdir,
        seeds=seeds,
        labels=labels,
        time_limit_secs=time_limit_secs,
        workers=workers,
    )
    summary = table.summarise(experiment, results) | {"search": found}
    (workdir / "comparison.json").write_text(json.dumps(summary, indent=2), "utf-8")
    if results:
        report.write_report(
            workdir / "report.html", summary, results, dataset, references
        )
    return summary


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which runs to do, and how many at a time."""
    parser.add_argument(
        "--entries",
        default="",
        help="only these (and sources that they read), comma separated",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="runs at a time, each on its share of the processors",
    )
    parser.add_argument(
        "--search",
        type=int,
        default=0,
        metavar="TRIALS",
        help="first search every entry's settings on validation, so many runs each",
    )
    parser.add_argument(
        "--time_limit_minutes", type=float, help="begin no run after it"
    )


def run_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what the flags of `add_run_flags` say, as arguments of `compare`."""
    limit = args.time_limit_minutes
    return {
        "labels": tuple(filter(None, args.entries.split(","))),
        "workers": args.workers,
        "search_trials": args.search,
        "time_limit_secs": limit and 60 * limit,
    }


def read_references(path: pathlib.Path | None) -> text.References:
    """Returns the further columns of a JSON file; none without one.

    Raises:
      ValueError: For a file of another form.
    """
    if path is None:
        return {}
    values = json.loads(path.read_text("utf-8"))
    if not isinstance(values, dict) or not all(
        isinstance(column, list) for column in values.values()
    ):
        raise ValueError(
            f"--references must be a JSON object of lists of AUC x 100; got "
            f"{type(values).__name__} ({path})."
        )
    return values


def stop_on_sigterm() -> None:
    """Makes SIGTERM end the process as an exit, so that its runs are ended too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


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
    add_run_flags(parser)
    parser.add_argument(
        "--references",
        type=pathlib.Path,
        help="JSON of further columns: label -> AUC x 100 by domain, task",
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stop_on_sigterm()
    try:
        references = read_references(args.references)
        summary = compare(
            load_experiment(args.experiment, args.set),
            args.data_dir,
            args.workdir,
            seeds=args.seeds,
            **run_arguments(args),
            references=references,
        )
    except (ValueError, LookupError, RuntimeError, OSError) as error:
        print(f"compare failed: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    print(text.to_text(summary, references))
    print(f"report: {pathlib.Path(args.workdir) / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
