"""The data set of a comparison: generated or raw log -> prepared data -> streams.

Every step is a process of its own: training images need not have Beam installed.
"""

import pathlib
import sys

from features import processes
from features.dataset import SUCCESS_FILE
from models.comparison.experiment import PreparedData, RawData

SYNTHETIC_FILE = "truth.json"  # written last by the generator


def prepare(
    data: PreparedData, raw_dir: pathlib.Path | None, folder: pathlib.Path
) -> pathlib.Path:
    """Does what is not done yet; returns the prepared data set, `<folder>/data`.

    Args:
      data: What to prepare.
      raw_dir: Folder of all raw data; None is enough for a generated log.
      folder: Where generated logs and data sets go.

    Raises:
      ValueError: When raw data is needed and `raw_dir` is None.
      RuntimeError: When a step fails; it has printed why.
    """
    prepared, raw = folder / "data", raw_folder(data, raw_dir, folder)
    if not (prepared / SUCCESS_FILE).exists():
        arguments = [f"--dataset={data.dataset}", f"--raw_dir={raw}"]
        arguments += [f"--set={override}" for override in data.overrides]
        run_module("pipeline.preprocess", *arguments, f"--data_dir={prepared}")
    for job in data.jobs:
        if not (prepared / job.makes / SUCCESS_FILE).exists():
            run_module(job.module, f"--data_dir={prepared}", *job.arguments)
    return prepared


def raw_folder(
    data: RawData, raw_dir: pathlib.Path | None, folder: pathlib.Path
) -> pathlib.Path:
    """Returns the raw log, generated where it is to be and is not yet.

    Arguments and errors as `prepare`.
    """
    if data.preset:
        raw = folder / "raw"
        if not (raw / SYNTHETIC_FILE).exists():
            run_module("features.synthetic", f"--preset={data.preset}", f"--out={raw}")
        return raw
    if raw_dir is None:
        raise ValueError(
            f"reproduce.raw_dir must be the folder of the raw data: data set "
            f"{data.dataset!r} is not generated. Give DATA=<folder> (--raw_dir)."
        )
    raw = raw_dir / data.raw_dir
    if not raw.is_dir():  # said before anything remembers the path
        raise ValueError(
            f"reproduce.raw_dir must hold the raw data of {data.dataset!r}; there is "
            f"no folder {raw}. Check DATA=<folder> (--raw_dir)."
        )
    return raw


def run_module(module: str, *arguments: str) -> None:
    """Runs `python -m module` in a process of its own.

    Raises:
      RuntimeError: When it fails; it has printed why.
    """
    command = [sys.executable, "-m", module, *arguments]
    if processes.run(command) != 0:
        raise RuntimeError(
            f"python -m {module} {' '.join(arguments)} must end with status 0; it "
            "failed, see above. The same command again goes on there."
        )
