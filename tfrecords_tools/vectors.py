"""`RowVectors`: float vectors of rows, kept beside a data set and found by `row_id`.

A folder holds parts, `part-00000-of-0000N/`, each written by one process and seen only
when it is whole: `<name>.f32` (float32, row after row), `row_id.npy` (sorted) and
`place.npy` (where the row of each id lies), `info.json`.  Vectors are mapped, not read:
what a batch does not ask for stays on disk.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

INFO_FILE = "info.json"
_IDS, _PLACES = "row_id.npy", "place.npy"


class VectorsError(RuntimeError):
    """A folder of vectors that is not whole, or not of these rows."""


@dataclasses.dataclass(frozen=True)
class VectorsInfo:
    """What a folder of vectors is of.

    Attributes:
      fingerprint: Of the data set whose rows they belong to.
      split: Of these rows.
      version: Of the model that made them.
      widths: Values of a row by name.
    """

    fingerprint: str
    split: str
    version: str
    widths: dict[str, int]


def part_name(index: int, parts: int) -> str:
    """Returns the folder of one part."""
    return f"part-{index:05d}-of-{parts:05d}"


def write_part(
    folder: str | pathlib.Path,
    info: VectorsInfo,
    batches: Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]],
    *,
    index: int = 0,
    parts: int = 1,
) -> int:
    """Writes one part; returns its rows.  Memory: 16 bytes a row and one batch.

    Args:
      folder: Of all parts.
      info: What is written; the same for all parts.
      batches: `row_id` int64 [B] and vectors float32 [B, width] by name.
      index: Number of this part.
      parts: How many there are.

    Raises:
      VectorsError: When the part is there already.
      ValueError: For a vector of another shape.
    """
    path = pathlib.Path(folder) / part_name(index, parts)
    if path.exists():
        raise VectorsError(f"vectors must go to a folder of their own; {path} exists.")
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.mkdir(parents=True)
    try:
        ids = _write_values(staging, info, batches)
        order = np.argsort(ids, kind="stable")
        np.save(staging / _IDS, ids[order])
        np.save(staging / _PLACES, order)
        values = {**dataclasses.asdict(info), "rows": len(ids)}
        (staging / INFO_FILE).write_text(json.dumps(values, indent=1), "utf-8")
        staging.rename(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(ids)


def _write_values(
    folder: pathlib.Path,
    info: VectorsInfo,
    batches: Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]],
) -> np.ndarray:
    """Writes the vectors as they come; returns the `row_id` of each."""
    ids = [np.zeros(0, np.int64)]
    files = {name: (folder / f"{name}.f32").open("wb") for name in info.widths}
    try:
        for row_ids, vectors in batches:
            for name, file in files.items():
                wanted = (len(row_ids), info.widths[name])
                if vectors[name].shape != wanted:
                    raise ValueError(
                        f"write_part.batches: {name!r} must have the shape {wanted}; "
                        f"got {vectors[name].shape}."
                    )
                file.write(np.ascontiguousarray(vectors[name], np.float32).tobytes())
            ids.append(np.asarray(row_ids, np.int64))
    finally:
        for file in files.values():
            file.close()
    return np.concatenate(ids)


@dataclasses.dataclass(frozen=True)
class _Part:
    ids: np.ndarray
    places: np.ndarray
    values: dict[str, np.ndarray]


class RowVectors:
    """Vectors by row, opened.

    Attributes:
      folder: Where they lie.
      info: What they are of.
      num_rows: Rows in all parts.
      error: The last error of `lookup`: inside a stream, TensorFlow's hides it.
    """

    def __init__(self, folder: pathlib.Path, info: VectorsInfo, parts: list[_Part]):
        self.folder = folder
        self.info = info
        self.num_rows = sum(len(part.ids) for part in parts)
        self.error: VectorsError | None = None
        self._parts = parts

    @staticmethod
    def exists(folder: str | pathlib.Path) -> bool:
        """Returns whether there is any part in the folder."""
        return any(pathlib.Path(folder).glob("part-*-of-*"))

    @classmethod
    def open(cls, folder: str | pathlib.Path) -> Self:
        """Opens a folder.

        Raises:
          VectorsError: When a part is missing, or the parts are of different things.
        """
        folder = pathlib.Path(folder)
        paths = sorted(folder.glob("part-*-of-*"))
        count = int(paths[0].name.rpartition("-")[2]) if paths else 1
        wanted = [folder / part_name(index, count) for index in range(count)]
        if paths != wanted:
            missing = [path.name for path in wanted if path not in paths]
            raise VectorsError(
                f"vectors in {folder} must be whole; "
                + (f"missing {', '.join(missing)}" if missing else "parts of two runs")
                + ". Write them with models.represent, every part with the same "
                "--num_workers."
            )
        infos = [json.loads((path / INFO_FILE).read_text("utf-8")) for path in paths]
        rows = [values.pop("rows") for values in infos]
        if any(values != infos[0] for values in infos):
            raise VectorsError(
                f"vectors in {folder} must be of one model and one data set; its parts "
                f"differ: {infos}. Delete the folder and write it again."
            )
        info = VectorsInfo(**infos[0])
        parts = [_open_part(*of, info) for of in zip(paths, rows, strict=True)]
        return cls(folder, info, parts)

    def lookup(self, row_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Returns float32 [B, width] by name.

        Args:
          row_ids: int64 [B].

        Raises:
          VectorsError: For a row without vectors.
        """
        widths = self.info.widths
        result = {n: np.zeros([len(row_ids), w], np.float32) for n, w in widths.items()}
        missing = np.ones(len(row_ids), bool)
        for part in self._parts:
            if not len(part.ids):
                continue
            at = np.minimum(np.searchsorted(part.ids, row_ids), len(part.ids) - 1)
            here = missing & (part.ids[at] == row_ids)
            places = part.places[at[here]]
            for name, values in part.values.items():
                result[name][here] = values[places]
            missing &= ~here
        if missing.any():
            self.error = VectorsError(
                f"vectors in {self.folder} must have every row that is asked for; "
                f"{int(missing.sum())} of {len(row_ids)} are not there, the first "
                f"row_id {int(row_ids[missing][0])}. They are of other rows or of "
                "another split: write them again from this data set."
            )
            raise self.error
        return result


def _open_part(path: pathlib.Path, rows: int, info: VectorsInfo) -> _Part:
    values = {
        name: np.memmap(path / f"{name}.f32", np.float32, "r", shape=(rows, width))
        if rows and width
        else np.zeros([rows, width], np.float32)  # nothing can be mapped
        for name, width in info.widths.items()
    }
    ids, places = (np.load(path / name, mmap_mode="r") for name in (_IDS, _PLACES))
    return _Part(ids, places, values)


def describe(folder: str | pathlib.Path, index: int, parts: int) -> dict[str, Any]:
    """Returns what one part says of itself; {} when it is not there."""
    path = pathlib.Path(folder) / part_name(index, parts) / INFO_FILE
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
