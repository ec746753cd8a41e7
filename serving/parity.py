"""Does the artefact give the training graph's scores, row by row, on real rows?"""

import dataclasses
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from features.dataset import Dataset
from models.method import Method
from serving.inputs import raw_inputs
from serving.samples import raw_arrays, read_samples
from tfrecords_tools.batch import Batch
from tfrecords_tools.read import read_stream

TOLERANCE = 1e-5  # of a probability; float32 through another graph


class ParityError(RuntimeError):
    """The exported model does not give the training graph's scores."""


@dataclasses.dataclass(frozen=True)
class Parity:
    """Result of a parity check.

    Attributes:
      rows: Rows compared.
      max_difference: Largest absolute difference of a probability, TF2 loader.
      max_difference_tf1: The same by the TF1 loader.
    """

    rows: int
    max_difference: float
    max_difference_tf1: float


def check_parity(
    export_dir: pathlib.Path,
    method: Method,
    dataset: Dataset,
    *,
    split: str = "test",
    rows: int = 512,
) -> Parity:
    """Scores raw rows with the artefact in a fresh process, encoded ones in training.

    Raises:
      ParityError: When a probability differs by more than `TOLERANCE`, or no sampled
        row was found among the encoded ones.
    """
    schema = method.schema
    expected = training_scores(method, dataset, split)
    table = read_samples(dataset, split, rows)
    row_ids = table.column("row_id").to_numpy()
    keep = np.array([i for i, key in enumerate(row_ids) if int(key) in expected], int)
    if not len(keep):
        raise ParityError(
            f"parity.{split}: no sampled row is among the model's encoded rows "
            f"(domains {', '.join(schema.domains)}); cannot check the export."
        )
    spec = dataset.info.spec
    arrays = raw_arrays(spec, raw_inputs(spec), table.take(keep))
    results = _run_artefact(export_dir, arrays)
    wanted = np.stack([expected[int(row_ids[i])] for i in keep])
    differences = []
    for loader in ("tf2", "tf1"):
        got = np.stack([results[f"{loader}/{task}"] for task in schema.tasks], axis=1)
        differences.append(float(np.max(np.abs(got - wanted))))
    if max(differences) > TOLERANCE:
        raise ParityError(
            f"parity: probabilities must agree within {TOLERANCE}; the largest "
            f"difference on {len(keep)} rows of {split} is {max(differences):.3g} "
            f"({export_dir}). The export was not published."
        )
    return Parity(len(keep), *differences)


def training_scores(
    method: Method, dataset: Dataset, split: str, batch_size: int = 4096
) -> dict[int, np.ndarray]:
    """Returns probabilities [T] by row_id from the training graph."""
    schema = method.schema
    subset = schema.domains if schema.domains != dataset.info.fitted.domains else ()
    stream = read_stream(
        dataset,
        split=split,
        domains=subset,
        tasks=schema.tasks,
        batch_size=batch_size,
        shuffle_seed=None,
        keys=("row_id",),
        remap_domains=bool(subset),
    )

    @tf.function
    def probs(batch: Batch) -> tf.Tensor:
        return tf.sigmoid(method.stacked_logits(batch, training=False))

    scores: dict[int, np.ndarray] = {}
    for batch in stream:
        valid = batch.valid.numpy()
        keys = batch.keys["row_id"].numpy()[valid]
        scores.update(zip(keys.tolist(), probs(batch).numpy()[valid], strict=True))
    return scores


def _run_artefact(
    export_dir: pathlib.Path, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    script = pathlib.Path(__file__).with_name("artefact_check.py")
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = f"{folder}/inputs.npz", f"{folder}/outputs.npz"
        plain = {
            name: value.astype(str) if value.dtype == object else value
            for name, value in arrays.items()
        }
        np.savez(inputs, **plain)
        done = subprocess.run(
            [sys.executable, "-I", str(script), str(export_dir), inputs, outputs],
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )
        if done.returncode != 0:
            raise ParityError(
                f"parity: the artefact {export_dir} must load in a fresh process; it "
                f"failed:\n{done.stderr[-2000:]}"
            )
        with np.load(outputs) as stored:
            return {name: stored[name] for name in stored.files}
