"""Which split a row belongs to: the split rules of the spec, vectorised."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from features import hashing
from features import spec as spec_lib
from features.config import ConfigError
from features.layout import canonical_name
from features.spec import SPLITS, DatasetSpec

TRAIN, VALIDATION, TEST = range(len(SPLITS))
NUM_BINS = 2**16  # of the hash of a row; a stratum is cut at a bin's border
_BIN_SHIFT = np.uint64(48)
POOLED = -1  # the stratum of rows that are not stratified
POSITIONS = -2  # key of published_order's partial: the number of positions


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """Cuts that need a look at all rows first.

    Attributes:
      bins: random: stratum -> (first bin of validation, first bin of test).
      positions: published_order: (first position of validation, of test).
    """

    bins: Mapping[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    positions: tuple[int, int] = (0, 0)


def split_counts(
    spec: DatasetSpec, batch: pa.RecordBatch, domain: np.ndarray
) -> dict[int, np.ndarray]:
    """Returns what a plan needs to know of a batch; merge with `merge_split_counts`.

    random, stratified: rows by domain and bin of the row hash, int64 [NUM_BINS].
    published_order: {POSITIONS: [largest position + 1]}.  Else nothing.
    """
    if isinstance(spec.split, spec_lib.PublishedOrderSplit) and batch.num_rows:
        # Not a count of rows: rejected ones leave gaps, and must not move the cuts.
        positions = _integers(spec, batch, spec.split_column, "time")
        return {POSITIONS: np.array([positions.max() + 1], np.int64)}
    if not isinstance(spec.split, spec_lib.RandomSplit) or not spec.split.stratify:
        return {}
    bins = _bins(spec, batch)
    return {
        int(s): np.bincount(bins[domain == s], minlength=NUM_BINS).astype(np.int64)
        for s in np.unique(domain)
    }


def merge_split_counts(
    a: Mapping[int, np.ndarray], b: Mapping[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """Returns two partial counts as one: sums, and the larger number of positions."""
    merged = dict(a)
    for key, value in b.items():
        join = np.maximum if key == POSITIONS else np.add
        merged[key] = join(merged[key], value) if key in merged else value
    return merged


def fit_split_plan(
    spec: DatasetSpec, merged: Mapping[int, np.ndarray] | None
) -> SplitPlan:
    """Returns the plan for all rows; `merged` is None for rules that need no counts.

    Without `stratify` a random split does not look at the rows: fractions hold in
    expectation, and a row's split never changes when other rows come or go.
    """
    match spec.split:
        case spec_lib.RandomSplit(stratify=False):
            flat = np.ones(NUM_BINS, np.int64)
            return SplitPlan(bins={POOLED: _cut(spec.split, flat)})
        case spec_lib.RandomSplit():
            counts = merged or {}
            return SplitPlan(bins={s: _cut(spec.split, c) for s, c in counts.items()})
        case spec_lib.PublishedOrderSplit():
            rows = int(merged[POSITIONS][0]) if merged else 0
            test = round(rows * (1 - spec.split.test))
            first = round(rows * (1 - spec.split.test - spec.split.validation))
            return SplitPlan(positions=(first, test))
        case _:
            return SplitPlan()


def _cut(rule: spec_lib.RandomSplit, counts: np.ndarray) -> tuple[int, int]:
    """Bins where validation and test begin: the borders nearest to the fractions."""
    below = np.concatenate([[0], np.cumsum(counts)])
    total = below[-1]
    wanted = (total * (1 - rule.test - rule.validation), total * (1 - rule.test))
    first, second = (int(np.argmin(np.abs(below - w))) for w in wanted)
    return first, max(first, second)


def assign_splits(
    spec: DatasetSpec, batch: pa.RecordBatch, domain: np.ndarray, plan: SplitPlan
) -> np.ndarray:
    """Returns int8 [B]: 0 train, 1 validation, 2 test, -1 in none.

    For `per_user_temporal` the batch must hold all rows of its users.
    """
    match spec.split:
        case spec_lib.RandomSplit():
            strata = domain if spec.split.stratify else np.full(len(domain), POOLED)
            return _by_bins(plan, strata, _bins(spec, batch))
        case spec_lib.TemporalSplit():
            cuts = (spec.split.validation_from, spec.split.test_from)
            times = _integers(spec, batch, spec.split_column, "time")
            outside = np.zeros(len(times), bool)
            if spec.split.train_from is not None:
                outside |= times < spec.split.train_from
            if spec.split.test_until is not None:
                outside |= times >= spec.split.test_until
            return np.where(outside, np.int8(-1), _by_cuts(times, cuts))
        case spec_lib.PublishedOrderSplit():
            positions = _integers(spec, batch, spec.split_column, "time")
            return _by_cuts(positions, plan.positions)
        case spec_lib.PerUserTemporalSplit():
            users = _column(batch, "user_key").to_numpy()
            times = _integers(spec, batch, spec.keys.time, "time")
            row_id = _column(batch, "row_id").to_numpy()
            return per_user_temporal(spec, users, times, row_id)
        case _:
            return _by_values(spec, batch)


def per_user_temporal(
    spec: DatasetSpec, user_codes: np.ndarray, time: np.ndarray, row_id: np.ndarray
) -> np.ndarray:
    """Returns int8 [B] for whole users: each one's last rows by (time, row id).

    A user with too few rows to leave one for training is all training.
    """
    rule = spec.split
    if not isinstance(rule, spec_lib.PerUserTemporalSplit):
        raise ConfigError(f"split.by must be per_user_temporal; got {rule.by}.")
    if not len(user_codes):
        return np.zeros(0, np.int8)
    order = np.lexsort([row_id, time, user_codes])
    users = user_codes[order]
    is_last = np.append(users[1:] != users[:-1], True)
    ends = np.flatnonzero(is_last)
    sizes = np.diff(np.concatenate([[-1], ends]))
    size = np.repeat(sizes, sizes)
    from_end = np.repeat(ends, sizes) - np.arange(len(users))  # 0 = the last row
    held_out = rule.validation_last + rule.test_last
    split = np.where(
        from_end < rule.test_last,
        TEST,
        np.where(from_end < held_out, VALIDATION, TRAIN),
    )
    result = np.empty(len(users), np.int8)
    result[order] = np.where(size > held_out, split, TRAIN)
    return result


def _bins(spec: DatasetSpec, batch: pa.RecordBatch) -> np.ndarray:
    row_id = _column(batch, "row_id").to_numpy().astype(np.uint64)
    salt = hashing.mix64(np.array([spec.split.seed], np.int64).view(np.uint64))
    return (hashing.mix64(row_id ^ salt) >> _BIN_SHIFT).astype(np.int64)


def _by_bins(plan: SplitPlan, strata: np.ndarray, bins: np.ndarray) -> np.ndarray:
    result = np.full(len(bins), TRAIN, np.int8)
    for stratum, cuts in plan.bins.items():
        rows = strata == stratum
        result[rows] = _by_cuts(bins[rows], cuts)
    return result


def _by_cuts(values: np.ndarray, cuts: tuple[int, int]) -> np.ndarray:
    return ((values >= cuts[0]).astype(np.int8) + (values >= cuts[1])).astype(np.int8)


def _by_values(spec: DatasetSpec, batch: pa.RecordBatch) -> np.ndarray:
    name = canonical_name(spec, spec.split_column or "", "id")
    uniques, codes = hashing.dictionary_codes(_column(batch, name))
    of_value = {
        str(value): index
        for index, split in enumerate(SPLITS)
        for value in getattr(spec.split, split)
    }
    table = [of_value.get(value, -1) for value in uniques.to_pylist()]
    return np.array([*table, -1], np.int8)[codes]


def _integers(
    spec: DatasetSpec, batch: pa.RecordBatch, column: str | None, kind: str
) -> np.ndarray:
    return _column(batch, canonical_name(spec, column or "", kind)).to_numpy()


def _column(batch: pa.RecordBatch, name: str) -> Any:
    return batch.column(batch.schema.get_field_index(name))
