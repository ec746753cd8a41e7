"""Walks a chain of days: data set, selected rows, training, next-day test, export."""

import argparse
import fcntl
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from features import processes
from features.config import ConfigError
from pipeline import chain as chain_lib
from pipeline.chain import Chain, ChainError, Command, Walk

GATE_STATUS = 3  # of serving.export: refused by the gate
EPILOG = """examples:
  python -m pipeline.continual --config chain.yaml --workdir chains/target \\
      --first_day 20220422 --last_day 20220428
  python -m pipeline.continual --config chain.yaml --workdir chains/target \\
      --first_day 20220422 --last_day 20220422 --print_commands

The same command again does what is missing: a killed stage is done again or goes on, a
finished day is left alone, a missed one is caught up.  With --print_commands nothing
runs; a scheduler runs the printed commands in this order.
"""


def walk_days(walk: Walk, first: int, last: int) -> dict[str, Any]:
    """Does all days that are not done; returns what every done day came to.

    Raises:
      ChainError: When a stage fails; what was done stays done.
    """
    for day in walk.days(first, last):
        started = time.monotonic()
        walk.write_config(day, first)
        for command in walk.commands(day, first):
            if not command.is_done:
                _run(walk, command, day)
        (walk.folder(day) / chain_lib.DONE_FILE).touch()
        print(f"{day}: done in {time.monotonic() - started:.0f} s", flush=True)
    return {str(day): summary(walk, day) for day in walk.done()}


def _run(walk: Walk, command: Command, day: int) -> None:
    print(f"{day}: {command.stage}", flush=True)
    version = pathlib.Path(walk.chain.export_dir) / str(day)
    if command.stage == "export" and version.exists():
        # Published by a walk that was killed before it could note so.
        _write_json(command.makes, {"published": True})
        return
    status = processes.run([sys.executable, *command.arguments])
    if command.stage == "export" and status in (0, GATE_STATUS):
        _write_json(command.makes, {"published": status == 0})
        return
    if status:
        raise ChainError(
            f"stage {command.stage} of {day} must end with status 0; got "
            f"{status}, see above ({walk.folder(day)}). Start the same "
            f"command again to go on. It was: python {shlex.join(command.arguments)}"
        )
    if not command.is_done:
        raise ChainError(
            f"stage {command.stage} of {day} must leave {command.makes}; it did not."
        )


def summary(walk: Walk, day: int) -> dict[str, Any]:
    """Returns a day's next-day metrics, source version and what became of it."""
    folder = walk.folder(day)
    result = json.loads((folder / "run" / chain_lib.RESULT_FILE).read_text("utf-8"))
    test = result["metrics"]["test"]
    config = json.loads((folder / "run" / "config.json").read_text("utf-8"))["run"]
    source = config["method_config"].get("source_workdir", "")
    values = {
        "mean_domain_auc": test["mean_domain_auc"],
        "mean_logloss": test["mean_logloss"],
        "rows": sum(cell["rows"] for cell in test["overall"][:1]),
        "source_version": pathlib.Path(source).parent.name if source else None,
        "published": None,
    }
    path = folder / chain_lib.EXPORT_FILE
    if path.exists():
        values |= json.loads(path.read_text("utf-8"))
    return values


def to_text(days: dict[str, Any]) -> str:
    """Returns one line a day."""
    lines = [f"{'day':>8} {'next-day AUC':>12} {'logloss':>8} {'rows':>9}  source"]
    for day, values in days.items():
        auc, loss = values["mean_domain_auc"], values["mean_logloss"]
        published = {True: "", False: "  NOT published: gate", None: ""}
        lines.append(
            f"{day:>8} {'undefined' if auc is None else f'{auc:.4f}':>12} "
            f"{'-' if loss is None else f'{loss:.4f}':>8} {values['rows']:>9,}  "
            f"{values['source_version'] or '-'}{published[values['published']]}"
        )
    return "\n".join(lines)


@contextmanager
def _claimed(chain: Chain, workdir: pathlib.Path) -> Iterator[None]:
    """Holds the workdir for this process and this chain.

    Raises:
      ChainError: When another process or another chain has it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "chain.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ChainError(
                f"workdir {workdir} must be walked by one process at a time; another "
                "has it. Wait for it, or stop it."
            ) from error
        path, asked = workdir / chain_lib.CHAIN_FILE, chain.model_dump(mode="json")
        if path.exists():
            # Parsed: a chain that began before an option existed has its default.
            found = Chain.load(path).model_dump(mode="json")
            differing = sorted(k for k in asked if found[k] != asked[k])
            if differing:
                raise ChainError(
                    f"workdir {workdir} must hold this chain or nothing; it differs in "
                    f"{', '.join(differing)}. Choose another workdir."
                )
        else:
            _write_json(path, asked)
        yield


def _write_json(path: pathlib.Path, values: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(values, indent=2), "utf-8")
    temporary.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.continual",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="YAML of a chain")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--first_day", required=True, type=int, help="YYYYMMDD")
    parser.add_argument("--last_day", required=True, type=int, help="YYYYMMDD")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument(
        "--print_commands", action="store_true", help="print, do not run"
    )
    args = parser.parse_args(argv)
    try:
        walk = Walk(Chain.load(args.config, args.set), args.workdir)
        with _claimed(walk.chain, args.workdir):
            if args.print_commands:
                for day in walk.days(args.first_day, args.last_day):
                    walk.write_config(day, args.first_day)
                    for command in walk.commands(day, args.first_day):
                        print(f"python {shlex.join(command.arguments)}")
                return 0
            days = walk_days(walk, args.first_day, args.last_day)
    except (ConfigError, ChainError, LookupError, OSError) as error:
        print(f"continual failed: {error}", file=sys.stderr)
        return 1
    _write_json(args.workdir / "days.json", days)
    print(to_text(days))
    print(f"chain: {args.workdir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
