"""Kernels of graph walks against plain loops."""

import numpy as np
import pytest

from features.derive import graph


def random_pairs(seed, rows=300, nodes=12):
    rng = np.random.default_rng(seed)
    return rng.integers(0, nodes, rows), rng.integers(0, nodes * 3, rows)


def test_contains_finds_members_of_sorted_values():
    among = np.array([2, 5, 9])
    found = graph.contains(np.array([1, 2, 5, 6, 9, 10]), among)
    assert found.tolist() == [False, True, True, False, True, False]
    assert graph.contains(np.array([1, 2]), np.array([], np.int64)).tolist() == [0, 0]


def test_distinct_pairs_are_sorted_and_counted():
    first, second, counts = graph.distinct_pairs(
        np.array([3, 1, 3, 1, 3]), np.array([7, 5, 7, 4, 2])
    )
    assert list(zip(first, second, counts, strict=True)) == [
        (1, 4, 1),
        (1, 5, 1),
        (3, 2, 1),
        (3, 7, 2),
    ]
    empty = np.zeros(0, np.int64)
    assert [len(x) for x in graph.distinct_pairs(empty, empty)] == [0, 0, 0]


@pytest.mark.parametrize("most", [1, 2, 5, 100])
def test_smallest_hashes_keeps_so_many_of_each_node_whatever_the_order(most):
    first, second, _ = graph.distinct_pairs(*random_pairs(0))
    kept = graph.smallest_hashes(first, second, most)
    for node in set(first.tolist()):
        assert kept[first == node].sum() == min(most, (first == node).sum())
    mixed = np.random.default_rng(1).permutation(len(first))
    again = graph.smallest_hashes(first[mixed], second[mixed], most)
    np.testing.assert_array_equal(again, kept[mixed])


def test_a_larger_cap_only_adds_pairs():
    first, second, _ = graph.distinct_pairs(*random_pairs(2))
    small = graph.smallest_hashes(first, second, 3)
    large = graph.smallest_hashes(first, second, 7)
    assert (large | ~small).all()
    assert large.sum() > small.sum()


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_products_are_all_pairs_inside_groups_some_at_a_time(at_once, monkeypatch):
    monkeypatch.setattr(graph, "PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(3)
    group = np.sort(rng.integers(0, 6, 40))
    is_left, is_right = rng.random(40) < 0.4, rng.random(40) < 0.5
    expected = [
        (a, b)
        for a in range(40)
        for b in range(40)
        if is_left[a] and is_right[b] and group[a] == group[b]
    ]
    parts = list(graph.products(group, is_left, is_right))
    found = [
        pair for a, b in parts for pair in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert found == expected
    longest = max(sum(is_right & (group == g)) for g in range(6))
    assert max(len(a) for a, _ in parts) <= max(at_once, longest)
