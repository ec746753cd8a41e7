"""A spec with every kind of feature, and raw rows for it."""

from typing import Any

import pyarrow as pa

from features.spec import DatasetSpec


def spec_values(**changes: Any) -> dict[str, Any]:
    """Returns the values of the spec, top keys replaced by `changes`."""
    values = {
        "name": "rows",
        "source": {"path": "log.parquet"},
        "keys": {"user": "user", "item": "item", "time": "ts"},
        "domain": {"by": "column", "column": "domain"},
        "tasks": [
            {"name": "click", "column": "click"},
            {
                "name": "like",
                "column": "rating",
                "compare": "ge",
                "value": 4,
                "missing": "mask",
            },
        ],
        "features": [
            {
                "kind": "categorical",
                "name": "item_id",
                "role": "item",
                "column": "item",
            },
            {
                "kind": "categorical",
                "name": "cat",
                "role": "item",
                "encoding": {"by": "hash", "num_buckets": 7},
            },
            {"kind": "multi", "name": "tags", "role": "item", "max_length": 2},
            {"kind": "numeric", "name": "price", "role": "item"},
            {
                "kind": "numeric",
                "name": "level",
                "role": "item",
                "column": "price",
                "transform": "bucketise",
                "num_buckets": 2,
            },
            {"kind": "popularity", "name": "pop", "role": "item", "of": "item_id"},
            {"kind": "sequence", "name": "history", "of": "item_id", "max_length": 3},
            {"kind": "domain"},
        ],
        "split": {"by": "random"},
        "weight": "weight",
    }
    return values | changes


def make_spec(**changes: Any) -> DatasetSpec:
    """Returns the spec."""
    return DatasetSpec.parse(spec_values(**changes))


def raw_batch(rows: int = 4, **columns: Any) -> pa.RecordBatch:
    """Returns good raw rows, columns replaced by `columns`."""
    values: dict[str, Any] = {
        "user": [f"u{i % 2}" for i in range(rows)],
        "item": list(range(rows)),
        "ts": [1_650_844_800 + i for i in range(rows)],  # 2022-04-25 UTC
        "domain": ["x" if i % 2 else "y" for i in range(rows)],
        "click": [i % 2 for i in range(rows)],
        "rating": [float(i + 1) for i in range(rows)],
        "cat": ["a"] * rows,
        "tags": ["t1|t2"] * rows,
        "price": [float(i) for i in range(rows)],
        "weight": [1.0] * rows,
    }
    return pa.RecordBatch.from_pydict(values | columns)
