"""Re-runs a published comparison: raw data -> data sets -> runs -> result page."""

import argparse
import json
import logging
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from features.config import lookup_error
from models.compare import add_run_flags, compare, run_arguments, stop_on_sigterm
from models.comparison import overview, prepare, text
from models.comparison.experiment import Experiment, load_experiment

EPILOG = """examples:
  python -m models.reproduce --experiment movielens_m3oe --raw_dir /data --seeds 5
  python -m models.reproduce --experiment planted_ssctl --seeds 5
"""


def write_results(
    experiment: Experiment,
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
    parts = [
        f"# {experiment.title}\n",
        f"Command: `make reproduce DATA=<raw data> EXPERIMENT={experiment.name}`. "
        "AUC x 100 on test rows, +- std over seeds; rows/s of one run on its share of "
        "the processors.\n",
    ]
    for name, data in experiment.data.items():
        if name in known:
            references = data.published | known[name].get("references", {})
            table = text.to_markdown(known[name], references)
            parts.append(f"## {name}\n\n{table}")
    path.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
    page = path.with_suffix(".md")
    page.write_text("\n".join(parts), "utf-8")
    overview.write(results_dir)
    return page


def _portable(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a summary without the folders of the machine that made it."""
    entries = {
        label: {k: v for k, v in entry.items() if k != "workdirs"}
        for label, entry in summary["entries"].items()
    }
    wide = {"wide": _portable(summary["wide"])} if "wide" in summary else {}
    return {**summary, "entries": entries, **wide}


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
                references[prepare.BEST] = prepare.best_reachable(
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
            print(f"{name}\n{text.to_text(summary, references)}")
            page = write_results(experiment, {name: summary}, args.results_dir)
    except (ValueError, LookupError, RuntimeError, OSError) as error:
        print(f"reproduce failed: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    print(f"results: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
