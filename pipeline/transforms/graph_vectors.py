"""Vectors of nodes from the baskets they share: edges in, vectors out.

A *basket* is the set of items of one user (or of users of one item).  Pairs of a basket
are counted; those that come often enough go to either end, with the number of pairs of
the other, and there become a row of the sketch; see `features.derive.co_occurrence`.

With E edges, baskets of at most `degree_cap` nodes, P pairs that come often enough, N
nodes, and a sketch of W columns: time O(E degree_cap + P W + N W dim + W^3), traffic
O(E degree_cap + N W).  In memory are one bucket of pairs or of rows of the sketch, and
W^2 numbers; all pairs of a node are in one bucket.

Source: Levy and Goldberg, NIPS 2014 (information of pairs, factorised); that ECAT's GST
may learn vectors of nodes is said in its section 2.2, where it names graph networks.
Differs: no network and no gradient.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features.derive import co_occurrence, graph
from pipeline import progress
from pipeline.similarity import SimilarOptions
from pipeline.transforms import combine, record_batches
from pipeline.transforms.graph import EDGE, GroupNodes, links

SEEDS, EDGES = "seeds", "edges"
_TOTAL, _PAIRS = "total", "pairs"


class NodeVectors(beam.PTransform):
    """Dict of `edges` and `seeds` links -> batches of `node`, `is_seed`, `vector`.

    Input: edges as (basket, node, EDGE), seeds as (node, 0, SEED).  Output: vectors of
    `dim` int16, of length 1 in steps of `co_occurrence.VECTOR_SCALE`, each node once.
    A node that shares nothing unusual with others has none.

    Args:
      similar: Settings.
      degree_cap: Nodes that a basket hands on, those of the smallest hash.
      seed: Of the random signs.
      num_buckets: Buckets of baskets, and of nodes.
    """

    def __init__(
        self, similar: SimilarOptions, *, degree_cap: int, seed: int, num_buckets: int
    ) -> None:
        super().__init__()
        self.similar, self.degree_cap = similar, degree_cap
        self.seed, self.num_buckets = seed, num_buckets

    def expand(self, found: Any) -> beam.PCollection[pa.RecordBatch]:
        """Adds the steps."""
        dim, buckets = self.similar.dim, self.num_buckets
        weighed = (
            found[EDGES]
            | "Group edges by basket" >> GroupNodes(buckets)
            | "Pair nodes" >> beam.ParDo(_PairNodes(self.degree_cap))
            | "Group pairs by first node" >> GroupNodes(buckets)
            | "Count pairs" >> beam.ParDo(_CountPairs(self.similar.min_count))
            | "Group pairs by node" >> GroupNodes(buckets)
            | "Count pairs of nodes"
            >> beam.ParDo(_AddMass()).with_outputs(_TOTAL, main=_PAIRS)
        )
        total = beam.pvalue.AsSingleton(
            weighed[_TOTAL] | "Add up pairs" >> beam.CombineGlobally(sum)
        )
        sketches = (
            (weighed[_PAIRS], found[SEEDS] | "Seeds as pairs" >> beam.Map(_as_pairs))
            | "Pairs and seeds" >> beam.Flatten()
            | "Group pairs by other node" >> GroupNodes(buckets)
            | "Sketch rows"
            >> beam.Map(_sketch, total, co_occurrence.sketch_width(dim), self.seed)
        )
        directions = beam.pvalue.AsSingleton(
            sketches
            | "Square rows" >> beam.Map(_gram)
            | "Add up squares"
            >> beam.CombineGlobally(combine.MergePartials(_add, np.zeros((dim, dim))))
            | "Find directions" >> beam.Map(co_occurrence.leading_directions, dim)
        )
        return sketches | "Turn rows" >> beam.Map(_turn, directions)


@beam.typehints.with_output_types(pa.RecordBatch)
class _PairNodes(beam.DoFn):
    """Edges of some baskets -> pairs of nodes, the smaller first, with counts."""

    def __init__(self, degree_cap: int) -> None:
        self._cap = degree_cap

    def process(
        self, keyed: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        batch = record_batches.concat(keyed[1])
        basket, node = (record_batches.integers(batch, n) for n in ("node", "other"))
        basket, node, _ = graph.distinct_pairs(basket, node)
        kept = graph.smallest_hashes(basket, node, self._cap)
        basket, node = basket[kept], node[kept]
        progress.report("graph", len(basket))
        every = np.ones(len(basket), bool)
        for first, second in graph.products(basket, every, every):
            one, two = node[first], node[second]
            ordered = one < two
            yield links(*graph.distinct_pairs(one[ordered], two[ordered]))


@beam.typehints.with_output_types(pa.RecordBatch)
class _CountPairs(beam.DoFn):
    """Pairs of some nodes -> each that comes often enough, seen from both ends."""

    def __init__(self, min_count: int) -> None:
        self._least = min_count

    def process(
        self, keyed: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        batch = record_batches.concat(keyed[1])
        node, other, count = (
            record_batches.integers(batch, name) for name in ("node", "other", "value")
        )
        order = np.lexsort([other, node])
        node, other, count = node[order], other[order], count[order].astype(np.int64)
        starts = np.flatnonzero(_is_new(node) | _is_new(other))
        count = np.add.reduceat(count, starts)
        often = count >= self._least
        one, two, count = node[starts[often]], other[starts[often]], count[often]
        yield links(one, two, count)
        yield links(two, one, count)


@beam.typehints.with_output_types(pa.RecordBatch)
class _AddMass(beam.DoFn):
    """Counted pairs of some nodes -> to their other ends; `total` of the counts."""

    def process(self, keyed: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        batch = record_batches.concat(keyed[1])
        node, other, count = (
            record_batches.integers(batch, name) for name in ("node", "other", "value")
        )
        order = np.argsort(node, kind="stable")
        node, other, count = node[order], other[order], count[order].astype(np.int64)
        yield beam.pvalue.TaggedOutput(_TOTAL, int(count.sum()))
        yield _pairs(other, node, count, _sums_of(node, count))


@beam.typehints.with_output_types(pa.RecordBatch)
def _sketch(
    keyed: tuple[int, Iterable[pa.RecordBatch]], total: int, width: int, seed: int
) -> pa.RecordBatch:
    """Returns rows of the sketch of some nodes that have any."""
    batch = record_batches.concat(keyed[1])
    node, other, count, other_mass = (
        record_batches.integers(batch, name)
        for name in ("node", "other", "count", "other_mass")
    )
    seeds = graph.distinct(node[count == 0])
    order = np.lexsort([other, node])
    order = order[count[order] > 0]
    node, other, count = node[order], other[order], count[order]
    weight = co_occurrence.positive_information(
        count, _sums_of(node, count), other_mass[order], total
    )
    has_weight = weight > 0
    node, other, weight = node[has_weight], other[has_weight], weight[has_weight]
    found, row = np.unique(node, return_inverse=True)
    rows = co_occurrence.sketch(row, other, weight, width, seed)
    return _with_vectors(
        found, graph.contains(found, seeds), co_occurrence.unit_rows(rows)
    )


@beam.typehints.with_output_types(pa.RecordBatch)
def _turn(batch: pa.RecordBatch, directions: np.ndarray) -> pa.RecordBatch:
    result = co_occurrence.turn(vectors(batch), directions)
    node, is_seed = record_batches.integers(batch, "node"), seed_flags(batch)
    some = result.any(axis=1)
    return _with_vectors(node[some], is_seed[some], result[some])


def vectors(batch: pa.RecordBatch) -> np.ndarray:
    """Returns the vectors of a batch, int16 [B, width]."""
    column = batch["vector"]
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, column.type.list_size)


def seed_flags(batch: pa.RecordBatch) -> np.ndarray:
    """Returns which nodes of a batch of vectors are seeds, bool [B]."""
    return batch["is_seed"].to_numpy(zero_copy_only=False)


@beam.typehints.with_output_types(pa.RecordBatch)
def swapped(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns edges seen from their other end."""
    node, other = (record_batches.integers(batch, name) for name in ("node", "other"))
    return links(other, node, EDGE)


@beam.typehints.with_output_types(pa.RecordBatch)
def _as_pairs(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns seeds in the schema of pairs: a count of 0 tells them apart."""
    node = record_batches.integers(batch, "node")
    nothing = np.zeros(len(node), np.int64)
    return _pairs(node, nothing, nothing, nothing)


def _pairs(
    node: np.ndarray, other: np.ndarray, count: np.ndarray, other_mass: np.ndarray
) -> pa.RecordBatch:
    columns = {"node": node, "other": other, "count": count, "other_mass": other_mass}
    return pa.RecordBatch.from_arrays(
        [pa.array(values, pa.int64()) for values in columns.values()], list(columns)
    )


def _with_vectors(
    node: np.ndarray, is_seed: np.ndarray, rows: np.ndarray
) -> pa.RecordBatch:
    values = pa.array(np.ascontiguousarray(rows).reshape(-1), pa.int16())
    columns = [
        pa.array(node, pa.int64()),
        pa.array(is_seed),
        pa.FixedSizeListArray.from_arrays(values, rows.shape[1]),
    ]
    return pa.RecordBatch.from_arrays(columns, ["node", "is_seed", "vector"])


def _gram(batch: pa.RecordBatch) -> np.ndarray:
    return co_occurrence.gram(vectors(batch))


def _add(partials: list[np.ndarray]) -> np.ndarray:
    return np.sum(partials, axis=0)


def _sums_of(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns for each row the sum over its group, int64 [N]; groups stand together."""
    if not len(group):
        return values
    starts = np.flatnonzero(_is_new(group))
    sizes = np.diff(np.append(starts, len(group)))
    return np.repeat(np.add.reduceat(values, starts), sizes)


def _is_new(values: np.ndarray) -> np.ndarray:
    return np.r_[True, values[1:] != values[:-1]][: len(values)]
