"""`Result`: what a finished run says, and where it lies."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from models.audit import Matrix
from models.training import workdir as workdir_lib

MATRICES_FILE = "matrices.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """`result.json`, opened.

    Attributes:
      workdir: Folder of the run.
      metrics: Metric table (`MetricsTable.to_json()`) by split.
      metric: Name of the metric the run stopped on.
      best_metric: Its best validation value; None = undefined, or several runs.
      best_step: Step of the weights that were kept.
      best_epoch: The same in epochs of the main stream.
      steps: Steps done.
      epochs: Epochs done.
      stop_reason: Why training ended.
      train_rows_per_sec: Rows by second inside training calls, the first call (which
        compiles) left out; None when there was only one call.
      secs: Wall seconds, evaluation and compilation included.
      num_parameters: Trainable values.
      peak_rss_bytes: Largest memory of the process up to the end of this run.
      runs: For a family of runs: name -> its own result.
      finished: True; a run that was stopped has no result.
    """

    workdir: pathlib.Path
    metrics: dict[str, dict[str, Any]]
    metric: str
    best_metric: float | None
    best_step: int | None
    best_epoch: float | None
    steps: int
    epochs: float
    stop_reason: str
    train_rows_per_sec: float | None
    secs: float
    num_parameters: int
    peak_rss_bytes: int
    runs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    finished: bool = True

    @property
    def scores_paths(self) -> dict[str, pathlib.Path]:
        """Files of `Scores` by split."""
        return {split: scores_path(self.workdir, split) for split in self.metrics}

    def to_json(self) -> dict[str, Any]:
        """Returns what `result.json` holds."""
        values = dataclasses.asdict(self)
        values.pop("workdir")
        return values

    def save(self) -> None:
        """Writes `result.json`; from then on the run is finished."""
        workdir_lib.write_json(self.workdir / workdir_lib.RESULT_FILE, self.to_json())

    @classmethod
    def load(cls, workdir: str | pathlib.Path) -> Self:
        """Returns the result of a finished run.

        Raises:
          WorkdirError: When the run is not finished.
        """
        workdir = pathlib.Path(workdir)
        path = workdir / workdir_lib.RESULT_FILE
        if not path.exists():
            raise workdir_lib.WorkdirError(
                f"workdir {workdir} must hold a finished run; it has no {path.name}. "
                "Start python -m models.train with the same config to go on."
            )
        return cls(workdir=workdir, **workdir_lib.read_json(path))


def is_finished(workdir: pathlib.Path) -> bool:
    """Returns whether the workdir holds a finished run."""
    return (workdir / workdir_lib.RESULT_FILE).exists()


def scores_path(workdir: pathlib.Path, split: str) -> pathlib.Path:
    """Returns where the scores of a split lie."""
    return workdir / f"scores_{split}.npz"


def audit_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Returns where the table of an audit lies; see `models.audit.WeightAudit`."""
    return workdir / f"audit_{name}.csv"


def save_matrices(workdir: pathlib.Path, matrices: Mapping[str, Matrix]) -> None:
    """Writes a method's tables, if it has any."""
    if matrices:
        values = {
            name: [list(m.rows), list(m.columns), m.values.tolist()]
            for name, m in matrices.items()
        }
        workdir_lib.write_json(workdir / MATRICES_FILE, values)


def load_matrices(workdir: pathlib.Path) -> dict[str, Matrix]:
    """Returns the tables of a finished run; none where its method has none."""
    path = workdir / MATRICES_FILE
    if not path.exists():
        return {}
    return {
        name: Matrix(rows, columns, np.array(values))
        for name, (rows, columns, values) in workdir_lib.read_json(path).items()
    }
