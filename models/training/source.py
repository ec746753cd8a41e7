"""Opens a finished run as a source model for another one."""

import pathlib

import tf_keras as keras

from models.training import restore
from models.training import workdir as workdir_lib


def exists(workdir: str) -> bool:
    """Returns whether there is a run in this folder."""
    return (pathlib.Path(workdir) / workdir_lib.CONFIG_FILE).exists()


def load_model(workdir: str) -> keras.Model:
    """Returns the model of a finished run with its best weights; only reads.

    Raises:
      WorkdirError: For an unfinished run or a family of runs.
    """
    return restore.load_method(workdir).method.model
