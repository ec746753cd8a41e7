"""Histories: what a user did strictly before each row, without a loop over rows.

The rows that may enter a history ("events") are sorted by user (and domain) and
time.  The history of a row is then a slice of that order: it ends where events of the
row's time begin, and starts at most `max_length` before.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features import hashing
from features import spec as spec_lib
from features.config import ConfigError, lookup_error
from features.layout import canonical_name, computed_histories
from features.schema import LABEL_PREFIX
from features.spec import DatasetSpec


def add_histories(
    spec: DatasetSpec, table: pa.Table, domains: Sequence[str] = ()
) -> pa.Table:
    """Returns the rows with one list column per computed history.

    The lists hold dictionary-encoded texts, so that long histories stay small.

    Args:
      spec: The dataset spec.
      table: Canonical rows of whole users with `domain`; any order.
      domains: Domain names in index order; read by histories of named domains.

    Returns:
      The same rows, ordered by user, time and row id, histories appended: oldest
      first, rows of an equal time left out.

    Raises:
      ConfigError: For a history of a domain that is not among them.
    """
    sequences = computed_histories(spec)
    if spec.keys.time is None:
        return table
    times = _integers(table, canonical_name(spec, spec.keys.time, "time"))
    users, row_id = _integers(table, "user_key"), _integers(table, "row_id")
    order = np.lexsort([row_id, times, users])
    table = table.take(pa.array(order))
    for feature in sequences:
        chosen = _domain_indices(feature, domains)
        column = _history(spec, feature, table, users[order], times[order], chosen)
        table = table.append_column(feature.name, column)
    return table


def _domain_indices(
    feature: spec_lib.Sequence, domains: Sequence[str]
) -> list[int] | None:
    """Returns the domains that a history keeps to, or None for all."""
    for name in feature.domains:
        if name not in domains:
            raise ConfigError(
                str(lookup_error(f"features.{feature.name}.domains", name, domains))
            )
    return [list(domains).index(name) for name in feature.domains] or None


def _history(
    spec: DatasetSpec,
    feature: spec_lib.Sequence,
    table: pa.Table,
    users: np.ndarray,
    times: np.ndarray,
    domains: list[int] | None,
) -> pa.ListArray:
    of = spec.feature(feature.of)
    name = canonical_name(spec, spec_lib.raw_column(of), "id")
    items = table.column(name).combine_chunks()
    items = items.chunk(0) if isinstance(items, pa.ChunkedArray) else items
    # Codes of 4 bytes instead of texts: an item stands in many histories.
    items = items.dictionary_encode()
    keep = ~items.is_null().to_numpy(zero_copy_only=False)
    if feature.only_positive_of is not None:
        keep &= _integers(table, LABEL_PREFIX + feature.only_positive_of) == 1
    if domains is not None:
        keep &= np.isin(_integers(table, "domain"), domains)
    group = np.unique(users, return_inverse=True)[1].astype(np.int64)
    if feature.per_domain:
        domain = _integers(table, "domain").astype(np.int64)
        group = group * (int(domain.max(initial=0)) + 1) + domain
    # Group and time as one number, so that a slice is found by one binary search.
    ranks = np.unique(times, return_inverse=True)[1].astype(np.int64)
    num_ranks = int(ranks.max(initial=0)) + 1
    events = np.flatnonzero(keep)
    event_keys = group[events] * num_ranks + ranks[events]
    by_key = np.argsort(event_keys, kind="stable")
    events, event_keys = events[by_key], event_keys[by_key]
    ends = np.searchsorted(event_keys, group * num_ranks + ranks, side="left")
    first = np.searchsorted(event_keys, group * num_ranks, side="left")
    starts = np.maximum(first, ends - feature.max_length)
    lengths = ends - starts
    taken = events[_ranges(starts, lengths)]
    if feature.initial_column is None:
        return _lists(items.take(pa.array(taken)), lengths)
    return _after_initial(spec, feature, table, items, taken, lengths)


def _after_initial(
    spec: DatasetSpec,
    feature: spec_lib.Sequence,
    table: pa.Table,
    items: pa.Array,
    taken: np.ndarray,
    lengths: np.ndarray,
) -> pa.ListArray:
    """Puts the end of the user's list from before the log in front."""
    name = canonical_name(spec, feature.initial_column or "", "ids")
    column = table.column(name).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    counts = hashing.list_lengths(column)
    offsets = np.cumsum(counts) - counts
    earlier = np.minimum(counts, feature.max_length - lengths)
    both = [column.flatten(), items.dictionary_decode()]
    values = pa.concat_arrays(both).dictionary_encode()
    num_earlier = int(counts.sum())
    totals = earlier + lengths
    ends = np.cumsum(totals)
    index = np.empty(int(totals.sum()), np.int64)
    index[_ranges(ends - totals, earlier)] = _ranges(
        offsets + counts - earlier, earlier
    )
    index[_ranges(ends - lengths, lengths)] = taken + num_earlier
    return _lists(values.take(pa.array(index)), totals)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns starts[0], starts[0] + 1, ... for each range, one after the other."""
    total = int(lengths.sum())
    offsets = np.cumsum(lengths) - lengths
    return np.arange(total) + np.repeat(starts - offsets, lengths)


def _lists(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _integers(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(pc.fill_null(table.column(name), 0).to_numpy())
