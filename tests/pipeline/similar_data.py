"""Similar nodes by plain loops and a float64 factorisation, and the steps run alone."""

import collections
import itertools
import math
import pickle

import apache_beam as beam
import numpy as np
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.transforms import graph, record_batches
from tests.features.derive.test_co_occurrence import slow_signs
from tests.pipeline import graph_data


def plain_information(edges, degree_cap, min_count):
    """Returns positive pointwise mutual information by node and node, as dicts.

    Args:
      edges: (basket, node) pairs.
      degree_cap: Nodes a basket.
      min_count: Baskets that two nodes share.
    """
    baskets = collections.defaultdict(set)
    for basket, node in edges:
        baskets[basket].add(node)
    counts = collections.Counter()
    for basket, found in baskets.items():
        few = graph_data.few(basket, found, degree_cap)
        counts.update(itertools.permutations(few, 2))
    counts = {pair: n for pair, n in counts.items() if n >= min_count}
    mass = collections.Counter()
    for (first, _), n in counts.items():
        mass[first] += n
    total = sum(mass.values())
    result = collections.defaultdict(dict)
    for (first, second), n in counts.items():
        information = math.log(n * total / (mass[first] * mass[second]))
        if information > 1e-9:
            result[first][second] = information
    return dict(result)


def plain_cosines(edges, *, degree_cap, min_count, dim, width, seed):
    """Returns nodes, ascending, and their cosines, float64 [N, N]."""
    rows = plain_information(edges, degree_cap, min_count)
    nodes = sorted(rows)
    signs = {n: np.array(slow_signs(n, width, seed)) for n in nodes}
    sketch = np.array([sum(w * signs[o] for o, w in rows[n].items()) for n in nodes])
    sketch = sketch / np.linalg.norm(sketch, axis=1, keepdims=True)
    left, scale, _ = np.linalg.svd(sketch)
    size = min(dim, int((scale**2 > 1e-6 * (scale**2).sum()).sum()))
    vectors = left[:, :size] * scale[:size]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return nodes, vectors @ vectors.T


def like_seeds(nodes, cosines, seeds, min_cosine, top_n):
    """Returns the nodes that are no seeds and among the `top_n` of some seed."""
    found, place = set(), {node: k for k, node in enumerate(nodes)}
    for seed in sorted(set(seeds) & set(place)):
        ranked = sorted(
            (-cosines[place[seed], place[node]], node)
            for node in nodes
            if node not in seeds and cosines[place[seed], place[node]] >= min_cosine
        )
        found |= {node for _, node in ranked[:top_n]}
    return found


def link_batches(edges, parts, order=None):
    """Returns edges (node, other) as batches of links."""
    edges = np.array(edges, np.int64).reshape(-1, 2)
    edges = edges if order is None else edges[order]
    pieces = np.array_split(edges, parts)
    return [graph.links(piece[:, 0], piece[:, 1], graph.EDGE) for piece in pieces]


def seed_batches(seeds, parts):
    pieces = np.array_split(np.array(sorted(seeds), np.int64), parts)
    return [graph.links(piece, 0 * piece, graph.SEED) for piece in pieces]


def run_steps(path, step, **inputs):
    """Runs a transform over a dict of lists of batches; returns its batches."""
    record_batches.register_coder()
    with beam.Pipeline(FnApiRunner()) as pipeline:
        made = {
            name: pipeline
            | f"Make {name}" >> beam.Create(batches, reshuffle=False)
            | f"Spread {name}" >> beam.Map(lambda batch: batch)
            for name, batches in inputs.items()
        }
        out = made | "Step" >> step
        _ = (
            out
            | "As list" >> beam.combiners.ToList()
            | "Keep" >> beam.Map(_keep, str(path))
        )
    with open(path, "rb") as file:
        return pickle.load(file)


def _keep(batches, path):
    with open(path, "wb") as file:
        pickle.dump(batches, file)
