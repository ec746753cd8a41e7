"""Nodes like the seeds: those whose vectors point the same way.

Every node is compared with every seed, in blocks: with N nodes and S seeds time is
O(N S dim) in matrix products.  A worker holds the vectors of at most `max_seeds` seeds
(2 dim bytes each), of one bucket of nodes, and PAIRS_AT_ONCE cosines.  What leaves a
bucket is at most `top_n` nodes a seed.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features import hashing
from features.derive import co_occurrence, graph
from pipeline import progress
from pipeline.selection import SIMILAR_HOP, SelectOptions
from pipeline.similarity import SimilarOptions
from pipeline.transforms import combine, graph_vectors, record_batches
from pipeline.transforms.graph import ITEMS, LINKS, USERS, GroupNodes, links, nodes


class SimilarNodes(beam.PTransform):
    """Dict of links as of `graph.FindNodes` -> dict of further nodes by side.

    Their hop is SIMILAR_HOP.  They come from the same edges and seeds as the others.

    Args:
      similar: Settings.
      degree_cap: Edges that a node hands on.
      seed: Of the vectors.
      num_buckets: Buckets of nodes.
    """

    def __init__(
        self, similar: SimilarOptions, *, degree_cap: int, seed: int, num_buckets: int
    ) -> None:
        super().__init__()
        self.similar, self.degree_cap = similar, degree_cap
        self.seed, self.num_buckets = seed, num_buckets

    def expand(self, found: Any) -> Any:
        """Adds the steps."""
        result = {}
        for side in self.similar.sides:
            edges = found[LINKS]  # (user, item): a user is a basket of items
            if side == USERS:
                edges = edges | "Edges by item" >> beam.Map(graph_vectors.swapped)
            parts = {graph_vectors.EDGES: edges, graph_vectors.SEEDS: found[side]}
            result[side] = (
                parts
                | f"Find vectors of {side}"
                >> graph_vectors.NodeVectors(
                    self.similar,
                    degree_cap=self.degree_cap,
                    seed=self.seed,
                    num_buckets=self.num_buckets,
                )
                | f"Find {side} like seeds"
                >> NearestToSeeds(self.similar, self.num_buckets)
            )
        return result


def add_similar(
    nodes_by_side: dict[str, Any], looked: Any, options: SelectOptions
) -> dict[str, Any]:
    """Returns the nodes by side with those like the seeds, if they are asked for.

    Args:
      nodes_by_side: Nodes of `users` and `items`.
      looked: Links by tag, of `graph_look.Look`.
      options: Of the run.
    """
    if options.similar is None:
        return nodes_by_side
    parts = {tag: looked[tag] for tag in (LINKS, USERS, ITEMS)}
    similar = parts | "Find similar nodes" >> SimilarNodes(
        options.similar,
        degree_cap=options.degree_cap,
        seed=options.seed,
        num_buckets=options.num_buckets,
    )
    return nodes_by_side | {
        side: (nodes_by_side[side], more) | f"Similar {side} too" >> beam.Flatten()
        for side, more in similar.items()
    }


class NearestToSeeds(beam.PTransform):
    """Batches of `graph_vectors.NodeVectors` -> nodes near enough to a seed."""

    def __init__(self, similar: SimilarOptions, num_buckets: int) -> None:
        super().__init__()
        self.similar, self.num_buckets = similar, num_buckets

    def expand(
        self, vectors: beam.PCollection[pa.RecordBatch]
    ) -> beam.PCollection[pa.RecordBatch]:
        """Adds the steps."""
        most = self.similar.max_seeds
        seeds = beam.pvalue.AsSingleton(
            vectors
            | "Take seeds" >> beam.Map(_seeds)
            | "Gather seeds"
            >> beam.CombineGlobally(combine.MergePartials(_SmallestHashes(most)))
        )
        return (
            vectors
            | "Compare with seeds"
            >> beam.ParDo(_Compare(self.similar.min_cosine, self.similar.top_n), seeds)
            | "Group near nodes by seed" >> GroupNodes(self.num_buckets)
            | "Keep the most similar" >> beam.Map(_keep_best, self.similar.top_n)
        )


@beam.typehints.with_output_types(pa.RecordBatch)
class _Compare(beam.DoFn):
    """Vectors of some nodes -> links (seed, node, cosine in steps)."""

    def __init__(self, min_cosine: float, top_n: int) -> None:
        self._least = math.ceil(min_cosine * co_occurrence.VECTOR_SCALE**2)
        self._most = top_n

    def process(
        self, batch: pa.RecordBatch, seeds: pa.RecordBatch | None
    ) -> Iterator[pa.RecordBatch]:
        other = ~graph_vectors.seed_flags(batch)
        node = record_batches.integers(batch, "node")[other]
        vectors = graph_vectors.vectors(batch)[other].astype(np.float32)
        progress.report("graph", len(node))
        if seeds is None or not len(node):
            return
        seed, seed_vectors = (
            record_batches.integers(seeds, "node"),
            graph_vectors.vectors(seeds),
        )
        step = max(graph.PAIRS_AT_ONCE // len(node), 1)
        for start in range(0, len(seed), step):
            some = slice(start, start + step)
            # Whole numbers below 2**24: exact in float32, in any order of summation.
            cosine = seed_vectors[some].astype(np.float32) @ vectors.T
            row, column = np.nonzero(cosine >= self._least)
            value = cosine[row, column].astype(np.int32)
            best = co_occurrence.best_of_group(row, node[column], value, self._most)
            if len(best):
                yield links(seed[some][row[best]], node[column[best]], value[best])


@beam.typehints.with_output_types(pa.RecordBatch)
def _seeds(batch: pa.RecordBatch) -> pa.RecordBatch:
    return record_batches.take(batch, np.flatnonzero(graph_vectors.seed_flags(batch)))


class _SmallestHashes:
    """Merges batches of vectors into one of at most so many, those of least hash."""

    def __init__(self, most: int) -> None:
        self._most = most

    def __call__(self, batches: list[pa.RecordBatch]) -> pa.RecordBatch:
        batch = record_batches.concat(batches)
        node = record_batches.integers(batch, "node")
        order = np.lexsort([node, hashing.mix64(node.astype(np.uint64))])
        return record_batches.take(batch, order[: self._most])


@beam.typehints.with_output_types(pa.RecordBatch)
def _keep_best(
    keyed: tuple[int, Iterable[pa.RecordBatch]], top_n: int
) -> pa.RecordBatch:
    batch = record_batches.concat(keyed[1])
    seed, node, value = (
        record_batches.integers(batch, name) for name in ("node", "other", "value")
    )
    best = co_occurrence.best_of_group(seed, node, value, top_n)
    return nodes(graph.distinct(node[best]), SIMILAR_HOP)
