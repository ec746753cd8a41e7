"""Real raw rows of a prepared data set, for parity, warm-up and smoke requests.

The preprocessing job leaves a small `samples/<split>.parquet` of canonical raw rows,
with the `row_id` that finds the same rows among the encoded ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.dataset import Dataset, DatasetError
from features.layout import canonical_name, layout
from features.spec import DatasetSpec
from serving.inputs import RawInput

SAMPLES_DIR = "samples"


def read_samples(
    dataset: Dataset, split: str, rows: int, domains: Sequence[str] = ()
) -> pa.Table:
    """Returns up to `rows` canonical raw rows of a split, of these domains (() = all).

    Raises:
      DatasetError: When the data set holds no samples.
    """
    path = dataset.data_dir / SAMPLES_DIR / f"{split}.parquet"
    if not path.exists():
        raise DatasetError(
            f"data_dir must hold {SAMPLES_DIR}/{split}.parquet (raw rows to check the "
            f"export with); {dataset.data_dir} has none. Prepare the data set again."
        )
    table = pq.read_table(path)
    if domains:
        table = table.filter(pa.array(rows_of_domains(dataset, domains, table)))
    return table.slice(0, rows)


def rows_of_domains(
    dataset: Dataset, domains: Sequence[str], table: pa.Table
) -> np.ndarray:
    """Returns which canonical raw rows belong to these domains; bool [rows]."""
    fitted, spec = dataset.info.fitted, dataset.info.spec
    column = table.column(canonical_name(spec, spec.domain.column, "id"))
    index = [
        fitted.domain_values.get(value, fitted.domain_default)
        for value in column.to_pylist()
    ]
    names = [fitted.domains[i] if i >= 0 else "" for i in index]
    return np.isin(names, list(domains))


def raw_arrays(
    spec: DatasetSpec, inputs: Sequence[RawInput], table: pa.Table
) -> dict[str, np.ndarray]:
    """Returns NumPy arrays by input name from canonical raw rows.

    Strings are object arrays of str, "" where missing; lists are padded with "".
    """
    names = layout(spec)
    return {
        # A computed history has no raw column: it is named by its feature.
        item.name: _array(
            item, table.column(names.get((item.name, item.kind), item.name))
        )
        for item in inputs
    }


def json_rows(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Returns rows as `serving.client` and REST's `instances` take them.

    Lists keep their padding: TF Serving wants the same length in every row.
    """
    columns = {name: array.tolist() for name, array in arrays.items()}
    rows = len(next(iter(columns.values())))
    return [{name: columns[name][row] for name in columns} for row in range(rows)]


def _array(item: RawInput, column: pa.ChunkedArray) -> np.ndarray:
    values = column.to_pylist()
    if item.kind == "number":
        return np.array([np.nan if v is None else v for v in values], np.float32)
    if item.kind == "id":
        return np.array([_text(v) for v in values], object)
    width = max([len(v) for v in values if v is not None], default=0)
    rows = [list(v or ()) for v in values]
    padded = [[_text(v) for v in row] + [""] * (width - len(row)) for row in rows]
    return np.array(padded, object).reshape(len(rows), width)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)
