"""Command line: scores a split with a trained run and prints its metrics."""

import argparse
import json
import logging
import pathlib
import sys
from collections.abc import Sequence

from features.spec import SPLITS
from models.training import forms, measure, restore
from models.training import workdir as workdir_lib
from models.training.evaluate import Scores, score

EPILOG = """examples:
  python -m models.evaluate --workdir runs/m3oe
  python -m models.evaluate --workdir runs/m3oe --split validation --json out.json
  python -m models.evaluate --workdir runs/m3oe --data_dir data/next_day --scores s.npz

Another data set must have the fingerprint of the training data: the same spec and
the same vocabularies.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        scores = scores_of(
            arguments.workdir,
            data_dir=arguments.data_dir,
            split=arguments.split,
            batch_size=arguments.batch_size,
        )
        metrics = measure.metrics_of(scores).to_json()
        if arguments.json:
            workdir_lib.write_json(arguments.json, {arguments.split: metrics})
        if arguments.scores:
            scores.save(arguments.scores)
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, LookupError) else error
        print(f"models.evaluate: {text}", file=sys.stderr)
        return 1
    print(f"{arguments.split}\n{measure.format_table(metrics)}")
    if arguments.json:
        print(json.dumps({"metrics": str(arguments.json)}))
    return 0


def scores_of(
    workdir: pathlib.Path,
    *,
    data_dir: str | pathlib.Path | None = None,
    split: str = "test",
    batch_size: int = 16384,
) -> Scores:
    """Returns the scores of a finished run, or of a family of runs as one."""
    config = restore.run_config(workdir)

    def one(folder: pathlib.Path) -> Scores:
        run = restore.load_method(folder, data_dir)
        return score(run.method, run.dataset, split, batch_size)

    if config.form == "mdmt":
        return one(workdir)
    dataset = restore.open_dataset(workdir, data_dir)
    return forms.merge(
        config, dataset, lambda name: one(workdir / forms.RUNS_DIR / name)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.evaluate",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workdir", type=pathlib.Path, required=True, help="a finished run"
    )
    parser.add_argument("--data_dir", help="another data set of the same fingerprint")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--batch_size", type=int, default=16384)
    parser.add_argument("--json", type=pathlib.Path, help="write the metrics here")
    parser.add_argument("--scores", type=pathlib.Path, help="write the scores (.npz)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
