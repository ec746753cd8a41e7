"""Joined raw rows of any Arrow types to canonical rows, bad ones apart.

A canonical batch holds, per raw column that a spec uses: strings for identifiers,
lists of strings for several identifiers, float64 for numbers, int64 for times; and
the derived columns `label/<task>` int8 (0, 1, -1 = masked), `weight` float32 (if the
spec has one), `row_id` int64, `user_key` int64 and `day` int32 (where it is known).
`features/layout.py` says how the columns are named.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from features import convert, hashing, layout
from features.config import ConfigError, nearest
from features.layout import canonical_name, canonical_schema, raw_columns
from features.schema import LABEL_PREFIX, MASKED_LABEL
from features.spec import DatasetSpec, Task

__all__ = [
    "REJECTED_SCHEMA",
    "canonical_name",
    "canonical_schema",
    "canonicalise",
    "check_columns",
    "raw_columns",
    "rejected_rows",
]

REJECTED_SCHEMA = pa.schema([("reason", pa.string()), ("row", pa.string())])

_RULES = {
    "id": "an identifier",
    "ids": "a list of identifiers",
    "number": "a finite number",
    "time": "a time",
    "day": "a day YYYYMMDD",
}
_COMPARE = {
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
}
_MIN_DAY, _MAX_DAY = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31


def canonicalise(
    spec: DatasetSpec, batch: pa.RecordBatch
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Returns (good, rejected): every input row is in exactly one of them.

    Args:
      spec: The dataset spec.
      batch: Raw rows [B] after joins, any Arrow types; further columns are ignored.

    Returns:
      Canonical rows of `canonical_schema`, in input order, and rejected rows of
      `REJECTED_SCHEMA`: the first reason that was found, and the raw row as JSON.

    Raises:
      ConfigError: A column of the spec is missing or can never be converted.
    """
    check_columns(spec, batch.schema.names)
    rows = _Rows(spec, batch)
    rows.check_keys()
    derived: dict[str, np.ndarray] = {
        LABEL_PREFIX + task.name: rows.label(task) for task in spec.tasks
    }
    if spec.weight is not None:
        derived["weight"] = rows.weight()
    if spec.day_source is not None:
        derived["day"] = rows.day()
    columns, good = rows.columns, rows.reasons < 0
    if not good.all():
        columns = {key: c.filter(pa.array(good)) for key, c in columns.items()}
        derived = {name: values[good] for name, values in derived.items()}
    derived["row_id"] = _row_ids(columns)
    users = hashing.hash_text(columns[spec.keys.user, "id"])
    derived["user_key"] = hashing.to_key(hashing.mix64(users))
    schema = canonical_schema(spec)
    kept = [columns[key] for key, use in rows.uses.items() if use.keep]
    kept += [
        pa.array(derived[field.name].astype(field.type.to_pandas_dtype()))
        for field in list(schema)[len(kept) :]
    ]
    rejected = rejected_rows(
        batch, np.flatnonzero(~good), [rows.texts[r] for r in rows.reasons[~good]]
    )
    return pa.RecordBatch.from_arrays(kept, schema=schema), rejected


def check_columns(spec: DatasetSpec, names: Iterable[str]) -> None:
    """Raises unless the raw rows have every column that the spec uses."""
    known = list(names)
    for column in raw_columns(spec):
        if known.count(column) == 1:
            continue
        problem = "once" if column in known else "in the raw rows"
        raise ConfigError(
            f"DatasetSpec {spec.name}: column {column!r} must be {problem}; got "
            f"{', '.join(known) or 'no columns'}.{nearest(column, known)} Name the "
            "right column in the spec, or join the table that has it."
        )


def rejected_rows(
    batch: pa.RecordBatch, rows: np.ndarray, reasons: Sequence[str]
) -> pa.RecordBatch:
    """Returns a batch of `REJECTED_SCHEMA`.

    Args:
      batch: Rows of any kind.
      rows: Positions of the rejected ones, int64 [R].
      reasons: A reason for each of them.
    """
    # Row by row, on purpose: rejected rows are few, and people read them.
    chosen = pa.Table.from_batches([batch]).take(pa.array(rows, pa.int64()))
    texts = [
        json.dumps(_plain(row), sort_keys=True, ensure_ascii=False, default=str)
        for row in chosen.to_pylist()
    ]
    return pa.RecordBatch.from_arrays(
        [pa.array(list(reasons), pa.string()), pa.array(texts, pa.string())],
        schema=REJECTED_SCHEMA,
    )


def _plain(value: Any) -> Any:
    """JSON has no NaN and no bytes: both become readable text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _row_ids(columns: dict[tuple[str, str], pa.Array]) -> np.ndarray:
    """62-bit hash over all used columns; a sum, so their order does not matter."""
    hashes = sum(
        hashing.hash_column(f"{name}/{kind}", column)
        for (name, kind), column in columns.items()
    )
    return hashing.to_key(hashing.mix64(np.asarray(hashes, np.uint64)))


class _Rows:
    """The rows of one batch while they are converted and checked.

    Attributes:
      uses: Use by (column, type).
      columns: Converted column by (column, type).
      reasons: int64 [B], index into `texts` of the first problem found, or -1.
      texts: Reasons.
    """

    def __init__(self, spec: DatasetSpec, batch: pa.RecordBatch):
        self.spec = spec
        self.uses = layout.uses(spec)
        self.columns: dict[tuple[str, str], pa.Array] = {}
        self.reasons = np.full(batch.num_rows, -1, np.int64)
        self.texts: list[str] = []
        lenient = self._label_columns()
        self._bad_label: dict[str, np.ndarray] = {}
        for key, use in self.uses.items():
            column, bad = self._convert(use, batch.column(use.column))
            self.columns[key] = column
            if use.column in lenient and use.type == "number" and not use.keep:
                # Whether it matters is for the task's mask to say.
                self._bad_label[use.column] = bad
            else:
                self.reject(bad, f"{use.column} must be {_RULES[use.type]}")

    def _label_columns(self) -> set[str]:
        return {task.column for task in self.spec.tasks if task.mask_column}

    def _convert(self, use: layout.Use, raw: pa.Array) -> tuple[pa.Array, np.ndarray]:
        try:
            match use.type:
                case "id":
                    return convert.to_id(raw)
                case "ids":
                    return convert.to_ids(raw, use.separator)
                case "number":
                    return convert.to_number(raw)
                case "time":
                    return convert.to_time(raw, self.spec.keys.time_unit)
                case _:
                    return convert.to_day(raw)
        except TypeError as error:
            raise ConfigError(
                f"DatasetSpec {self.spec.name}: column {use.column!r} must hold "
                f"{error}. Name another column, or change the type it is used as."
            ) from error

    def reject(self, bad: np.ndarray, reason: str) -> None:
        """Gives the reason to the bad rows that have none yet."""
        new = bad & (self.reasons < 0)
        if new.any():
            self.reasons[new] = len(self.texts)
            self.texts.append(reason)

    def numbers(self, column: str) -> np.ndarray:
        """float64 [B], NaN for null."""
        return self.columns[column, "number"].to_numpy(zero_copy_only=False)

    def check_keys(self) -> None:
        """Rejects rows without user, time or day."""
        for key, use in self.uses.items():
            is_user = use.column == self.spec.keys.user and use.type == "id"
            if is_user or use.type in ("time", "day"):
                column = self.columns[key]
                if column.null_count:
                    missing = column.is_null().to_numpy(zero_copy_only=False)
                    self.reject(missing, f"{use.column} is missing")

    def label(self, task: Task) -> np.ndarray:
        """int8 [B]: 0, 1 or MASKED_LABEL; rejects rows whose label is of no use."""
        values = self.numbers(task.column)
        name = LABEL_PREFIX + task.name
        missing = np.isnan(values)
        bad = self._bad_label.get(task.column, np.zeros(len(values), bool))
        if task.compare is not None:
            compare: Any = _COMPARE[task.compare]
            labels = compare(values, task.value).astype(np.int8)
        else:
            labels = (values == 1).astype(np.int8)
            wrong = ~missing & (values != 0) & (values != 1)
            bad = bad | wrong
        masked = np.zeros(len(values), bool)
        if task.mask_column is not None:
            mask = self.numbers(task.mask_column)
            masked = np.isnan(mask) | (mask == 0)
        rule = "0 or 1" if task.compare is None else "a finite number"
        self.reject(bad & ~masked, f"{name} must be {rule}")
        if task.missing == "reject":
            self.reject(missing & ~masked, f"{name} is missing")
        labels[missing | masked] = MASKED_LABEL
        return labels

    def weight(self) -> np.ndarray:
        """float32 [B]."""
        weights = self.numbers(str(self.spec.weight))
        self.reject(np.isnan(weights), "weight is missing")
        self.reject(weights < 0, "weight must be >= 0")
        with np.errstate(over="ignore"):
            small = weights.astype(np.float32)
        self.reject(np.isinf(small), "weight must be a finite float32")
        return small

    def day(self) -> np.ndarray:
        """int32 [B] YYYYMMDD."""
        keys = self.spec.keys
        if keys.day is not None:
            days = self.columns[keys.day, "day"]
            return days.fill_null(0).to_numpy(zero_copy_only=False)
        times = self.columns[str(keys.time), "time"]
        filled = times.fill_null(0).to_numpy(zero_copy_only=False)
        days = convert.days_of(filled, keys.time_unit)
        outside = (days < _MIN_DAY) | (days > _MAX_DAY)
        self.reject(outside, f"{keys.time} must be a time in {keys.time_unit}")
        return convert.yyyymmdd(np.where(outside, 0, days))
