"""Does the artefact give the training graph's scores, row by row, on real rows?"""

import contextlib
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from features.dataset import Dataset
from models.method import Method
from serving.inputs import raw_inputs
from serving.samples import raw_arrays, read_samples
from tfrecords_tools.batch import Batch
from tfrecords_tools.read import read_stream

TOLERANCE = 1e-5  # of a probability; float32 through another graph
BATCH_SIZE = 4096
SCRIPT = pathlib.Path(__file__).with_name("artefact_check.py")


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
      ParityError: When a probability differs by more than `TOLERANCE`, when there is
        no sampled row of the model's domains, or when the artefact does not load.
    """
    schema = method.schema
    spec, domains = dataset.info.spec, method.serving_domains()
    table = read_samples(dataset, split, rows, domains)
    row_ids = table.column("row_id").to_numpy()
    if not len(row_ids):
        raise ParityError(
            f"parity.{split} must have sampled rows of the model's domains "
            f"({', '.join(domains)}); got none ({dataset.data_dir}). Export "
            "with the other split."
        )
    arrays = raw_arrays(spec, raw_inputs(spec), table)
    # The fresh process takes seconds to import TensorFlow: meanwhile, our own scores.
    with _artefact_process(export_dir, arrays) as artefact:
        expected = training_scores(method, dataset, split, row_ids)
        results = artefact()
    wanted = np.stack([expected[key] for key in row_ids.tolist()])
    differences = []
    for loader in ("tf2", "tf1"):
        got = np.stack([results[f"{loader}/{task}"] for task in schema.tasks], axis=1)
        differences.append(float(np.max(np.abs(got - wanted))))
    if not all(difference <= TOLERANCE for difference in differences):  # NaN fails
        raise ParityError(
            f"parity: probabilities must agree within {TOLERANCE}; got a largest "
            f"difference of {np.max(differences):.3g} on {len(row_ids)} rows of "
            f"{split} ({export_dir}). Not published: the serving graph and the "
            "training graph encode or score rows differently."
        )
    return Parity(len(row_ids), *differences)


def training_scores(
    method: Method, dataset: Dataset, split: str, row_ids: np.ndarray
) -> dict[int, np.ndarray]:
    """Returns probabilities [T] by row_id from the training graph.

    Reads no further than the last row asked for; samples are the first rows of a
    split, so that this is the first batch as a rule.

    Raises:
      ParityError: When a row is not among the encoded rows.
    """
    missing = set(row_ids.tolist())
    schema = method.schema
    subset = schema.domains if schema.domains != dataset.info.fitted.domains else ()
    stream = read_stream(
        dataset,
        split=split,
        domains=subset,
        tasks=schema.tasks,
        batch_size=BATCH_SIZE,
        shuffle_seed=None,
        keys=("row_id",),
        remap_domains=bool(subset),
    )

    @tf.function(autograph=False)
    def probs(batch: Batch) -> tf.Tensor:
        return tf.sigmoid(method.stacked_logits(batch, training=False))

    scores: dict[int, np.ndarray] = {}
    for batch in stream:
        valid = batch.valid.numpy()
        keys = batch.keys["row_id"].numpy()[valid]
        found = missing.intersection(keys.tolist())
        if not found:
            continue
        scores.update(zip(keys.tolist(), probs(batch).numpy()[valid], strict=True))
        missing -= found
        if not missing:
            return scores
    raise ParityError(
        f"parity.{split} must find its sampled raw rows among the encoded ones; got "
        f"{len(missing)} of {len(set(row_ids.tolist()))} that are not there "
        f"({dataset.data_dir}). Prepare the data set again."
    )


@contextlib.contextmanager
def _artefact_process(
    export_dir: pathlib.Path, arrays: dict[str, np.ndarray]
) -> Iterator[Callable[[], dict[str, np.ndarray]]]:
    """Starts scoring with the artefact alone; gives a function that waits for it."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = f"{folder}/inputs.npz", f"{folder}/outputs.npz"
        plain = {
            name: value.astype(str) if value.dtype == object else value
            for name, value in arrays.items()
        }
        np.savez(inputs, **plain)
        command = [sys.executable, "-I", str(SCRIPT), str(export_dir.absolute())]
        process = subprocess.Popen(
            [*command, inputs, outputs],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )

        def wait() -> dict[str, np.ndarray]:
            _, errors = process.communicate()
            if process.returncode != 0:
                raise ParityError(
                    f"parity: the artefact {export_dir} must load in a fresh process; "
                    f"it failed:\n{errors[-2000:]}"
                )
            with np.load(outputs) as stored:
                return {name: stored[name] for name in stored.files}

        try:
            yield wait
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
