"""From a raw value to a domain: the three rules of the spec."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from features import hashing
from features import spec as spec_lib
from features.config import ConfigError
from features.layout import canonical_name
from features.spec import DatasetSpec


@dataclasses.dataclass(frozen=True)
class FittedDomains:
    """Domains of a data set.

    Attributes:
      names: Domain names in index order.
      values: Raw value -> domain index.
      default: Index of any other value, -1 = reject the row.
    """

    names: tuple[str, ...]
    values: Mapping[str, int]
    default: int


def domain_counts(spec: DatasetSpec, batch: pa.RecordBatch) -> tuple[Any, Any]:
    """Returns distinct values of the domain column and their rows in a batch."""
    uniques, codes = hashing.dictionary_codes(_column(spec, batch))
    counts = np.bincount(codes[codes >= 0], minlength=len(uniques))
    return uniques, counts.astype(np.int64)


def fit_domains(spec: DatasetSpec, values: Any, counts: Any) -> FittedDomains:
    """Returns the domains that a rule gives for these values.

    Args:
      spec: The dataset spec.
      values: Distinct raw values [n]; not read by rules that list their values.
      counts: Rows [n] of each.

    Raises:
      ConfigError: When the rule cannot be met by the data.
    """
    texts = values.to_pylist() if hasattr(values, "to_pylist") else list(values)
    rows = dict(zip(map(str, texts), map(int, counts), strict=True))
    match spec.domain:
        case spec_lib.ValueMapDomain():
            return _value_map(spec.domain)
        case spec_lib.ColumnDomain():
            return _by_column(spec, rows)
        case _:
            return _top_k(spec, rows)


def assign_domains(
    values: Mapping[str, int], default: int, spec: DatasetSpec, batch: pa.RecordBatch
) -> np.ndarray:
    """Returns the domain index of each row, int32 [B]; -1 = no domain."""
    uniques, codes = hashing.dictionary_codes(_column(spec, batch))
    table = [values.get(value, default) for value in uniques.to_pylist()]
    # The last entry serves code -1: a missing value belongs to no domain.
    return np.array([*table, -1], np.int32)[codes]


def _column(spec: DatasetSpec, batch: pa.RecordBatch) -> pa.Array:
    name = canonical_name(spec, spec.domain.column, "id")
    return batch.column(batch.schema.get_field_index(name))


def _value_map(rule: spec_lib.ValueMapDomain) -> FittedDomains:
    names = tuple(rule.domains)
    values = {
        str(value): index
        for index, raw in enumerate(rule.domains.values())
        for value in raw
    }
    default = -1 if rule.unmapped == "reject" else names.index(rule.unmapped)
    return FittedDomains(names, values, default)


def _by_column(spec: DatasetSpec, rows: Mapping[str, int]) -> FittedDomains:
    rule = spec.domain
    if rule.values is not None:
        chosen = [str(value) for value in rule.values]
    else:
        kept = (value for value, count in rows.items() if count >= rule.min_rows)
        chosen = sorted(kept, key=natural_key)
        if not chosen:
            raise ConfigError(
                f"domain.min_rows must leave a domain; got {rule.min_rows}, and the "
                f"largest value of column {rule.column!r} has "
                f"{max(rows.values(), default=0)} rows (data set {spec.name}). "
                "Lower min_rows."
            )
    names = _names(spec, chosen)
    return FittedDomains(names, {v: i for i, v in enumerate(chosen)}, -1)


def _top_k(spec: DatasetSpec, rows: Mapping[str, int]) -> FittedDomains:
    rule = spec.domain
    if len(rows) < rule.k:
        raise ConfigError(
            f"domain.k must be at most the number of values of column "
            f"{rule.column!r}; got {rule.k} and {len(rows)} (data set {spec.name}). "
            "Lower k."
        )
    chosen = sorted(rows, key=lambda value: (-rows[value], natural_key(value)))[
        : rule.k
    ]
    names = _names(spec, chosen, rule.rest)
    return FittedDomains(names, {v: i for i, v in enumerate(chosen)}, rule.k)


def natural_key(value: str) -> tuple[int, float, str]:
    """Returns a sort key: numbers by value, then text.

    >>> sorted(["b", "10", "9"], key=natural_key)
    ['9', '10', 'b']
    """
    # By a pattern: float() also takes "NaN", which has no place in an order.
    if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value):
        return (0, float(value), value)
    return (1, 0.0, value)


def _names(spec: DatasetSpec, values: list[str], *more: str) -> tuple[str, ...]:
    names = [*(_name(spec.domain.column, value) for value in values), *more]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"domain names must differ; got {', '.join(twice)} from more than one "
            f"value of column {spec.domain.column!r} (data set {spec.name}). Name the "
            "domains with domain.by=value_map."
        )
    return tuple(names)


def _name(column: str, value: str) -> str:
    """A domain name that can stand in file names and tags: `tab_1`, `books`."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", value)
    return name if name[:1].isalpha() else f"{column}_{name}"
