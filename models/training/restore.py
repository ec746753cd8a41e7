"""Opens a finished run: its config, its data set, its best weights."""

import dataclasses
import pathlib

from features.dataset import Dataset
from models.method import Method
from models.training import trainer
from models.training import workdir as workdir_lib
from models.training.checkpoint import restore_scoring
from models.training.config import RunConfig
from models.training.result import Result


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained method.

    Attributes:
      method: With the best weights.
      dataset: The data set it was opened with.
      config: Of the run.
    """

    method: Method
    dataset: Dataset
    config: RunConfig


def run_config(workdir: str | pathlib.Path) -> RunConfig:
    """Returns the config that a workdir was trained with."""
    path = pathlib.Path(workdir) / workdir_lib.CONFIG_FILE
    return RunConfig.parse(workdir_lib.read_json(path)["run"], where=str(path))


def open_dataset(
    workdir: str | pathlib.Path, data_dir: str | pathlib.Path | None = None
) -> Dataset:
    """Returns the data set of a run, or another one that fits its models.

    Raises:
      WorkdirError: When its fingerprint is not that of the training data.
    """
    workdir = pathlib.Path(workdir)
    values = workdir_lib.read_json(workdir / workdir_lib.CONFIG_FILE)
    dataset = Dataset.open(data_dir or values["run"]["data_dir"])
    expected, found = values["dataset"]["fingerprint"], dataset.info.fingerprint
    if expected != found:
        raise workdir_lib.WorkdirError(
            f"data_dir must have the fingerprint {expected} that {workdir} was trained "
            f"on; got {found} ({dataset.data_dir}). Prepare it with the same spec and "
            "vocabularies."
        )
    return dataset


def load_method(
    workdir: str | pathlib.Path, data_dir: str | pathlib.Path | None = None
) -> LoadedRun:
    """Returns the trained method of a finished single run.

    Args:
      workdir: Of `models.train`.
      data_dir: Another data set of the same fingerprint; default: the run's own.

    Raises:
      WorkdirError: For an unfinished run, a family of runs, or other data.
    """
    workdir = pathlib.Path(workdir)
    config = run_config(workdir)
    dataset = open_dataset(workdir, data_dir)
    result = Result.load(workdir)
    if result.runs:
        raise workdir_lib.WorkdirError(
            f"workdir {workdir} must hold one model; form {config.form!r} has "
            f"{len(result.runs)}. Name one of its folders: {', '.join(result.runs)}."
        )
    method = trainer.make_method(config, dataset)
    # A run of one model always has a best step; families were refused above.
    restore_scoring(method, workdir, int(result.best_step or 0))
    return LoadedRun(method, dataset, config)
