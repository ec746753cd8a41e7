"""Re-runs a published comparison: raw data -> data sets -> runs -> result page.

Each data set is prepared by the preprocessing job, as a process of its own: training
images need not have it installed.
"""

import argparse
import json
import logging
import pathlib
import subprocess
import sys

from features.dataset import SUCCESS_FILE
from models.compare import add_run_flags, compare, run_arguments, stop_on_sigterm
from models.comparison import text
from models.comparison.experiment import PreparedData, load_experiment

EPILOG = """example:
  python -m models.reproduce --experiment movielens_m3oe --raw_dir /data --seeds 5
"""


def prepare(data: PreparedData, raw_dir: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Prepares a data set unless it is there.

    Raises:
      RuntimeError: When the job fails; it has printed why.
    """
    if (data_dir / SUCCESS_FILE).exists():
        return
    command = [sys.executable, "-m", "pipeline.preprocess"]
    command += ["--dataset", data.dataset, "--raw_dir", str(raw_dir / data.raw_dir)]
    command += ["--data_dir", str(data_dir)]
    for override in data.overrides:
        command += ["--set", override]
    if subprocess.run(command, check=False).returncode != 0:
        raise RuntimeError(f"data set {data.dataset} was not prepared; see above.")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m models.reproduce",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--raw_dir", required=True, type=pathlib.Path)
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
        summaries, pages = {}, [f"# {experiment.title}\n"]
        command = "make reproduce DATA=<raw data> "
        command += f"EXPERIMENT={experiment.name} SEEDS={args.seeds}"
        pages.append(
            f"Command: `{command}`. AUC x 100 on test rows, +- std over seeds.\n"
        )
        chosen = set(filter(None, args.data.split(","))) or set(experiment.data)
        for name, data in experiment.data.items():
            if name not in chosen:
                continue
            folder = args.runs_dir / experiment.name / name
            prepare(data, args.raw_dir, folder / "data")
            summary = compare(
                experiment,
                str(folder / "data"),
                folder / "runs",
                seeds=args.seeds,
                **run_arguments(args),
                references=data.published,
            )
            print(f"{name}\n{text.to_text(summary, data.published)}")
            summaries[name] = summary
            pages.append(f"## {name}\n\n" + text.to_markdown(summary, data.published))
        args.results_dir.mkdir(parents=True, exist_ok=True)
        base = args.results_dir / experiment.name
        base.with_suffix(".json").write_text(json.dumps(summaries, indent=1), "utf-8")
        base.with_suffix(".md").write_text("\n".join(pages), "utf-8")
    except (ValueError, LookupError, RuntimeError, OSError) as error:
        print(f"reproduce failed: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    print(f"results: {base}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
