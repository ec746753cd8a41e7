"""Scores of a split: every row exactly once, kept with its keys and labels."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf
import tf_keras as keras

from features.config import lookup_error
from features.dataset import Dataset
from models.method import Method
from models.training import streams
from tfrecords_tools.batch import Batch

KEYS = ("row_id", "user_key")


class CountError(RuntimeError):
    """An evaluation that did not see every row exactly once."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Logits of all rows of a split, ordered by row id.

    The order depends on the rows alone, so scores of two models of the same rows can
    be compared line by line.  N rows, T tasks.

    Attributes:
      row_id: int64 [N].
      user_key: int64 [N].
      domain: int32 [N], index within `domains`.
      labels: float32 [N, T], 0 or 1; 0 where masked.
      label_mask: float32 [N, T].
      weight: float32 [N].
      logits: float32 [N, T].
      domains: Domain names.
      tasks: Task names.
      split: Split they come from.
    """

    row_id: np.ndarray
    user_key: np.ndarray
    domain: np.ndarray
    labels: np.ndarray
    label_mask: np.ndarray
    weight: np.ndarray
    logits: np.ndarray
    domains: tuple[str, ...]
    tasks: tuple[str, ...]
    split: str

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.row_id)

    def of_domains(self, names: Sequence[str]) -> Self:
        """Returns the rows of these domains only, their index counted within them.

        Raises:
          LookupError: For a domain that was not scored.
        """
        for name in names:
            if name not in self.domains:
                raise lookup_error("Scores.of_domains", name, self.domains)
        if tuple(names) == self.domains:
            return self
        index = np.full(len(self.domains), -1, np.int32)
        index[[self.domains.index(name) for name in names]] = np.arange(len(names))
        domain = index[self.domain]
        rows = {
            name: getattr(self, name)[domain >= 0]
            for name in (*KEYS, "labels", "label_mask", "weight", "logits")
        }
        return dataclasses.replace(
            self, **rows, domain=domain[domain >= 0], domains=tuple(names)
        )

    def save(self, path: str | pathlib.Path) -> None:
        """Writes one `.npz` file atomically."""
        path = pathlib.Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **dataclasses.asdict(self))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Self:
        """Returns what `save` wrote."""
        with np.load(path) as values:
            arrays = {
                field.name: values[field.name] for field in dataclasses.fields(cls)
            }
        return cls(
            **{
                **arrays,
                "domains": tuple(map(str, arrays["domains"])),
                "tasks": tuple(map(str, arrays["tasks"])),
                "split": str(arrays["split"]),
            }
        )


class Scorer:
    """Scores splits with what the method serves; traced once for each batch size.

    Under a mirrored strategy it computes on the first device only.

    Args:
      method: Says what is scored, and in which domains.
      model: Another model of the method's to score with (`Method.watched_models`).
    """

    def __init__(self, method: Method, model: keras.Model | None = None):
        self._schema = method.schema
        self._domains = method.serving_domains()
        self._model = method.serving_model() if model is None else model
        self._forward = tf.function(self._logits, autograph=False)

    def score(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int = 16384,
    ) -> Scores:
        """Returns the scores of a split's rows in the domains that are served.

        A split without rows in these domains gives empty scores.

        Raises:
          CountError: When the rows read are not those that `dataset.json` counts.
        """
        schema, domains = self._schema, self._domains
        if not any(dataset.info.num_rows(split, name) for name in domains):
            return _no_rows(domains, schema.tasks, split)
        stream = streams.read_domains(
            dataset,
            run_domains=schema.domains,
            domains=domains,
            split=split,
            tasks=schema.tasks,
            batch_size=batch_size,
            keys=KEYS,
        )
        parts: list[tuple[np.ndarray, ...]] = []
        for batch in stream:
            columns = (
                batch.keys["row_id"],
                batch.keys["user_key"],
                batch.domain,
                batch.labels,
                batch.label_mask,
                batch.weight,
                self._forward(batch),
            )
            valid = batch.valid.numpy()
            parts.append(tuple(column.numpy()[valid] for column in columns))
        joined: Any = [np.concatenate(column) for column in zip(*parts, strict=True)]
        if domains != schema.domains:  # from the model's index to that of the scores
            index = [domains.index(d) if d in domains else -1 for d in schema.domains]
            joined[2] = np.array(index, np.int32)[joined[2]]
        self._check_counts(dataset, split, joined[2])
        return ordered(*joined, domains, schema.tasks, split)  # type: ignore[call-arg]

    def _logits(self, batch: Batch) -> tf.Tensor:
        outputs = self._model(batch.features, training=False)
        logits = [tf.cast(outputs[t], tf.float32) for t in self._schema.tasks]
        return tf.stack(logits, axis=1)

    def _check_counts(self, dataset: Dataset, split: str, domain: np.ndarray) -> None:
        seen = np.bincount(domain, minlength=len(self._domains))
        for name, count in zip(self._domains, seen, strict=True):
            expected = dataset.info.num_rows(split, name)
            if count != expected:
                raise CountError(
                    f"{split} of {dataset.data_dir} must give each row once; domain "
                    f"{name!r} gave {count} rows, dataset.json counts {expected}. Run "
                    "python -m tfrecords_tools.verify."
                )


def score(
    method: Method,
    dataset: Dataset,
    split: str,
    batch_size: int = 16384,
) -> Scores:
    """Returns the scores of a split with a trained method; see `Scorer.score`."""
    return Scorer(method).score(dataset, split, batch_size=batch_size)


def ordered(
    row_id: np.ndarray,
    user_key: np.ndarray,
    domain: np.ndarray,
    labels: np.ndarray,
    label_mask: np.ndarray,
    weight: np.ndarray,
    logits: np.ndarray,
    domains: Sequence[str],
    tasks: Sequence[str],
    split: str,
) -> Scores:
    """Returns `Scores` of these columns, sorted by row id."""
    order = np.argsort(row_id, kind="stable")
    return Scores(
        row_id[order],
        user_key[order],
        domain[order],
        labels[order],
        label_mask[order],
        weight[order],
        logits[order],
        tuple(domains),
        tuple(tasks),
        split,
    )


def _no_rows(domains: tuple[str, ...], tasks: tuple[str, ...], split: str) -> Scores:
    ids, table = np.zeros(0, np.int64), np.zeros([0, len(tasks)], np.float32)
    return Scores(
        row_id=ids,
        user_key=ids,
        domain=ids.astype(np.int32),
        labels=table,
        label_mask=table,
        weight=np.zeros(0, np.float32),
        logits=table,
        domains=domains,
        tasks=tasks,
        split=split,
    )


def join_tasks(parts: Sequence[Scores]) -> Scores:
    """Returns one `Scores` of models that scored the same rows for different tasks.

    Raises:
      CountError: When the parts have different rows.
    """
    first = parts[0]
    for part in parts[1:]:
        if not np.array_equal(part.row_id, first.row_id):
            raise CountError(
                f"scores of tasks {first.tasks} and {part.tasks} must be of the same "
                "rows; their row ids differ. Score them on the same data set."
            )
    return dataclasses.replace(
        first,
        labels=np.concatenate([p.labels for p in parts], axis=1),
        label_mask=np.concatenate([p.label_mask for p in parts], axis=1),
        logits=np.concatenate([p.logits for p in parts], axis=1),
        tasks=tuple(task for p in parts for task in p.tasks),
    )


def join_domains(parts: Sequence[Scores]) -> Scores:
    """Returns one `Scores` of models that scored the rows of different domains."""
    domains = tuple(name for part in parts for name in part.domains)
    offsets = np.cumsum([0] + [len(part.domains) for part in parts[:-1]])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("row_id", "user_key", "labels", "label_mask", "weight", "logits")
    }
    domain = np.concatenate(
        [p.domain + np.int32(o) for p, o in zip(parts, offsets, strict=True)]
    )
    return ordered(
        domain=domain,
        **columns,
        domains=domains,
        tasks=parts[0].tasks,
        split=parts[0].split,
    )
