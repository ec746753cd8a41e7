"""Runs the entries of an experiment over seeds; finished runs are found again."""

import pathlib
import time
from collections.abc import Sequence

from absl import logging

from features.config import lookup_error
from models.comparison.experiment import Experiment
from models.training.result import Result, is_finished
from models.training.trainer import train


def run_entries(
    experiment: Experiment,
    data_dir: str,
    workdir: str | pathlib.Path,
    *,
    seeds: int,
    labels: Sequence[str] = (),
    time_limit_secs: float | None = None,
) -> dict[str, list[Result]]:
    """Returns the results by entry, in order of seed.

    Seeds are the outer loop: what is there when a run is stopped early compares
    entries over the same seeds.

    Args:
      experiment: The comparison.
      data_dir: Prepared data set.
      workdir: Runs lie in `<workdir>/<entry>/seed<seed>`.
      seeds: Seeds 0 .. seeds - 1.
      labels: Entries to run; empty runs all.
      time_limit_secs: No new run is begun after it; None = no limit.
    """
    for label in labels:
        if label not in experiment.entries:
            raise lookup_error("entries", label, experiment.entries)
    workdir, start = pathlib.Path(workdir), time.monotonic()
    results: dict[str, list[Result]] = {}
    for seed in range(seeds):
        for label in experiment.entries:
            folder = workdir / label / f"seed{seed}"
            late = (
                time_limit_secs is not None
                and time.monotonic() - start > time_limit_secs
            )
            wanted = not labels or label in labels
            if is_finished(folder):
                results.setdefault(label, []).append(Result.load(folder))
            elif wanted and not late:
                logging.info("entry %s, seed %d of %d", label, seed + 1, seeds)
                config = experiment.run_config(label, data_dir, seed)
                results.setdefault(label, []).append(train(config, folder))
    return results
