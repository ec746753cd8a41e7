"""Rows whose users and items are near the target's, and no more of them than wanted."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features.derive import graph
from pipeline import progress
from pipeline.selection import HOPS, most_rows
from pipeline.transforms import combine, record_batches
from pipeline.transforms.graph import ITEMS, USERS, GroupNodes

ROWS, COUNTS = "rows", "counts"
_FAR = np.int8(127)  # hop of what is no node
_BINS = 1 << 12  # of the order key: rows of one bin are compared one by one
_BIN_SHIFT = 63 - 12
_SCHEMA = pa.schema(
    [
        ("user", pa.int64()),
        ("item", pa.int64()),
        ("place", pa.int64()),
        ("order", pa.int64()),
        ("domain", pa.int32()),
        ("hop", pa.int8()),
        ("is_node", pa.bool_()),
    ]
)


def candidates(
    user: np.ndarray,
    item: np.ndarray,
    place: np.ndarray,
    order: np.ndarray,
    domain: np.ndarray,
) -> pa.RecordBatch:
    """Returns rows that may be chosen.

    Args:
      user: [B] int64.
      item: [B] int64.
      place: [B] int64, where the row is.
      order: [B] int64 >= 0, a hash of the row: the smallest are kept.
      domain: [B] int32.
    """
    rows = len(user)
    return _batch(user, item, place, order, domain, np.zeros(rows), np.zeros(rows))


class NearRows(beam.PTransform):
    """Dict of `rows`, `users` and `items` nodes -> dict of `rows` and `counts`.

    Rows near enough have their `hop`; counts are dicts by (what, hop) of `users`,
    `items` and rows `found`, to be added up.

    Both ends of a row must be nodes; with `require_seed` one of them a seed.  A row's
    hop is that of its farther end.
    """

    def __init__(self, *, require_seed: bool, num_buckets: int) -> None:
        super().__init__()
        self.require_seed, self.num_buckets = require_seed, num_buckets

    def expand(self, found: Any) -> Any:
        """Adds the steps."""
        users = found[USERS] | "User nodes as rows" >> beam.Map(_as_rows, "user")
        items = found[ITEMS] | "Item nodes as rows" >> beam.Map(_as_rows, "item")
        with_user = (
            (found["rows"], users)
            | "Rows and users" >> beam.Flatten()
            | "Group rows by user" >> GroupNodes(self.num_buckets, "user")
            | "Join users" >> beam.ParDo(_JoinUsers()).with_outputs(COUNTS, main=ROWS)
        )
        near = (
            (with_user[ROWS], items)
            | "Rows and items" >> beam.Flatten()
            | "Group rows by item" >> GroupNodes(self.num_buckets, "item")
            | "Join items"
            >> beam.ParDo(_JoinItems(self.require_seed)).with_outputs(COUNTS, main=ROWS)
        )
        counts = (with_user[COUNTS], near[COUNTS]) | "Node counts" >> beam.Flatten()
        return {ROWS: near[ROWS], COUNTS: counts}


@dataclasses.dataclass(frozen=True)
class Cut:
    """Rows of smaller hops are kept, and of hop `hop` those with order < `order`."""

    hop: int
    order: int


class KeepMost(beam.PTransform):
    """At most so many rows: the nearest first, then those of the smallest order.

    Gives `rows`, and `counts` of those `kept` by (what, hop).

    Args:
      counts: Side input: counts of `graph_look.Look`, added up.
      max_ratio: Rows kept a target row.
    """

    def __init__(self, counts: Any, max_ratio: float) -> None:
        super().__init__()
        self.counts, self.max_ratio = counts, max_ratio

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> Any:
        """Adds the steps."""
        start = beam.pvalue.AsSingleton(
            rows
            | "Count rows by order" >> beam.Map(_histogram)
            | "Add up rows by order"
            >> beam.CombineGlobally(combine.MergePartials(sum, np.zeros((HOPS, _BINS))))
            | "Find the bin of the cut"
            >> beam.Map(_find_bin, self.counts, self.max_ratio)
        )
        cut = beam.pvalue.AsSingleton(
            rows
            | "Take orders of the bin" >> beam.Map(_orders_of_bin, start)
            | "Gather orders of the bin"
            >> beam.CombineGlobally(
                combine.MergePartials(np.concatenate, np.zeros(0, np.int64))
            )
            | "Find the cut" >> beam.Map(_find_cut, start)
        )
        return rows | "Cut off" >> beam.ParDo(_CutOff(), cut).with_outputs(
            COUNTS, main=ROWS
        )


@beam.typehints.with_output_types(pa.RecordBatch)
class _JoinUsers(beam.DoFn):
    """Rows of some users and their nodes -> rows of nodes, with the user's hop."""

    def process(self, keyed: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        rows, hop, counts = _join(keyed[1], "user")
        progress.report("choose", len(hop))
        yield beam.pvalue.TaggedOutput(COUNTS, _keyed(USERS, counts))
        yield _with_hop(rows, hop, hop < _FAR)


@beam.typehints.with_output_types(pa.RecordBatch)
class _JoinItems(beam.DoFn):
    def __init__(self, require_seed: bool) -> None:
        self._require_seed = require_seed

    def process(self, keyed: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        rows, item_hop, counts = _join(keyed[1], "item")
        yield beam.pvalue.TaggedOutput(COUNTS, _keyed(ITEMS, counts))
        user_hop = record_batches.integers(rows, "hop")
        chosen = item_hop < _FAR
        if self._require_seed:
            chosen &= (user_hop == 0) | (item_hop == 0)
        near = _with_hop(rows, np.maximum(user_hop, item_hop), chosen)
        found = record_batches.integers(near, "hop")
        yield beam.pvalue.TaggedOutput(COUNTS, _keyed("found", found))
        yield near


def _keyed(what: str, hops: np.ndarray) -> dict[tuple[str, int], int]:
    distinct, counts = np.unique(hops, return_counts=True)
    return {
        (what, hop): count
        for hop, count in zip(distinct.tolist(), counts.tolist(), strict=True)
    }


def _join(
    batches: Iterable[pa.RecordBatch], key: str
) -> tuple[pa.RecordBatch, np.ndarray, np.ndarray]:
    """Returns the rows, the hop of each one's node or _FAR, and hops of the nodes.

    Both hops are int8; a node that came with several has the smallest.
    """
    both = record_batches.concat(batches)
    is_node = both["is_node"].to_numpy(zero_copy_only=False)
    rows = both.filter(pa.array(~is_node))
    values = record_batches.integers(both, key)[is_node]
    hops = record_batches.integers(both, "hop")[is_node]
    order = np.lexsort([hops, values])
    values, hops = values[order], hops[order]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]][: len(values)])
    values, hops = values[first], hops[first]
    wanted = record_batches.integers(rows, key)
    found = graph.contains(wanted, values)
    hop = np.full(len(wanted), _FAR)
    hop[found] = hops[np.searchsorted(values, wanted[found])]
    return rows, hop, hops


def _with_hop(
    rows: pa.RecordBatch, hop: np.ndarray, chosen: np.ndarray
) -> pa.RecordBatch:
    columns = list(rows.columns)
    columns[_SCHEMA.get_field_index("hop")] = pa.array(hop, pa.int8())
    batch = pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)
    return batch.filter(pa.array(chosen))


@beam.typehints.with_output_types(pa.RecordBatch)
def _as_rows(batch: pa.RecordBatch, key: str) -> pa.RecordBatch:
    """Returns nodes in the schema of rows, so that both come to the same bucket."""
    node, hop = (record_batches.integers(batch, name) for name in ("node", "hop"))
    nothing = np.zeros(len(node), np.int64)
    user, item = (node, nothing) if key == "user" else (nothing, node)
    ones = np.ones(len(node), bool)
    return _batch(user, item, nothing, nothing, nothing, hop, ones)


def _batch(*columns: np.ndarray) -> pa.RecordBatch:
    arrays = [
        pa.array(values.astype(field.type.to_pandas_dtype()), field.type)
        for values, field in zip(columns, _SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _histogram(batch: pa.RecordBatch) -> np.ndarray:
    """Rows by hop and bin of the order, int64 [HOPS, _BINS]."""
    hop = record_batches.integers(batch, "hop").astype(np.int64)
    bins = record_batches.integers(batch, "order") >> _BIN_SHIFT
    counts = np.bincount(hop * _BINS + bins, minlength=HOPS * _BINS)
    return counts.reshape(HOPS, _BINS)


def _find_bin(
    rows: np.ndarray, counts: Mapping[Any, int], max_ratio: float
) -> tuple[int, int, int]:
    """Returns hop and bin where the limit is passed, and rows still wanted of it."""
    most = most_rows(counts, max_ratio)
    ends = np.cumsum(rows.reshape(-1))
    place = int(np.searchsorted(ends, most, side="right"))
    if place == len(ends):
        return HOPS, 0, 0
    before = int(ends[place - 1]) if place else 0
    return place // _BINS, place % _BINS, most - before


def _orders_of_bin(batch: pa.RecordBatch, start: tuple[int, int, int]) -> np.ndarray:
    hop, order = (record_batches.integers(batch, name) for name in ("hop", "order"))
    result: np.ndarray = order[(hop == start[0]) & (order >> _BIN_SHIFT == start[1])]
    return result


def _find_cut(orders: np.ndarray, start: tuple[int, int, int]) -> Cut:
    hop, _, wanted = start
    if hop == HOPS:
        return Cut(HOPS, 0)
    # The first row too many bounds the others; rows of its very order fall with it.
    return Cut(hop, int(np.sort(orders)[wanted]))


@beam.typehints.with_output_types(pa.RecordBatch)
class _CutOff(beam.DoFn):
    def process(self, batch: pa.RecordBatch, cut: Cut) -> Iterator[Any]:
        hop, order = (record_batches.integers(batch, name) for name in ("hop", "order"))
        keep = (hop < cut.hop) | ((hop == cut.hop) & (order < cut.order))
        yield beam.pvalue.TaggedOutput(COUNTS, _keyed("kept", hop[keep]))
        yield batch.filter(pa.array(keep))
