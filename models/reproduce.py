"""Re-runs a published comparison, of runs or of chains: raw data -> result page."""

import argparse
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from features.config import lookup_error
from models.compare import add_run_flags, compare, run_arguments, stop_on_sigterm
from models.comparison import days, overview, planted, prepare, text
from models.comparison.experiment import (
    Experiment,
    experiment_names,
    is_path,
    load_experiment,
)

EPILOG = """examples:
  python -m models.reproduce --experiment movielens_m3oe --raw_dir /data --seeds 5
  python -m models.reproduce --experiment planted_ssctl --seeds 5
  python -m models.reproduce --experiment kuairand_continual --raw_dir /data --seeds 1
"""


def write_results(
    experiment: Experiment | days.DaysExperiment,
    summaries: Mapping[str, Any],
    results_dir: pathlib.Path,
) -> pathlib.Path:
    """Writes the summaries of data sets beside those already there; returns the page.

    The overview of all experiments in that folder is written anew.
    The page says how many seeds each entry has: a run that was cut short is shown as
    far as it got.
    """
    results_dir.mkdir(parents=True, exist_ok=True)
    path = results_dir / f"{experiment.name}.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    known.update({name: _portable(summary) for name, summary in summaries.items()})
    trials = max(
        (v["trials"] for s in known.values() for v in s.get("search", {}).values()),
        default=0,
    )
    search = f" SEARCH={trials}" if trials else ""
    parts = [
        f"# {experiment.title}\n",
        f"Command: `make reproduce DATA=<raw data> EXPERIMENT={experiment.name}"
        f"{search}`. "
        "AUC x 100 on test rows, +- std over seeds; rows/s of one run on its share of "
        "the processors.\n",
    ]
    if isinstance(experiment, days.DaysExperiment):
        parts.append(
            "A column is the day trained on; its test rows are the next day's.\n"
        )
    for name, published in _data(experiment).items():
        if name in known:
            references = published | known[name].get("references", {})
            table = text.to_markdown(known[name], references)
            parts.append(f"## {name}\n\n{table}")
    path.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
    page = path.with_suffix(".md")
    page.write_text("\n".join(parts), "utf-8")
    overview.write(results_dir)
    return page


def _data(
    experiment: Experiment | days.DaysExperiment,
) -> dict[str, dict[str, list[float]]]:
    """Returns the published columns of each data set."""
    if isinstance(experiment, days.DaysExperiment):
        return {experiment.data.dataset: {}}
    return {name: data.published for name, data in experiment.data.items()}


def _portable(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a summary without the folders of the machine that made it."""
    entries = {
        label: {k: v for k, v in entry.items() if k != "workdirs"}
        for label, entry in summary["entries"].items()
    }
    wide = {"wide": _portable(summary["wide"])} if "wide" in summary else {}
    return {**summary, "entries": entries, **wide}


def _reproducer(name_or_path: str) -> Callable[[argparse.Namespace], pathlib.Path]:
    """Returns what re-runs a comparison: of runs, or of chains of days."""
    names = experiment_names() + days.names()
    if not is_path(name_or_path) and name_or_path not in names:
        raise lookup_error("experiment", name_or_path, names)
    return _days if days.is_days_experiment(name_or_path) else _runs


def _runs(args: argparse.Namespace) -> pathlib.Path:
    """Re-runs a comparison of runs; returns the page."""
    experiment = load_experiment(args.experiment)
    chosen = list(filter(None, args.data.split(","))) or list(experiment.data)
    for name in chosen:
        if name not in experiment.data:
            raise lookup_error("data", name, experiment.data)
    for name in chosen:
        data = experiment.data[name]
        folder = args.runs_dir / experiment.name / name
        prepared = prepare.prepare(data, args.raw_dir, folder)
        references = dict(data.published)
        if data.preset:
            references[planted.BEST] = planted.best_reachable(
                folder / "raw", prepared, experiment.domains
            )
        summary = compare(
            experiment,
            str(prepared),
            folder / "runs",
            seeds=args.seeds,
            **run_arguments(args),
            references=references,
        )
        summary["references"] = references
        if data.preset:
            summary["hidden_groups"] = planted.group_agreement(summary, folder / "raw")
        print(f"{name}\n{text.to_text(summary, references)}")
        page = write_results(experiment, {name: summary}, args.results_dir)
    return page


def _days(args: argparse.Namespace) -> pathlib.Path:
    """Re-runs a comparison of chains of days; returns the page."""
    one_run = {"workers": 1, "search": 0}
    for flag in ("data", "entries", "workers", "search", "time_limit_minutes"):
        value = getattr(args, flag)
        if value and value != one_run.get(flag):
            raise ValueError(
                f"reproduce.{flag} must be left out for chains of days, which are "
                f"walked whole and one after another; got {value!r}."
            )
    experiment = days.load(args.experiment)
    folder = args.runs_dir / experiment.name
    workdirs = days.walk(experiment, args.raw_dir, folder, seeds=args.seeds)
    summary = days.summarise(experiment, workdirs)
    print(text.to_text(summary))
    return write_results(
        experiment, {experiment.data.dataset: summary}, args.results_dir
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m models.reproduce",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experiment", required=True)
    parser.add_argument(
        "--raw_dir", type=pathlib.Path, help="not needed for a planted log"
    )
    parser.add_argument("--runs_dir", default="runs", type=pathlib.Path)
    parser.add_argument("--results_dir", default="docs/results", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", default="", help="only these data sets of it")
    add_run_flags(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stop_on_sigterm()
    try:
        page = _reproducer(args.experiment)(args)
    except (ValueError, LookupError, RuntimeError, OSError) as error:
        print(f"reproduce failed: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    print(f"results: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
