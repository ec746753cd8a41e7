"""Opens a finished run, or its export, as a source model for another run."""

import pathlib

from features.schema import ModelSchema
from models.layers.frozen_source import FrozenSource
from models.layers.saved_source import SavedSource
from models.training import restore
from models.training import workdir as workdir_lib

SAVED_MODEL_FILE = "saved_model.pb"


def exists(folder: str | pathlib.Path) -> bool:
    """Returns whether there is a run or an export in this folder."""
    folder = pathlib.Path(folder)
    return (folder / workdir_lib.CONFIG_FILE).exists() or _export(folder) is not None


def open_source(
    folder: str | pathlib.Path, schema: ModelSchema
) -> FrozenSource | SavedSource:
    """Returns the model of a finished run with its best weights, or of an export.

    Args:
      folder: Workdir of the run; or a version folder of an export, or the folder above
        it, of which the newest version is taken.  Only read.
      schema: Of the model that learns from it.

    Raises:
      WorkdirError: For an unfinished run or a family of runs.
      TypeError, ValueError: For a model that is no source, or reads other rows.
    """
    version = _export(pathlib.Path(folder))
    if version is not None:
        return SavedSource(version, schema)
    return FrozenSource(restore.load_method(folder).method.model, schema)


def _export(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the version folder of an export; None when there is none."""
    if (folder / SAVED_MODEL_FILE).exists():
        return folder
    versions = [p for p in folder.glob("*") if p.name.isdigit()]
    newest = max(versions, key=lambda path: int(path.name), default=None)
    return newest if newest and (newest / SAVED_MODEL_FILE).exists() else None
