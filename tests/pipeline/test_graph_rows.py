"""The limit on chosen rows, where many rows share a bin of the order."""

import numpy as np
import pytest

from pipeline.transforms import graph_rows


def rows_of(hop, order, first=0):
    zero, place = np.zeros(len(hop), np.int64), first + np.arange(len(hop))
    batch = graph_rows.candidates(zero, zero, place, order, zero)
    return graph_rows._with_hop(batch, hop, np.ones(len(hop), bool))


def kept(batches, most):
    counts = sum(map(graph_rows._histogram, batches))
    start = graph_rows._find_bin(counts, {("target",): most}, 1.0)
    orders = [graph_rows._orders_of_bin(batch, start) for batch in batches]
    cut = graph_rows._find_cut(np.concatenate(orders), start)
    found = []
    for batch in batches:
        *_, rows = graph_rows._CutOff().process(batch, cut)
        found += rows["place"].to_pylist()
    return sorted(found)


@pytest.mark.parametrize("spread", [2**62, 2**51])
def test_exactly_the_nearest_rows_of_smallest_order_are_kept(spread):
    rng = np.random.default_rng(0)
    hop = rng.integers(0, 3, 200)
    order = rng.permutation(200) * (spread // 200)  # the small spread is all one bin
    batches = [rows_of(hop[a:b], order[a:b], a) for a, b in ((0, 90), (90, 200))]
    ranked = np.lexsort([order, hop])
    for most in (1, 17, 60, 150, 199):
        assert kept(batches, most) == sorted(ranked[:most].tolist())
    assert kept(batches, 200) == kept(batches, 10_000) == list(range(200))


def test_rows_of_one_order_fall_together_so_that_the_limit_holds():
    order = np.array([5, 7, 7, 7, 9])
    batch = rows_of(np.zeros(5, np.int64), order)
    assert kept([batch], 3) == [0]
    assert kept([batch], 4) == [0, 1, 2, 3]
