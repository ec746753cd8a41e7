"""Nodes of clusters that hold many seeds: hop two without a walk."""

from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features.derive import graph
from pipeline.transforms import record_batches
from pipeline.transforms.graph import SEED, GroupNodes, links, nodes

_MEMBER = 3  # links of a node to its cluster; SEED links say which nodes are seeds


def memberships(node: np.ndarray, cluster: np.ndarray) -> pa.RecordBatch:
    """Returns links that say which cluster each node is in, each once."""
    node, cluster, _ = graph.distinct_pairs(node, cluster)
    return links(node, cluster, _MEMBER)


class NodesOfClusters(beam.PTransform):
    """Memberships and seeds as links -> nodes (hop two) of clusters rich in seeds.

    A node may be in several clusters: one is enough.

    Args:
      min_share: A cluster counts when at least this share of its nodes are seeds.
      num_buckets: Buckets of nodes, and of clusters.
    """

    def __init__(self, min_share: float, num_buckets: int) -> None:
        super().__init__()
        self.min_share, self.num_buckets = min_share, num_buckets

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection:
        """Adds the steps."""
        return (
            rows
            | "Group members by node" >> GroupNodes(self.num_buckets)
            | "Tell seeds among members" >> beam.Map(_by_cluster)
            | "Group members by cluster" >> GroupNodes(self.num_buckets)
            | "Choose clusters" >> beam.ParDo(_ChooseClusters(self.min_share))
        )


@beam.typehints.with_output_types(pa.RecordBatch)
def _by_cluster(keyed: tuple[int, Iterable[pa.RecordBatch]]) -> pa.RecordBatch:
    batch = record_batches.concat(keyed[1])
    node, cluster, kind = (
        record_batches.integers(batch, name) for name in ("node", "other", "value")
    )
    seeds = graph.distinct(node[kind == SEED])
    member = kind == _MEMBER
    node, cluster, _ = graph.distinct_pairs(node[member], cluster[member])
    return links(cluster, node, graph.contains(node, seeds))


@beam.typehints.with_output_types(pa.RecordBatch)
class _ChooseClusters(beam.DoFn):
    def __init__(self, min_share: float) -> None:
        self._min_share = min_share

    def process(
        self, keyed: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        batch = record_batches.concat(keyed[1])
        cluster, node, is_seed = (
            record_batches.integers(batch, name) for name in ("node", "other", "value")
        )
        if not len(cluster):
            return
        _, codes = np.unique(cluster, return_inverse=True)
        share = np.bincount(codes, is_seed) / np.bincount(codes)
        chosen = (share > 0) & (share >= self._min_share)
        yield nodes(graph.distinct(node[chosen[codes]]), 2)
