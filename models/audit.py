"""How much of each source was let in: mean row weights, kept while training."""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from features.config import lookup_error
from features.schema import FeatureInfo
from models.layers.grown_tables import Stack
from models.losses import global_sum
from models.state import state_variable

BINS = 10  # of the weight, equal parts of [0, 1]
MAX_VALUES = 10_000  # of an audited feature


class Matrix(NamedTuple):
    """A table of numbers in [0, 1] with names, to look at (a heat map).

    Attributes:
      rows: Names of the rows.
      columns: Names of the columns.
      values: float [rows, columns].
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray


class WeightAudit(tf.Module):
    """Counts rows and sums weights in [0, 1] by source, and by value of a feature.

    A run that goes on from another goes on counting; values that came since start at 0.

    Args:
      sources: Names of the S sources.
      num_values: Values of the audited feature, 0 = none is audited.

    Attributes:
      totals: float64 [S, 2 + BINS]: rows, sum of weights, rows by weight.
      marked: `totals` when `mark` was last called.
      by_value: float64 [S, num_values, 2]: rows, sum of weights.
    """

    def __init__(self, sources: Sequence[str], num_values: int = 0):
        super().__init__()
        self._sources = tuple(sources)
        shape = [len(self._sources), 2 + BINS]
        self.totals = state_variable(tf.zeros(shape, tf.float64), "totals")
        self.marked = state_variable(tf.zeros(shape, tf.float64), "marked")
        self.by_value = None
        if num_values:
            self.by_value = state_variable(
                tf.zeros([len(self._sources), num_values, 2], tf.float64), "by_value"
            )

    def stacks(self) -> list[tuple[tf.Variable, Stack]]:
        """Returns what is kept by value: it grows with the feature's vocabulary."""
        if self.by_value is None:
            return []
        copies, size, _ = self.by_value.shape
        return [(self.by_value, Stack("audited feature", 0, size, copies))]

    def add(
        self,
        weights: tf.Tensor,
        source: tf.Tensor,
        mask: tf.Tensor,
        values: tf.Tensor | None = None,
    ) -> None:
        """Takes in the rows of one step; in the step function.

        Args:
          weights: [B] in [0, 1].
          source: int32 [B] in 0..S-1.
          mask: float32 [B], 1 for rows that count.
          values: Ids of the audited feature, int32 [B]; outside ones are left out.
        """
        mask, weights = tf.cast(mask, tf.float64), tf.cast(weights, tf.float64)
        bins = tf.minimum(tf.cast(weights * BINS, tf.int32), BINS - 1)
        columns = [mask[:, None], (mask * weights)[:, None]]
        columns.append(tf.one_hot(bins, BINS, dtype=tf.float64) * mask[:, None])
        self._add(self.totals, tf.concat(columns, axis=1), source)
        if self.by_value is not None and values is not None:
            count = self.by_value.shape[1]
            known = tf.logical_and(values >= 0, values < count)
            cell = tf.where(known, source * count + values, -1)  # dropped
            self._add(self.by_value, tf.concat(columns[:2], axis=1), cell)

    @staticmethod
    def _add(total: tf.Variable, rows: tf.Tensor, segment: tf.Tensor) -> None:
        cells = total.shape.num_elements() // rows.shape[1]
        added = global_sum(tf.math.unsorted_segment_sum(rows, segment, cells))
        total.assign(total + tf.reshape(added, total.shape))

    def recent(self) -> dict[str, float]:
        """Returns the mean weight since `mark`, by source that had rows."""
        return self._means(self.totals.numpy() - self.marked.numpy())

    def means(self) -> dict[str, float]:
        """Returns the mean weight since the start, by source that had rows."""
        return self._means(self.totals.numpy())

    def _means(self, totals: Any) -> dict[str, float]:
        return {
            name: float(row[1] / row[0])
            for name, row in zip(self._sources, totals, strict=True)
            if row[0]
        }

    def mark(self) -> None:
        """Starts a new stretch for `recent`; between steps."""
        self.marked.assign(self.totals)

    def table(self) -> list[dict[str, Any]]:
        """Returns a line per source, then one per source and value that was met.

        Keys: `source`, `value` (id, None for the whole source), `rows`,
        `mean_weight`, and for whole sources `rows_0.0`, `rows_0.1`, ...: rows by
        weight, from there on.
        """
        lines: list[dict[str, Any]] = []
        for name, row in zip(self._sources, self.totals.numpy(), strict=True):
            line = _line(name, None, row)
            line |= {f"rows_{i / BINS}": int(n) for i, n in enumerate(row[2:])}
            lines.append(line)
        if self.by_value is not None:
            for name, rows in zip(self._sources, self.by_value.numpy(), strict=True):
                lines += [_line(name, i, row) for i, row in enumerate(rows) if row[0]]
        return lines

    def sample(self, size: int = 1000) -> list[float]:
        """Returns about `size` weights spread as those of all rows since the start."""
        counts = self.totals.numpy()[:, 2:].sum(axis=0)
        total = counts.sum()
        if not total:
            return []
        repeats = np.rint(size * counts / total).astype(int)
        return np.repeat((np.arange(BINS) + 0.5) / BINS, repeats).tolist()

    def write_csv(
        self, path: str | pathlib.Path, texts: Sequence[str] | None = None
    ) -> None:
        """Writes `table` atomically.

        Args:
          path: The file.
          texts: What the ids of the audited feature mean, id by id; they become a
            column `text`.
        """
        path, lines = pathlib.Path(path), self.table()
        if texts is not None:
            for line in lines:
                text = "" if line["value"] is None else texts[line["value"]]
                line["text"] = text
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(lines[0]) if lines else [])
                writer.writeheader()
                writer.writerows(lines)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def num_values(owner: str, name: str, fields: Sequence[FeatureInfo]) -> int:
    """Returns how many values the audited feature has; 0 where none is named.

    Raises:
      LookupError: For a name that is no id field.
      ValueError: For more than `MAX_VALUES` values.
    """
    if not name:
        return 0
    # Weights are kept by domain anyhow.
    ids = {f.name: f for f in fields if f.kind == "id" and f.role != "domain"}
    if name not in ids:
        raise lookup_error(f"{owner}.audit_feature", name, ids)
    if ids[name].num_ids > MAX_VALUES:
        raise ValueError(
            f"{owner}.audit_feature must have at most {MAX_VALUES} values; got "
            f"{name!r} with {ids[name].num_ids}. Name a coarser feature."
        )
    return ids[name].num_ids


def _line(source: str, value: int | None, row: Any) -> dict[str, Any]:
    mean = float(row[1] / row[0]) if row[0] else None
    return {"source": source, "value": value, "rows": int(row[0]), "mean_weight": mean}
