"""Checkpoints of a run: everything that a resumed run needs to be the same run."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from models.method import Method
from models.training import strategy as strategy_lib

CHECKPOINT_DIR = "checkpoints"
BEST_DIR = "best"


@dataclasses.dataclass
class RunState:
    """Where a run stands.

    Attributes:
      step: Optimiser steps done.
      drawn: Batches taken from each stream since the start.
      events_done: Step at which each periodic event last ran.
      eval_step: Step of the last evaluation (-1: none yet).
      evaluations: Evaluations done.
      best_step: Step of the best evaluation (-1: none yet).
      best_metric: Its metric; None while undefined.
      evals_without_gain: Evaluations since.
      rows: Rows trained on, padding left out.
      loss_sum: Sum of the training loss over the steps since the last evaluation.
      loss_steps: Those steps.
      timed_rows: Rows and seconds of the calls that count for rows/s: all but the
      timed_secs: first of each process, which compiles.
      secs: Wall seconds of the run over all its processes.
      stop_reason: Why training ended; empty while it goes on.
    """

    step: int = 0
    drawn: dict[str, int] = dataclasses.field(default_factory=dict)
    events_done: dict[str, int] = dataclasses.field(default_factory=dict)
    eval_step: int = -1
    evaluations: int = 0
    best_step: int = -1
    best_metric: float | None = None
    evals_without_gain: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    timed_rows: int = 0
    timed_secs: float = 0.0
    secs: float = 0.0
    stop_reason: str = ""


class CheckpointError(OSError):
    """A checkpoint that could not be written or read."""


class _SavedState(tf.train.experimental.PythonState):
    """Puts a RunState into a TensorFlow checkpoint, so both are one atomic write."""

    def __init__(self, state: RunState):
        self.state = state

    def serialize(self) -> str:
        return json.dumps(dataclasses.asdict(self.state))

    def deserialize(self, string_value: bytes) -> None:
        for key, value in json.loads(string_value).items():
            setattr(self.state, key, value)


class Checkpoints:
    """Saves and restores a run below its workdir."""

    def __init__(
        self, workdir: pathlib.Path, method: Method, state: RunState, *, keep: int
    ):
        self.state = state
        self.best_dir = workdir / BEST_DIR
        self._best = tf.train.Checkpoint(**scoring_trackables(method))
        whole = tf.train.Checkpoint(
            **scoring_trackables(method),
            optimizers=dict(method.optimizers),
            generators=strategy_lib.generators(method.model),
            state=_SavedState(state),
        )
        self._manager = tf.train.CheckpointManager(
            whole, str(workdir / CHECKPOINT_DIR), max_to_keep=keep
        )
        self._whole = whole
        self._saved_step = -1

    def save(self) -> None:
        """Writes the whole state; a kill leaves the previous checkpoint in force.

        Does nothing when this step is written already: all that can change at a step
        has changed before it is first saved, and files in force are never rewritten.
        """
        if self._saved_step == self.state.step:
            return
        with _writing(self._manager.directory):
            self._manager.save(checkpoint_number=self.state.step)
        self._saved_step = self.state.step
        kept = f"step-{self.state.best_step}."
        for path in self.best_dir.glob("step-*"):
            if path.name.startswith(kept):
                continue
            if path.is_dir():  # what a killed write left
                shutil.rmtree(path)
            else:
                path.unlink()

    def restore(self) -> bool:
        """Returns whether there was a checkpoint; every value in it must fit."""
        path = self._manager.latest_checkpoint
        if path is None:
            return False
        _assert_complete(self._whole.restore(path), path)
        self._saved_step = self.state.step
        return True

    def save_best(self) -> None:
        """Writes what scores, under the present step.

        The step is in the name: until the next `save` has recorded the new best, the
        old one stays, for a run that is killed in between.
        """
        self.best_dir.mkdir(exist_ok=True)
        with _writing(self.best_dir):
            self._best.write(str(self.best_dir / f"step-{self.state.step}"))

    def restore_best(self) -> None:
        """Puts the best evaluation's weights into the method."""
        path = str(self.best_dir / f"step-{self.state.best_step}")
        _assert_complete(self._best.read(path), path)


@contextlib.contextmanager
def _writing(folder: str | pathlib.Path) -> Iterator[None]:
    """Turns TensorFlow's error on a full disk or a lost folder into ours."""
    try:
        yield
    except tf.errors.OpError as error:
        raise CheckpointError(
            f"checkpoints must be writable; got {error.message.split('; ')[-1]} "
            f"({folder}). The last complete checkpoint is in force: free space and "
            "start the same command again to go on from it."
        ) from error


def _assert_complete(status: Any, path: str) -> None:
    """Raises unless program and checkpoint hold the same values."""
    try:
        status.assert_consumed()
    except AssertionError as error:
        reason = str(error).partition(", numpy=")[0]
        raise CheckpointError(
            "checkpoint must hold every variable of its run's model and nothing else; "
            f"got {reason} ({path}). It was written by another version of the code: "
            "use that one, or train again in a new workdir."
        ) from error


def scoring_trackables(method: Method) -> dict[str, Any]:
    """Returns what a method scores with: the model and the method's own state."""
    return {"model": method.model, "extra": dict(method.extra_state())}


def restore_scoring(method: Method, workdir: pathlib.Path, step: int) -> None:
    """Puts the weights that `save_best` wrote at `step` into a method."""
    checkpoint = tf.train.Checkpoint(**scoring_trackables(method))
    path = str(workdir / BEST_DIR / f"step-{step}")
    _assert_complete(checkpoint.read(path), path)


def num_parameters(variables: Iterable[tf.Variable]) -> int:
    """Returns the number of values in the variables."""
    return sum(int(variable.shape.num_elements()) for variable in variables)
