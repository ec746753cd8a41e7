"""Scores of exported models: the artefact's contract, and Beam's RunInference on it.

A *scoring batch* has the columns `input/<name>` (raw inputs of the models),
`key/<name>` (passed through), `row_id` int64 and `domain` (name).  Each model adds
`score/<model>/<task>` float32, null where it does not serve the row's domain.
"""

import atexit
import dataclasses
import json
import pathlib
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.ml.inference import base

from features import hashing
from pipeline import progress
from pipeline.errors import JobError

METADATA_FILE = "assets.extra/isthmus.json"
SIGNATURE = "predict"
INPUT, KEY, SCORE = "input/", "key/", "score/"
ROWS_AT_ONCE = 8192  # rows of one call: bounds the memory of activations

Kind = Literal["id", "ids", "number"]


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """An exported model, as its own metadata describe it.

    Attributes:
      name: Given by the caller; names the columns of its scores.
      path: Version folder.
      version: Integer version.
      inputs: (raw input, kind) pairs, sorted.
      tasks: Outputs.
      domains: Names of the domains it serves.
      fingerprint: Of the data set it was trained on.
    """

    name: str
    path: str
    version: int
    inputs: tuple[tuple[str, Kind], ...]
    tasks: tuple[str, ...]
    domains: tuple[str, ...]
    fingerprint: str

    @classmethod
    def open(cls, name: str, path: str) -> "ExportedModel":
        """Reads the metadata of a version folder, or of the newest one below `path`.

        Raises:
          JobError: When there is no exported model.
        """
        folder = _version_folder(name, pathlib.Path(path))
        file = folder / METADATA_FILE
        try:
            values = json.loads(file.read_text("utf-8"))
            return cls(
                name=name,
                path=str(folder),
                version=int(values["version"]),
                inputs=tuple(
                    sorted((k, v["kind"]) for k, v in values["inputs"].items())
                ),
                tasks=tuple(values["tasks"]),
                domains=tuple(values["domains"]),
                fingerprint=values["fingerprint"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JobError(
                f"model {name!r} must have a readable {METADATA_FILE}; got "
                f"{type(error).__name__}: {error} ({folder}). Export it again with "
                "python -m serving.export."
            ) from error


def _version_folder(name: str, path: pathlib.Path) -> pathlib.Path:
    if (path / "saved_model.pb").exists():
        return path
    numbered = path.iterdir() if path.is_dir() else iter(())
    versions = [p for p in numbered if p.name.isdigit()]
    newest = max(versions, key=lambda p: int(p.name), default=None)
    if newest is None or not (newest / "saved_model.pb").exists():
        raise JobError(
            f"model {name!r} must be an exported version folder, or the folder above "
            f"it; got {str(path)!r}, which holds no saved_model.pb. Check the path, or "
            "run python -m serving.export."
        )
    return newest


def raw_inputs(models: Sequence[ExportedModel]) -> dict[str, Kind]:
    """Returns the inputs of all models together.

    Raises:
      JobError: When two models take one input as two kinds.
    """
    inputs: dict[str, Kind] = {}
    for model in models:
        for name, kind in model.inputs:
            if inputs.setdefault(name, kind) != kind:
                raise JobError(
                    f"input {name!r} must be of one kind in all models; model "
                    f"{model.name!r} takes {kind}, another {inputs[name]}. Score the "
                    "models one by one."
                )
    return inputs


class LoadedModel:
    """A SavedModel in memory, for as long as Beam shares this object."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded

    @property
    def predict(self) -> Any:
        """The signature that scores."""
        return self._loaded.signatures[SIGNATURE]

    def close(self) -> None:
        """Lets the model go."""
        self._loaded = None


def _close(reference: "weakref.ref[LoadedModel]") -> None:
    holder = reference()
    if holder is not None:
        holder.close()


class SavedModelHandler(base.ModelHandler[pa.RecordBatch, pa.RecordBatch, Any]):
    """Scores scoring batches with one exported model: one element, one batch of rows.

    Args:
      model: The exported model; its path must be seen by every worker.
    """

    def __init__(self, model: ExportedModel) -> None:
        # An element is a batch already: Beam must not gather them further.
        super().__init__(min_batch_size=1, max_batch_size=1)
        self.model = model

    def load_model(self) -> Any:
        """Returns the SavedModel, checked to have the signature `predict`."""
        import tensorflow as tf

        loaded = tf.saved_model.load(self.model.path)
        if SIGNATURE not in loaded.signatures:
            raise JobError(
                f"model {self.model.name!r} must have the signature {SIGNATURE!r}; got "
                f"{', '.join(loaded.signatures)} ({self.model.path}). Export it again."
            )
        holder = LoadedModel(loaded)
        # TensorFlow cannot free functions once the interpreter is half gone.
        atexit.register(_close, weakref.ref(holder))
        return holder

    def run_inference(
        self,
        batch: Sequence[pa.RecordBatch],
        model: Any,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[pa.RecordBatch]:
        """Returns each batch with the scores of this model."""
        if inference_args:
            raise JobError(
                f"inference_args must be empty; got {sorted(inference_args)}."
            )
        return [self.score(rows, model.predict) for rows in batch]

    def get_num_bytes(self, batch: Sequence[pa.RecordBatch]) -> int:
        """Returns the bytes of the columns (the default would pickle them)."""
        return sum(rows.nbytes for rows in batch)

    def get_metrics_namespace(self) -> str:
        """Returns the name that Beam's counters of this model carry."""
        return f"batch_score_{self.model.name}"

    def score(self, rows: pa.RecordBatch, predict: Any) -> pa.RecordBatch:
        """Returns the rows with `score/<model>/<task>` columns.

        Args:
          rows: A scoring batch [B].
          predict: The signature.
        """
        served = pc.is_in(rows["domain"], value_set=pa.array(self.model.domains))
        chosen = np.flatnonzero(served.to_numpy(zero_copy_only=False))
        scores = {task: [np.zeros(0, np.float32)] for task in self.model.tasks}
        for start in range(0, len(chosen), ROWS_AT_ONCE):
            part = pa.Table.from_batches([rows]).take(
                pa.array(chosen[start : start + ROWS_AT_ONCE])
            )
            outputs = self._predict(part, predict)
            for task in self.model.tasks:
                scores[task].append(outputs[task].numpy().astype(np.float32))
        names, columns = list(rows.schema.names), list(rows.columns)
        for task, parts in scores.items():
            values = np.full(rows.num_rows, np.nan, np.float32)
            values[chosen] = np.concatenate(parts)
            names.append(f"{SCORE}{self.model.name}/{task}")
            missing = np.ones(rows.num_rows, bool)
            missing[chosen] = False
            columns.append(pa.array(values, mask=missing))
        progress.report("score", rows.num_rows)
        return pa.RecordBatch.from_arrays(columns, names)

    def _predict(self, part: pa.Table, predict: Any) -> Any:
        import tensorflow as tf

        tensors = {
            name: tf.constant(raw_array(part.column(INPUT + name), kind))
            for name, kind in self.model.inputs
        }
        try:
            return predict(**tensors)
        except (tf.errors.InvalidArgumentError, TypeError) as error:
            raise JobError(
                f"model {self.model.name!r} ({self.model.path}) must take the raw rows "
                f"of this data set; it says: {error}"
            ) from error


def raw_array(column: pa.ChunkedArray | pa.Array, kind: Kind) -> np.ndarray:
    """Returns a raw input as the signature takes it.

    Args:
      column: Texts, lists of texts or numbers [B].
      kind: `id` and `ids` give texts, "" where missing, `number` float32, NaN where
        missing.

    Returns:
      Object array [B] or [B, longest], padded with "" on the right; or float32 [B].
    """
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks or [pa.array([], column.type)])
    if kind == "number":
        return column.to_numpy(zero_copy_only=False).astype(np.float32)
    if kind == "id":
        return column.fill_null("").to_numpy(zero_copy_only=False)
    lengths = hashing.list_lengths(column)
    width = int(lengths.max(initial=0))
    padded = np.full((len(column), width), "", object)
    values = column.flatten().fill_null("").to_numpy(zero_copy_only=False)
    padded[np.arange(width)[None, :] < lengths[:, None]] = values
    return padded
