"""Runs the entries of an experiment over seeds; finished runs are found again."""

import math
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent import futures

import yaml
from absl import logging

from features import processes
from features.config import lookup_error
from features.dataset import Dataset
from models.comparison.experiment import Experiment
from models.training import workdir as workdir_lib
from models.training.config import RunConfig
from models.training.nonfinite import NonFiniteLossError
from models.training.result import Result, is_finished
from models.training.trainer import train

LOG_FILE = "train.log"
# What `models.train` puts before the error that it ends with, and how the text of a
# `NonFiniteLossError` begins: a process of its own leaves no more than that.
_PREFIX = "models.train: "
_DIVERGED = _PREFIX + "loss must be finite"


def run_entries(
    experiment: Experiment,
    data_dir: str,
    workdir: str | pathlib.Path,
    *,
    seeds: int,
    labels: Sequence[str] = (),
    time_limit_secs: float | None = None,
    workers: int = 1,
) -> dict[str, list[Result]]:
    """Returns the results by entry, in order of seed.

    Seeds are the outer loop: what is there when a run is stopped early compares
    entries over the same seeds.

    Args:
      experiment: The comparison.
      data_dir: Prepared data set.
      workdir: Where runs lie; see `Experiment.run_folder`.
      seeds: Seeds 0 .. seeds - 1.
      labels: Entries to run, and with them the sources that they read; empty runs all.
      time_limit_secs: No new run is begun after it; None = no limit.
      workers: Runs at a time, >= 1.  More than one: each in a process of its own, on
        its share of the processors, with its output in `<run>/train.log`.

    Raises:
      LookupError: For an unknown label.
      ValueError: For `workers` below 1 or above the number of processors.
      WorkdirError: When a folder holds a run of other settings or another data set.
      RuntimeError: When a run in a process of its own fails.
    """
    for label in labels:
        if label not in experiment.entries:
            raise lookup_error("entries", label, experiment.entries)
    wanted = set(labels or experiment.entries)
    wanted |= {experiment.entries[label].source for label in wanted} - {""}
    folders = {
        (label, seed): experiment.run_folder(workdir, label, seed)
        for seed in range(seeds)
        for label in experiment.entries
    }
    deadline = time.monotonic() + (time_limit_secs or math.inf)
    # Source models first: other runs read them.
    for needs_source in (False, True):
        todo = [
            (experiment.run_config(label, data_dir, seed, workdir), folder)
            for (label, seed), folder in folders.items()
            if label in wanted
            and bool(experiment.entries[label].source) is needs_source
        ]
        left = deadline - time.monotonic()
        limit = None if math.isinf(left) else max(left, 1e-9)
        run_all(todo, workers=workers, time_limit_secs=limit)
    results: dict[str, list[Result]] = {}
    for (label, _), folder in folders.items():
        if is_finished(folder):
            results.setdefault(label, []).append(Result.load(folder))
    return results


def run_all(
    runs: Sequence[tuple[RunConfig, pathlib.Path]],
    *,
    workers: int = 1,
    time_limit_secs: float | None = None,
    may_diverge: bool = False,
) -> dict[pathlib.Path, str]:
    """Does the runs that are not finished, in order; returns those that diverged.

    Args:
      runs: What to train, and the folder of each.
      workers: As for `run_entries`.
      time_limit_secs: No new run is begun after it; None = no limit.
      may_diverge: A loss that is not finite ends its own run only.

    Returns:
      folder -> first line of the error, with `may_diverge`; else {}.

    Raises:
      ValueError, WorkdirError, RuntimeError: As `run_entries`.
    """
    slots = processor_shares(workers)
    todo = [run for run in runs if not _is_done(*run)]
    deadline = time.monotonic() + time_limit_secs if time_limit_secs else None
    if workers > 1:
        return _run_processes(todo, slots, deadline, may_diverge)
    diverged: dict[pathlib.Path, str] = {}
    for number, (config, folder) in enumerate(todo, start=1):
        if deadline is None or time.monotonic() < deadline:
            logging.info("run %d of %d: %s", number, len(todo), folder)
            try:
                train(config, folder)
            except NonFiniteLossError as error:
                if not may_diverge:
                    raise
                diverged[folder] = str(error).partition("\n")[0]
    return diverged


def _is_done(config: RunConfig, folder: pathlib.Path) -> bool:
    """Returns whether this very run is finished; another one there is refused."""
    if not is_finished(folder):
        return False
    dataset = Dataset.open(config.data_dir)
    workdir_lib.claim(folder, workdir_lib.describe(config, dataset))
    return True


def processor_shares(workers: int) -> list[set[int]]:
    """Returns the processors of each worker: disjoint, as even as they can be."""
    processors = sorted(os.sched_getaffinity(0))
    if not 1 <= workers <= len(processors):
        raise ValueError(
            f"run_entries.workers must be 1 to {len(processors)} (processors of this "
            f"machine); got {workers}. Give --workers a number in that range."
        )
    return [set(processors[i::workers]) for i in range(workers)]


def _run_processes(
    todo: Sequence[tuple[RunConfig, pathlib.Path]],
    slots: Sequence[set[int]],
    deadline: float | None,
    may_diverge: bool,
) -> dict[pathlib.Path, str]:
    """Trains all runs, as many at a time as there are slots; ends all on an error."""
    free: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)
    live: set[subprocess.Popen[bytes]] = set()
    stopped = threading.Event()
    starting = threading.Lock()
    diverged: dict[pathlib.Path, str] = {}

    def stop() -> None:
        """Lets no further run begin and asks the live ones to save and end."""
        with starting:
            stopped.set()
            for process in live:
                process.terminate()

    def run(number: int, config: RunConfig, folder: pathlib.Path) -> None:
        if deadline is not None and time.monotonic() > deadline:
            return
        processors = free.get()
        started = time.monotonic()
        try:
            with starting:
                if stopped.is_set():
                    return
                logging.info("run %d of %d: %s", number, len(todo), folder)
                process = _start(config, folder, processors)
                live.add(process)
            code = process.wait()
            with starting:
                live.discard(process)
        finally:
            free.put(processors)
        if code == 0:
            logging.info("%s: %.0f s", folder, time.monotonic() - started)
        elif not stopped.is_set():
            last = (folder / LOG_FILE).read_text("utf-8").strip().split("\n")[-1]
            if may_diverge and last.startswith(_DIVERGED):
                diverged[folder] = last.removeprefix(_PREFIX)
                return
            stop()
            raise _failure(folder, code, last)

    with futures.ThreadPoolExecutor(len(slots)) as pool:
        tasks = [pool.submit(run, i, *item) for i, item in enumerate(todo, start=1)]
        try:
            for task in futures.as_completed(tasks):
                task.result()
        except BaseException:  # also SystemExit and KeyboardInterrupt
            stop()
            raise
    return diverged


def _failure(folder: pathlib.Path, code: int, last: str) -> RuntimeError:
    ended = f"status {code}"
    if code < 0:
        ended = f"signal {-code} ({signal.strsignal(-code)})"
    if code == -signal.SIGKILL:
        ended += ", somebody's or because memory ran out"
    return RuntimeError(
        f"run {folder} must end with status 0; got {ended}; its last line: {last!r} "
        f"(whole output: {folder / LOG_FILE}). Start the same command again "
        "to go on."
    )


def _start(
    config: RunConfig, folder: pathlib.Path, processors: set[int]
) -> subprocess.Popen[bytes]:
    """Starts one run on these processors only; TensorFlow sizes its pools by them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), "utf-8")
    command = [sys.executable, "-m", "models.train", f"--config={path}"]
    command = processes.following([*command, f"--workdir={folder}"], processors)
    with (folder / LOG_FILE).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)
