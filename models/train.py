"""Command line: trains a method on a prepared data set."""

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from features.config import apply_overrides, read_yaml
from models import registry
from models.training import allocator, measure, trainer
from models.training.config import RunConfig
from models.training.result import Result
from models.training.signals import Interrupted

EPILOG = """examples:
  python -m models.train --method m3oe --data_dir data/ml1m --workdir runs/m3oe
  python -m models.train --config run.yaml --workdir runs/a --set batch_size=40960
  python -m models.train --method mlp --data_dir data/ml1m --workdir runs/single \\
      --set form=mtl --set method_config.optimizer.dense.learning_rate=0.01
  python -m models.train --config run.yaml --workdir runs/a --profile

The same command again resumes a run that was stopped, and prints the result of one
that is finished.  Exit status: 0 finished, 1 error, 143 stopped by SIGTERM (130 by
Ctrl-C) with everything saved.
"""
PROFILE_STEPS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not arguments.config and not arguments.method:
        parser.error("one of --config and --method is needed")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    # TensorFlow's checkpoint writer talks through absl at INFO.
    logging.getLogger("absl").setLevel(logging.WARNING)
    allocator.keep_freed_memory()
    try:
        config = run_config(arguments)
        result = trainer.train(config, arguments.workdir)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        if arguments.traceback:
            raise
        text = error.args[0] if isinstance(error, LookupError) else error
        print(f"models.train: {text}", file=sys.stderr)
        return 1
    print(report(result))
    return 0


def run_config(arguments: argparse.Namespace) -> RunConfig:
    """Returns the run config of a command line: file, then flags, then --set."""
    values: dict[str, Any] = read_yaml(arguments.config) if arguments.config else {}
    for name in ("method", "data_dir", "form", "seed", "batch_size", "max_epochs"):
        given = getattr(arguments, name)
        if given is not None:
            values[name] = given
    if arguments.profile:
        values["profile"] = {"num_steps": PROFILE_STEPS, **values.get("profile", {})}
    values = apply_overrides(values, arguments.set)
    return RunConfig.parse(values, where=str(arguments.config or "the command line"))


def report(result: Result) -> str:
    """Returns what is printed at the end: tables, place, speed."""
    parts = [
        f"{split}\n{measure.format_table(metrics)}"
        for split, metrics in result.metrics.items()
    ]
    speed = result.train_rows_per_sec
    best = (
        f"best {result.metric} "
        + ("undefined" if result.best_metric is None else f"{result.best_metric:.4f}")
        + ("" if result.best_step is None else f" at step {result.best_step}")
    )
    shown = "" if speed is None else f", {speed:,.0f} training rows/s"
    parts.append(
        f"{best}; {result.steps} steps, {result.epochs:.1f} epochs{shown}, "
        f"{result.secs:.0f} s; {result.stop_reason}\nworkdir: {result.workdir}"
    )
    return "\n\n".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.train",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=pathlib.Path, help="YAML of a RunConfig")
    parser.add_argument(
        "--workdir", type=pathlib.Path, required=True, help="folder of the run"
    )
    parser.add_argument("--method", help=", ".join(sorted(registry.METHODS)))
    parser.add_argument("--data_dir", help="prepared data set")
    parser.add_argument("--form", help="mdmt, mtl, mdl or isolated")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--max_epochs", type=float)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="any key of the run config; repeatable",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help=f"trace {PROFILE_STEPS} steps and say where the time goes",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error was raised"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
