"""Which raw columns a spec uses, as what, and how the canonical batch names them.

A canonical column is named like its raw column.  Where that name belongs to a derived
column (`domain`, `row_id` ...), or where one raw column is used as two types (an age
that is domain and number), the others are named `raw/<column>/<type>`: ask
`canonical_name`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from features import spec as spec_lib
from features.config import ConfigError
from features.schema import LABEL_PREFIX
from features.spec import DatasetSpec

RawType = Literal["id", "ids", "number", "time", "day"]
DERIVED_NAMES = ("domain", "split", "weight", "row_id", "user_key", "day")

_ARROW_TYPES = {
    "id": pa.string(),
    "ids": pa.list_(pa.string()),
    "number": pa.float64(),
    "time": pa.int64(),
    "day": pa.int64(),
}


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of a raw column.

    Attributes:
      column: The raw column.
      type: Canonical type that it is read as.
      separator: For `ids` in text.
      keep: Whether the canonical batch holds it (else only a derived column does).
    """

    column: str
    type: RawType
    separator: str | None = None
    keep: bool = True


def uses(spec: DatasetSpec) -> dict[tuple[str, str], Use]:
    """Returns every use of raw columns, by column and type, keys first."""
    keys = spec.keys
    found = [Use(keys.user, "id"), Use(keys.item, "id")]
    if keys.time is not None:
        found.append(Use(keys.time, "time"))
    if keys.day is not None:
        found.append(Use(keys.day, "day", keep=False))
    found.append(Use(spec.domain.column, "id"))
    if spec.split_column is not None:
        by_value = isinstance(spec.split, spec_lib.ColumnSplit)
        found.append(Use(spec.split_column, "id" if by_value else "time"))
    found += [use for f in spec.features if (use := _feature_use(f)) is not None]
    found += [
        Use(f.initial_column, "ids", f.separator)
        for f in spec.features
        if isinstance(f, spec_lib.Sequence) and f.initial_column is not None
    ]
    for task in spec.tasks:
        found.append(Use(task.column, "number", keep=False))
        if task.mask_column is not None:
            found.append(Use(task.mask_column, "number", keep=False))
    if spec.weight is not None:
        found.append(Use(spec.weight, "number", keep=False))
    return _merge_uses(found)


def _feature_use(feature: Any) -> Use | None:
    match feature:
        case spec_lib.Categorical():
            return Use(spec_lib.raw_column(feature), "id")
        case spec_lib.MultiValued():
            return Use(spec_lib.raw_column(feature), "ids", feature.separator)
        case spec_lib.Numeric():
            return Use(spec_lib.raw_column(feature), "number")
        case spec_lib.Sequence() if feature.column is not None:
            return Use(feature.column, "ids", feature.separator)
        case _:
            return None


def _merge_uses(found: Sequence[Use]) -> dict[tuple[str, str], Use]:
    merged: dict[tuple[str, str], Use] = {}
    for use in found:
        key = (use.column, use.type)
        first = merged.setdefault(key, use)
        if first.separator != use.separator:
            raise ConfigError(
                f"separator of column {use.column!r} must be the same in all features "
                f"that read it; got {first.separator!r} and {use.separator!r}."
            )
        if use.keep and not first.keep:
            merged[key] = use
    return merged


def raw_columns(spec: DatasetSpec) -> dict[str, str]:
    """Returns every raw column that a spec uses (after joins) and its raw type.

    Types: "id", "ids", "number", "time"; "raw" where a column is used as several
    types, or as a day: a reader leaves such a column as it finds it.
    """
    types: dict[str, str] = {}
    for use in uses(spec).values():
        own = "raw" if use.type == "day" else use.type
        types[use.column] = own if types.get(use.column, own) == own else "raw"
    return types


def canonical_name(spec: DatasetSpec, column: str, raw_type: str) -> str:
    """Returns how the canonical batch names a raw column read as `raw_type`."""
    return layout(spec)[column, raw_type]


def layout(spec: DatasetSpec) -> dict[tuple[str, str], str]:
    """Returns canonical names by raw column and type."""
    taken = {*DERIVED_NAMES, *(LABEL_PREFIX + t for t in spec.task_names)}
    taken |= {f.name for f in computed_histories(spec)}
    names = {}
    for column, raw_type in uses(spec):
        plain = column not in taken
        names[column, raw_type] = column if plain else f"raw/{column}/{raw_type}"
        taken.add(column)
    return names


def computed_histories(spec: DatasetSpec) -> list[spec_lib.Sequence]:
    """Returns the sequences that are made from earlier rows of the same user."""
    return [
        f for f in spec.features if isinstance(f, spec_lib.Sequence) and not f.column
    ]


def canonical_schema(spec: DatasetSpec) -> pa.Schema:
    """Returns the Arrow schema of a canonical batch."""
    names = layout(spec)
    fields = [
        (names[key], _ARROW_TYPES[use.type])
        for key, use in uses(spec).items()
        if use.keep
    ]
    fields += [(LABEL_PREFIX + t, pa.int8()) for t in spec.task_names]
    if spec.weight is not None:
        fields.append(("weight", pa.float32()))
    fields += [("row_id", pa.int64()), ("user_key", pa.int64())]
    if spec.day_source is not None:
        fields.append(("day", pa.int32()))
    return pa.schema(fields)
