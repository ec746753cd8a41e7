"""The folder of a run: its lock, its config file, atomic writes.

Layout: `config.json`, `checkpoints/`, `best/`, `train/` and `eval/` (TensorBoard),
`history.jsonl`, `scores_<split>.npz`, `result.json`.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import socket
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from features.dataset import Dataset
from models.training.config import FREE_KEYS, RunConfig

CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"
HISTORY_FILE = "history.jsonl"
LOCK_FILE = ".lock"
PACKAGES = ("tensorflow", "tf-keras", "tensorflow-recommenders", "numpy", "isthmus")


class WorkdirError(RuntimeError):
    """A workdir that belongs to another run, or is in use."""


def write_atomic(path: pathlib.Path, text: str) -> None:
    """Writes a text file so that a kill leaves the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes JSON atomically; NaN is refused (use None)."""
    write_atomic(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns a JSON file, or says which file is damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise WorkdirError(
            f"{path} must be readable JSON: {error}. Is this a workdir of "
            "python -m models.train?"
        ) from error


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the workdir for this process; the kernel frees it when the process dies.

    Raises:
      WorkdirError: When another process has it, naming its host and pid.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / LOCK_FILE
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise WorkdirError(
                f"workdir {workdir} must be used by one run at a time; it is in use "
                f"by {file.read().strip() or 'another process'}. Wait for it, stop "
                "it, or choose another workdir."
            ) from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} on host {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)


def describe(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """Returns what `config.json` holds: all that this run is made of."""
    return {
        "run": config.resolved().model_dump(mode="json"),
        "dataset": {
            "name": dataset.info.spec.name,
            "fingerprint": dataset.info.fingerprint,
            "rows": {
                split: dataset.info.num_rows(split) for split in dataset.info.counts
            },
        },
        "git_commit": git_commit(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def claim(workdir: pathlib.Path, values: Mapping[str, Any]) -> bool:
    """Makes the workdir this run's own; returns whether it already was.

    Raises:
      WorkdirError: When it holds a run of another config or data set, naming the
        keys that differ.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        write_json(path, values)
        return False
    found = read_json(path)
    old = _flat({"run": found.get("run", {}), "dataset": found.get("dataset", {})})
    new = _flat({"run": values["run"], "dataset": values["dataset"]})
    differing = [
        f"{key.removeprefix('run.')}: {old.get(key, '(unset)')!r} there, "
        f"{new.get(key, '(unset)')!r} asked"
        for key in sorted(old.keys() | new.keys())
        if key.split(".")[1] not in FREE_KEYS
        and old.get(key) != new.get(key)
        # A key that came after that run was begun, and is off in this one.
        and (key in old or new[key])
    ]
    if differing:
        raise WorkdirError(
            f"workdir {workdir} must hold this run or nothing; it differs in "
            + "; ".join(differing)
            + ". Choose another workdir, or delete this one."
        )
    return True


def git_commit() -> str:
    """Returns the commit of the code, `+changes` when edited, or "unknown"."""
    folder = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"  # an installed package, or no git: not an error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, path + ".")
        else:
            flat[path] = value
    return flat
