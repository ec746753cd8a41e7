"""Which raw values an exported model takes: derived from the dataset spec alone.

Identifiers travel as strings ("" = missing), numbers as float32 (NaN = missing),
lists as strings padded on the right with "".  A raw column that is read both as an
identifier and as a number (say, an age that also chooses the domain) travels as a
string and is parsed inside the graph.
"""

import dataclasses
from typing import Any, Literal

from features import spec as spec_lib
from features.spec import DatasetSpec, raw_column


@dataclasses.dataclass(frozen=True)
class RawInput:
    """One input tensor.

    Attributes:
      name: Name in every signature; the raw column, or a computed history's feature.
      kind: `id` string [B], `ids` string [B, n], `number` float32 [B].
      per_item: True when each candidate has its own value (`predict_candidates`).
    """

    name: str
    kind: Literal["id", "ids", "number"]
    per_item: bool


def input_name(feature: Any) -> str | None:
    """Returns the raw input that a feature reads; None when it needs none."""
    match feature:
        case spec_lib.DomainIndicator() | spec_lib.Popularity():
            return None
        case spec_lib.Sequence():
            return feature.column or feature.name
        case _:
            return raw_column(feature)


def raw_inputs(spec: DatasetSpec) -> tuple[RawInput, ...]:
    """Returns the inputs of an exported model, in spec order, the domain's last."""
    uses: dict[str, list[tuple[str, str]]] = {}
    for feature in spec.features:
        name = input_name(feature)
        if name is None:
            continue
        kind = {"numeric": "number", "categorical": "id"}.get(feature.kind, "ids")
        uses.setdefault(name, []).append((kind, feature.role))
    uses.setdefault(spec.domain.column, []).append(("id", ""))
    return tuple(
        RawInput(name, _widest(spec, name, uses[name]), _is_per_item(uses[name]))
        for name in uses
    )


def _widest(
    spec: DatasetSpec, name: str, uses: list[tuple[str, str]]
) -> Literal["id", "ids", "number"]:
    kinds = {kind for kind, _ in uses}
    if "ids" in kinds and len(kinds) > 1:
        raise ValueError(
            f"DatasetSpec {spec.name}: column {name!r} must be a list or a single "
            f"value in every feature that reads it; got {sorted(kinds)}. "
            "Give one of the features a column of its own."
        )
    return "ids" if "ids" in kinds else "id" if "id" in kinds else "number"


def _is_per_item(uses: list[tuple[str, str]]) -> bool:
    roles = {role for _, role in uses if role}
    return roles == {"item"}
