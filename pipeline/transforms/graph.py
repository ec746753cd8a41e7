"""Graph-based choice of rows, step by step: nodes near the target's users and items.

The graph is cut into buckets of nodes.  A bucket is sorted and walked at once; walks
go from bucket to bucket by a group-by, so nothing but one bucket is ever in memory.

*Links* are batches of `node`, `other`, `value`: an edge seen from `node` with flags in
`value`, a seed (`SEED`), or a pair of items with a count.
*Nodes* are batches of `node` and `hop`: how many hops from a seed (0) a node is.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features import hashing
from features.derive import graph
from pipeline import progress
from pipeline.transforms import record_batches

USERS, ITEMS = "users", "items"
LINKS = "links"
SEED, EDGE = 1, 2  # what a link is
_USER_SEED, _USER_KEPT, _ITEM_SEED, _ITEM_KEPT, _ITEM_NEAR = 4, 8, 16, 32, 64


def links(node: np.ndarray, other: np.ndarray, value: Any) -> pa.RecordBatch:
    """Returns a batch of links; `value` is one for all, or [N]."""
    values = np.broadcast_to(np.asarray(value, np.int32), node.shape)
    return pa.RecordBatch.from_arrays(
        [pa.array(node, pa.int64()), pa.array(other, pa.int64()), pa.array(values)],
        ["node", "other", "value"],
    )


def nodes(node: np.ndarray, hop: int) -> pa.RecordBatch:
    """Returns a batch of nodes of one hop."""
    return pa.RecordBatch.from_arrays(
        [pa.array(node, pa.int64()), pa.array(np.full(len(node), hop, np.int8))],
        ["node", "hop"],
    )


class GroupNodes(beam.PTransform):
    """Batches -> (bucket, batches) with all rows of a node in one bucket."""

    def __init__(self, num_buckets: int, column: str = "node") -> None:
        super().__init__()
        self.num_buckets, self.column = num_buckets, column

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection:
        """Adds the steps."""
        return (
            rows
            | "Key by bucket" >> beam.ParDo(_KeyByBucket(self.num_buckets, self.column))
            | "Group by bucket" >> beam.GroupByKey()
        )


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch])
class _KeyByBucket(beam.DoFn):
    def __init__(self, num_buckets: int, column: str) -> None:
        self._num_buckets, self._column = num_buckets, column

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        node = record_batches.integers(batch, self._column).astype(np.uint64)
        # uint16: NumPy sorts it by radix, in linear time.
        bucket = (hashing.mix64(node) % np.uint64(self._num_buckets)).astype(np.uint16)
        yield from record_batches.split_by(batch, bucket)


class FindNodes(beam.PTransform):
    """Edges and seeds -> nodes of users and of items.

    Input: dict of links: `links` (user, item, EDGE), `users` (user, 0, SEED) and
    `items` (item, 0, SEED).  Output: dict of `users` and `items` nodes; a node may
    come with several hops.

    Args:
      hops: 0: seeds only; 1: also who is linked to a seed; 2: also items that users
        clicked together with a seed item.
      degree_cap: Edges that a node hands on, those of the smallest hash.
      min_co_clicks: Users who link an item to one seed item, for hop two.
      num_buckets: Buckets of nodes.
    """

    def __init__(
        self, *, hops: int, degree_cap: int, min_co_clicks: int, num_buckets: int
    ) -> None:
        super().__init__()
        self.hops, self.degree_cap = hops, degree_cap
        self.min_co_clicks, self.num_buckets = min_co_clicks, num_buckets

    def expand(self, found: Any) -> Any:
        """Adds the steps."""
        cap, buckets = self.degree_cap, self.num_buckets
        by_user = (
            (found[LINKS], found[USERS])
            | "Edges and seed users" >> beam.Flatten()
            | "Group links by user" >> GroupNodes(buckets)
            | "Mark users"
            >> beam.ParDo(_MarkUsers(cap, self.hops)).with_outputs(USERS, main=LINKS)
        )
        by_item = (
            (by_user[LINKS], found[ITEMS])
            | "Edges and seed items" >> beam.Flatten()
            | "Group links by item" >> GroupNodes(buckets)
            | "Mark items"
            >> beam.ParDo(_MarkItems(cap)).with_outputs(ITEMS, main=LINKS)
        )
        users, items = [by_user[USERS]], [by_item[ITEMS]]
        if self.hops:
            walked = (
                by_item[LINKS]
                | "Group marked edges by user" >> GroupNodes(buckets)
                | "Walk to users"
                >> beam.ParDo(_WalkToUsers(self.hops)).with_outputs(USERS, main=LINKS)
            )
            users.append(walked[USERS])
            if self.hops > 1:
                items.append(
                    walked[LINKS]
                    | "Group pairs by item" >> GroupNodes(buckets)
                    | "Count co-clicks" >> beam.ParDo(_CountPairs(self.min_co_clicks))
                )
        return {
            USERS: users | "All user nodes" >> beam.Flatten(),
            ITEMS: items | "All item nodes" >> beam.Flatten(),
        }


@beam.typehints.with_output_types(pa.RecordBatch)
class _MarkUsers(beam.DoFn):
    """Links of some users -> distinct edges seen from the items; `users` nodes."""

    def __init__(self, degree_cap: int, hops: int) -> None:
        self._cap, self._hops = degree_cap, hops

    def process(self, keyed: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        node, other, value = _columns(keyed[1])
        seeds = graph.distinct(node[value == SEED])
        yield beam.pvalue.TaggedOutput(USERS, nodes(seeds, 0))
        is_edge = value == EDGE
        if not self._hops or not is_edge.any():
            return
        user, item, _ = graph.distinct_pairs(node[is_edge], other[is_edge])
        flags = EDGE + _USER_SEED * graph.contains(user, seeds)
        flags += _USER_KEPT * graph.smallest_hashes(user, item, self._cap)
        progress.report("graph", len(user))
        yield links(item, user, flags)


@beam.typehints.with_output_types(pa.RecordBatch)
class _MarkItems(beam.DoFn):
    """Links of some items -> their edges seen from the users; `items` nodes."""

    def __init__(self, degree_cap: int) -> None:
        self._cap = degree_cap

    def process(self, keyed: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        node, other, value = _columns(keyed[1])
        seeds = graph.distinct(node[value == SEED])
        yield beam.pvalue.TaggedOutput(ITEMS, nodes(seeds, 0))
        is_edge = value >= EDGE
        if not is_edge.any():
            return
        item, user, flags = node[is_edge], other[is_edge], value[is_edge]
        linked = graph.distinct(item[_has(flags, _USER_SEED | _USER_KEPT)])
        yield beam.pvalue.TaggedOutput(ITEMS, nodes(linked, 1))
        is_seed = graph.contains(item, seeds)
        flags = flags | _ITEM_SEED * is_seed
        flags |= _ITEM_NEAR * (is_seed | graph.contains(item, linked))
        flags |= _ITEM_KEPT * graph.smallest_hashes(item, user, self._cap)
        yield links(user, item, flags)


@beam.typehints.with_output_types(pa.RecordBatch)
class _WalkToUsers(beam.DoFn):
    """Marked edges of some users -> pairs of far and seed items; `users` nodes."""

    def __init__(self, hops: int) -> None:
        self._hops = hops

    def process(self, keyed: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        user, item, flags = _columns(keyed[1])
        linked = graph.distinct(user[_has(flags, _ITEM_SEED | _ITEM_KEPT)])
        yield beam.pvalue.TaggedOutput(USERS, nodes(linked, 1))
        if self._hops < 2:
            return
        kept = _has(flags, _USER_KEPT)
        user, item, flags = user[kept], item[kept], flags[kept]
        order = np.lexsort([item, user])
        user, item, flags = user[order], item[order], flags[order]
        # An item that is near already gains nothing by a walk of two hops.
        is_far = ~_has(flags, _ITEM_NEAR)
        for seed, far in graph.products(user, _has(flags, _ITEM_SEED), is_far):
            item_far, item_seed, count = graph.distinct_pairs(item[far], item[seed])
            yield links(item_far, item_seed, count)


@beam.typehints.with_output_types(pa.RecordBatch)
class _CountPairs(beam.DoFn):
    """Pairs of some far items with seed items -> those that come often enough."""

    def __init__(self, min_co_clicks: int) -> None:
        self._least = min_co_clicks

    def process(
        self, keyed: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        far, seed, count = _columns(keyed[1])
        order = np.lexsort([seed, far])
        far, seed, count = far[order], seed[order], count[order].astype(np.int64)
        new = np.ones(len(far), bool)
        new[1:] = (far[1:] != far[:-1]) | (seed[1:] != seed[:-1])
        starts = np.flatnonzero(new)
        often = np.add.reduceat(count, starts) >= self._least
        yield nodes(graph.distinct(far[starts[often]]), 2)


def _columns(
    batches: Iterable[pa.RecordBatch],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    batch = record_batches.concat(batches)
    node, other, value = (
        record_batches.integers(batch, name) for name in ("node", "other", "value")
    )
    return node, other, value


def _has(flags: np.ndarray, wanted: int) -> np.ndarray:
    result: np.ndarray = (flags & wanted) == wanted
    return result
