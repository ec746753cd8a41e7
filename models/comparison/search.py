"""The same small search for every entry, on validation, before the seeds are run.

Nothing is kept but the runs themselves: the sampler is seeded and is told the results
in a fixed order, so a search that is started again asks for the same settings, finds
the finished runs and goes on.  A run that diverged goes on from its last checkpoint and
diverges again.
"""

import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from scipy.stats import qmc

from models.comparison import runner
from models.comparison.experiment import Choice, Experiment, Range
from models.training import measure
from models.training.config import RunConfig
from models.training.result import Result, is_finished

SEED = 0
# Points of a Halton sequence: as few as three cover a plane of two rates, where as many
# random ones may lie together.
EVEN = 5


def search(
    experiment: Experiment,
    data_dir: str,
    workdir: str | pathlib.Path,
    *,
    trials: int,
    labels: Sequence[str] = (),
    workers: int = 1,
    time_limit_secs: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Returns the best settings of every entry by its validation metric.

    Every entry gets `trials` runs with seed 0: first its own settings as written, then
    `EVEN` spread evenly over its space (the same for entries with the same space), then
    those that a TPE sampler proposes.  Test rows are not looked at.  A run whose loss
    stops being finite is a failed trial, kept in the log; the search goes on.

    Args:
      experiment: With a `search` space.
      data_dir: Prepared data set.
      workdir: Of the comparison; see `Experiment.run_folder`.
      trials: Runs an entry, >= 1.
      labels: Entries to search for; empty = all.
      workers: Runs at a time.
      time_limit_secs: No run is begun after it; entries keep the best so far.

    Returns:
      label -> `settings` {a.b.c: value}, `value` (validation metric), `trials` (done),
      `failed` (of them).

    Raises:
      ValueError: For an experiment without a search space, or `trials` below 1.
      RuntimeError: When Optuna is not installed, or every trial of an entry failed.
    """
    spaces = _spaces(experiment, labels, trials)

    def run(label: str, settings: Mapping[str, Any]) -> tuple[RunConfig, pathlib.Path]:
        # Its source is as it is written: the source's own search must not move it.
        made = experiment.with_settings({label: settings})
        config = made.run_config(label, data_dir, SEED, workdir)
        return config, made.run_folder(workdir, label, SEED)

    sources = sorted({experiment.entries[label].source for label in spaces} - {""})
    runner.run_all([run(source, {}) for source in sources], workers=workers)
    studies = {label: _Study(label, space) for label, space in spaces.items()}
    deadline = time.monotonic() + (time_limit_secs or math.inf)
    for number in range(trials):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        asked = {label: study.ask(number) for label, study in studies.items()}
        runs = {label: run(label, settings) for label, settings in asked.items()}
        diverged = runner.run_all(
            list(runs.values()),
            workers=workers,
            time_limit_secs=None if math.isinf(left) else left,
            may_diverge=True,
        )
        for label, (config, at) in runs.items():
            if is_finished(at):
                value = Result.load(at).best_metric
                studies[label].tell(asked[label], value, config.metric)
            elif at in diverged:
                studies[label].fail(asked[label], diverged[at])
    found = {label: study.best() for label, study in studies.items()}
    return {label: best for label, best in found.items() if best}


def _spaces(
    experiment: Experiment, labels: Sequence[str], trials: int
) -> dict[str, dict[str, Choice]]:
    """Returns the search space of every entry to search for."""
    spaces = {
        label: {**experiment.search, **entry.search}
        for label, entry in experiment.entries.items()
        if not labels or label in labels
    }
    if trials < 1 or not all(spaces.values()):
        raise ValueError(
            "compare.search must be at least 1 trial, with a `search` space for every "
            f"entry in the experiment; got {trials} and spaces for "
            f"{[label for label, space in spaces.items() if space]}."
        )
    return spaces


class _Study:
    """One entry's search."""

    def __init__(self, label: str, space: Mapping[str, Choice]):
        try:
            import optuna  # an extra of its own: training does not need it
        except ImportError as error:
            raise RuntimeError(
                "compare.search needs optuna, which is not installed. Install "
                "isthmus[search]."
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._label, self._space = label, dict(sorted(space.items()))
        self._sampler = optuna.samplers.TPESampler(seed=SEED, n_startup_trials=EVEN)
        self._points = qmc.Halton(len(space), scramble=False).random(1 + EVEN)
        self._study = optuna.create_study(direction="maximize", sampler=self._sampler)
        self._states = optuna.trial.TrialState
        self._trial: Any = None
        self._trials = 0
        self._errors: list[str] = []
        self._best: dict[str, Any] = {}

    def ask(self, number: int) -> dict[str, Any]:
        """Returns the settings of trial `number`; those of 0 are as written."""
        if number == 0:
            return {}
        if number <= EVEN:  # point 0 is a corner
            point = zip(self._space.items(), self._points[number], strict=True)
            self._study.enqueue_trial({k: _at(choice, u) for (k, choice), u in point})
        self._trial = self._study.ask()
        return {key: self._suggest(key, choice) for key, choice in self._space.items()}

    def _suggest(self, key: str, choice: Choice) -> Any:
        if isinstance(choice, Range):
            return self._trial.suggest_float(
                key, choice.low, choice.high, log=choice.log
            )
        index = self._trial.suggest_categorical(key, list(range(len(choice))))
        return choice[index]  # values may be lists, which Optuna does not take

    def tell(self, settings: Mapping[str, Any], value: float | None, name: str) -> None:
        """Takes the validation metric `name` of the settings asked for last."""
        if self._trial is not None and value is not None:
            self._study.tell(self._trial, measure.sign(name) * value)
        elif self._trial is not None:
            self._study.tell(self._trial, state=self._states.FAIL)
        self._trials += 1
        if not self._best or measure.is_better(name, value, self._best["value"]):
            self._best = {"settings": dict(settings), "value": value}

    def fail(self, settings: Mapping[str, Any], error: str) -> None:
        """Takes the error with which the settings asked for last diverged."""
        logging.warning(
            "search of %s: trial %d failed, settings %s: %s",
            self._label,
            self._trials,
            json.dumps(settings, sort_keys=True) if settings else "as written",
            error,
        )
        if self._trial is not None:
            # Not FAIL, of which the sampler learns nothing: it ranks a pruned trial
            # below all others and moves away from it.
            self._study.tell(self._trial, state=self._states.PRUNED)
        self._trials += 1
        self._errors.append(error)

    def best(self) -> dict[str, Any]:
        """Returns the best settings, their value and the numbers of trials.

        {} before the first trial.

        Raises:
          RuntimeError: When all failed.
        """
        counts = {"trials": self._trials, "failed": len(self._errors)}
        if self._best or not self._errors:
            return self._best and self._best | counts
        space = "; ".join(f"{key}: {_shown(c)}" for key, c in self._space.items())
        raise RuntimeError(
            f"compare.search of entry {self._label!r} must have a trial whose loss "
            f"stays finite; got {self._trials} of {self._trials} that diverged, the "
            f"first, with the settings as written: {self._errors[0]} Narrow the "
            "entry's search space, above all the upper ends of learning rates "
            f"({space}), and lower the learning rate as written."
        )


def _at(choice: Choice, share: float) -> float | int:
    """Returns what lies at a share in [0, 1) of a range, or the index of a value."""
    if not isinstance(choice, Range):
        return int(share * len(choice))
    if choice.log:
        return choice.low * (choice.high / choice.low) ** share
    return choice.low + share * (choice.high - choice.low)


def _shown(choice: Choice) -> str:
    if isinstance(choice, Range):
        return f"{choice.low:g} to {choice.high:g}"
    return ", ".join(map(str, choice))
