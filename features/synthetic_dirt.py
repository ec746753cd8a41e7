"""Dirty rows of the synthetic log: what real loggers get wrong."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# What a dirty row has instead of its value.
DIRT = (
    "missing_user",
    "missing_item",
    "missing_time",
    "nan_label",
    "malformed_number",
    "unknown_domain",
    "malformed_line",  # JSONL only: Parquet has no lines
)


def soil(events: dict[str, pa.Array], dirt: np.ndarray) -> None:
    """Puts what `DIRT` says into the columns; `malformed_line` is for the writer."""
    cells = {
        "missing_user": ("user_id", None),
        "missing_item": ("item_id", None),
        "missing_time": ("time", None),
        "nan_label": ("click", float("nan")),
        "malformed_number": ("position", "1O"),
        "unknown_domain": ("domain", "nowhere"),
    }
    for kind, (name, value) in cells.items():
        rows = dirt == DIRT.index(kind)
        if rows.any():
            column = events[name]
            bad = pa.scalar(value, column.type)
            events[name] = pc.if_else(pa.array(rows), bad, column)
