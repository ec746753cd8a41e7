"""TensorBoard: one writer for training, one for evaluation."""

import pathlib
from collections.abc import Mapping, Sequence

import tensorflow as tf


class Summaries:
    """Writes scalars below `<workdir>/train` and `<workdir>/eval`."""

    def __init__(self, workdir: pathlib.Path):
        self._writers = {
            name: tf.summary.create_file_writer(str(workdir / name))
            for name in ("train", "eval")
        }

    def write(self, kind: str, values: Mapping[str, float | None], step: int) -> None:
        """Writes the values that are defined.

        Args:
          kind: "train" or "eval".
          values: Scalars by tag, e.g. "auc/<domain>/<task>".
          step: Optimiser steps done.
        """
        with self._writers[kind].as_default():
            for name, value in values.items():
                if value is not None:
                    tf.summary.scalar(name, value, step=step)

    def write_histogram(self, name: str, values: Sequence[float], step: int) -> None:
        """Writes how the values spread; nothing without values."""
        if len(values):
            with self._writers["eval"].as_default():
                tf.summary.histogram(name, values, step=step, buckets=20)

    def close(self) -> None:
        """Writes what is left."""
        for writer in self._writers.values():
            writer.close()
