"""The same small search for every entry, on validation, before the seeds are run.

Nothing is kept but the runs themselves: the sampler is seeded and is told the results
in a fixed order, so a search that is started again asks for the same settings, finds
the finished runs and goes on.
"""

import hashlib
import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from models.comparison import runner
from models.comparison.experiment import Choice, Experiment, Range
from models.training import measure
from models.training.config import RunConfig
from models.training.result import Result, is_finished

FOLDER = "search"
SEED = 0


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
    those that a TPE sampler proposes.  Test rows are not looked at.

    Args:
      experiment: With a `search` space.
      data_dir: Prepared data set.
      workdir: Runs lie in `<workdir>/search/<entry>/<hash of the settings>`.
      trials: Runs an entry, >= 1.
      labels: Entries to search for; empty = all.
      workers: Runs at a time.
      time_limit_secs: No run is begun after it; entries keep the best so far.

    Returns:
      label -> `settings` {a.b.c: value}, `value` (validation metric), `trials` (done).

    Raises:
      ValueError: For an experiment without a search space, or `trials` below 1.
      RuntimeError: When Optuna is not installed.
    """
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
    folder = pathlib.Path(workdir) / FOLDER

    def run(label: str, settings: Mapping[str, Any]) -> tuple[RunConfig, pathlib.Path]:
        made = experiment.with_settings({label: settings})
        config = made.run_config(label, data_dir, SEED)
        source = experiment.entries[label].source
        if source:  # as it is written: the source's own search must not move it
            at = str(folder / source / _name({}))
            values = {**config.method_config, "source_workdir": at}
            config = config.model_copy(update={"method_config": values})
        return config, folder / label / _name(settings)

    sources = sorted({experiment.entries[label].source for label in spaces} - {""})
    runner.run_all([run(source, {}) for source in sources], workers=workers)
    studies = {label: _Study(space) for label, space in spaces.items()}
    deadline = time.monotonic() + (time_limit_secs or math.inf)
    for number in range(trials):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        asked = {label: study.ask(number) for label, study in studies.items()}
        runs = {label: run(label, settings) for label, settings in asked.items()}
        runner.run_all(
            list(runs.values()),
            workers=workers,
            time_limit_secs=None if math.isinf(left) else left,
        )
        for label, (config, at) in runs.items():
            if is_finished(at):
                value = Result.load(at).best_metric
                studies[label].tell(asked[label], value, config.metric)
    return {label: study.best for label, study in studies.items() if study.best}


def _name(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12] if settings else "as_written"


class _Study:
    """One entry's search.

    Attributes:
      best: The best settings so far, their value and the number of trials; {} before
        the first.
    """

    def __init__(self, space: Mapping[str, Choice]):
        try:
            import optuna  # an extra of its own: training does not need it
        except ImportError as error:
            raise RuntimeError(
                "compare.search needs optuna, which is not installed. Install "
                "isthmus[search]."
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = dict(sorted(space.items()))
        self._sampler = optuna.samplers.TPESampler(seed=SEED, n_startup_trials=5)
        self._study = optuna.create_study(direction="maximize", sampler=self._sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self._trial: Any = None
        self.best: dict[str, Any] = {}

    def ask(self, number: int) -> dict[str, Any]:
        """Returns the settings of trial `number`; the first are those as written."""
        if number == 0:
            return {}
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
            self._study.tell(self._trial, state=self._failed)
        count = self.best.get("trials", 0) + 1
        if not self.best or measure.is_better(name, value, self.best["value"]):
            self.best = {"settings": dict(settings), "value": value}
        self.best["trials"] = count
