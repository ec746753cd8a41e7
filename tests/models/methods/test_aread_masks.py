"""Masks alone: live edges, candidates, pruning, overlap.  NumPy only."""

import itertools

import numpy as np
import pytest

from models.aread import masks as masks_lib

SIZES = (3, 6, 12)
TOTAL = 18 + 72


def ones(sizes=SIZES):
    return tuple(np.ones(pair, bool) for pair in itertools.pairwise(sizes))


def random_mask(rng, rate=0.5, sizes=SIZES):
    return tuple(rng.random(pair) < rate for pair in itertools.pairwise(sizes))


def random_scores(rng, sizes=SIZES):
    return tuple(rng.random(pair) for pair in itertools.pairwise(sizes))


def edges_on_paths(mask):
    """Slow twin: marks the edges of every path, path by path."""
    kept = [np.zeros_like(m) for m in mask]
    for path in itertools.product(
        *map(range, (len(mask[0]), *(m.shape[1] for m in mask)))
    ):
        if all(m[path[i], path[i + 1]] for i, m in enumerate(mask)):
            for i in range(len(mask)):
                kept[i][path[i], path[i + 1]] = True
    return kept


def check_no_dead_expert(mask):
    assert mask[-1].any()
    for below, above in itertools.pairwise(mask):
        np.testing.assert_array_equal(below.any(0), above.any(1))


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
def test_live_keeps_exactly_the_edges_on_complete_paths(rate):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = random_mask(rng, rate, (2, 3, 4, 3))
        found = masks_lib.live(mask)
        assert equal(found, edges_on_paths(mask))
        assert equal(masks_lib.live(found), found)


def test_live_of_many_masks_is_that_of_each():
    rng = np.random.default_rng(1)
    many = [random_mask(rng, 0.3) for _ in range(5)]
    found = masks_lib.live([np.stack(layer) for layer in zip(*many, strict=True)])
    for i, mask in enumerate(many):
        assert equal([layer[i] for layer in found], masks_lib.live(mask))


def test_has_path_needs_every_layer():
    mask = (np.array([[1, 0]], bool), np.array([[0, 0], [1, 1]], bool))
    assert not masks_lib.has_path(mask)
    mask[0][0, 1] = True
    assert masks_lib.has_path(mask)


def test_density_counts_edges_of_all_layers():
    mask = [np.zeros((3, 6)), np.ones((6, 12))]
    assert masks_lib.density(mask) == pytest.approx(72 / 90)
    assert masks_lib.floor_edges(mask, 0.4) == 36
    assert masks_lib.floor_edges(mask, 0.401) == 37


def test_scores_by_fan_in_make_the_mean_gate_of_every_layer_one():
    gates = [np.full((6, 3), 1 / 3), np.full((12, 6), 1 / 6)]
    by_fan_in = masks_lib.scores_of(gates, "fan_in")
    assert [s.shape for s in by_fan_in] == [(3, 6), (6, 12)]
    assert all(np.allclose(s, 1.0) for s in by_fan_in)
    plain = masks_lib.scores_of(gates, "gate")
    assert [float(s[0, 0]) for s in plain] == pytest.approx([1 / 3, 1 / 6])


def test_gate_rank_prunes_the_wide_layer_first_and_fan_in_both():
    """Of 5 prunings by the plain gate nearly all hit layer 3 (methods notes: 0.988 of
    layer 2 is kept against 0.406 of layer 3; by fan-in 0.539 and 0.518)."""
    kept = {}
    for rank in ("gate", "fan_in"):
        shares = []
        for seed in range(10):
            rng = np.random.default_rng(seed)
            gates = [rng.dirichlet(np.full(n, 8.0), m) for n, m in ((3, 6), (6, 12))]
            scores = masks_lib.scores_of(gates, rank)
            mask = masks_lib.top(scores, 0.7, 36)
            for _ in range(5):
                mask = masks_lib.prune(mask, scores, 0.05, 36)
            shares.append([m.mean() for m in mask])
        kept[rank] = np.mean(shares, axis=0)
    assert kept["gate"][0] > 0.9
    assert kept["gate"][1] < 0.5
    assert abs(kept["fan_in"][0] - kept["fan_in"][1]) < 0.15


def test_top_keeps_the_largest_scores():
    scores = (np.array([[5.0, 1.0], [2.0, 6.0]]), np.array([[4.0, 0.5], [0.2, 3.0]]))
    mask = masks_lib.top(scores, 0.5, 1)  # 6, 5, 4, 3: two straight paths
    assert equal(mask, (np.eye(2, dtype=bool), np.eye(2, dtype=bool)))


def test_top_grows_until_enough_edges_live():
    # The four largest lie in the first layer: no path, so none lives.
    scores = (np.full((2, 2), 9.0), np.array([[4.0, 3.0], [2.0, 1.0]]))
    mask = masks_lib.top(scores, 0.5, 1)
    assert equal(mask, (np.array([[1, 0], [1, 0]]), np.array([[1, 0], [0, 0]])))
    assert masks_lib.count(masks_lib.top(scores, 0.5, 8)) == 8


def test_top_refuses_a_floor_above_all_edges():
    with pytest.raises(ValueError, match="at most 8 edges; got 9"):
        masks_lib.top((np.ones((2, 2)), np.ones((2, 2))), 0.5, 9)


def test_candidates_are_valid_differ_and_repeat_with_the_seed():
    scores = random_scores(np.random.default_rng(0))
    start = masks_lib.top(scores, 0.7, 36)
    draws = [
        [
            masks_lib.candidate(start, 0.2, 36, rng)
            for rng in [np.random.default_rng(5)]
            for _ in range(20)
        ]
        for _ in range(2)
    ]
    assert all(equal(a, b) for a, b in zip(*draws, strict=True))
    assert len({tuple(m.tobytes() for m in mask) for mask in draws[0]}) == 20
    for mask in draws[0]:
        assert masks_lib.density(mask) >= 0.4
        check_no_dead_expert(mask)


def test_candidate_without_flips_is_the_start():
    start = masks_lib.top(random_scores(np.random.default_rng(0)), 0.7, 36)
    rng = np.random.default_rng(0)
    assert equal(masks_lib.candidate(start, 0.0, 36, rng), start)


def test_candidate_that_cannot_be_drawn_is_the_start():
    # Every flip of a full mask loses edges, and the floor is all of them.
    rng = np.random.default_rng(0)
    assert equal(masks_lib.candidate(ones(), 1.0, TOTAL, rng), ones())


@pytest.mark.parametrize("seed", range(5))
def test_any_number_of_prunings_is_monotone_and_stays_above_the_floor(seed):
    rng = np.random.default_rng(seed)
    mask = masks_lib.top(random_scores(rng), 0.7, 36)
    for _ in range(40):
        before = mask
        mask = masks_lib.prune(mask, random_scores(rng), 0.05, 36)
        assert all((a | b == b).all() for a, b in zip(mask, before, strict=True))
        assert masks_lib.density(mask) >= 0.4
        check_no_dead_expert(mask)
    assert masks_lib.density(mask) < 0.45


def test_pruning_to_almost_nothing_leaves_one_path():
    rng = np.random.default_rng(0)
    mask = ones()
    for _ in range(200):
        mask = masks_lib.prune(mask, random_scores(rng), 0.2, 1)
        check_no_dead_expert(mask)
    assert masks_lib.count(mask) == 2


def test_published_settings_end_at_054_and_need_eleven_prunings_for_04():
    rng = np.random.default_rng(0)
    scores = random_scores(rng)
    mask, densities = masks_lib.top(scores, 0.7, 36), []
    for _ in range(12):
        mask = masks_lib.prune(mask, scores, 0.05, 36)
        densities.append(float(masks_lib.density(mask)))
    assert densities[4] == pytest.approx(0.7 * 0.95**5, abs=0.03)
    assert densities[4] > 0.5
    assert densities[11] == pytest.approx(0.4, abs=0.03)


def test_pruning_takes_the_lowest_kept_scores():
    mask = (np.ones((2, 2), bool), np.ones((2, 2), bool))
    scores = (np.array([[1.0, 9.0], [8.0, 7.0]]), np.array([[2.0, 6.0], [5.0, 4.0]]))
    found = masks_lib.prune(mask, scores, 0.25, 1)
    assert equal(found, (np.array([[0, 1], [1, 1]]), np.array([[0, 1], [1, 1]])))


def test_pruning_skips_an_edge_whose_loss_would_break_the_floor():
    # The lowest edge is the only way to four others: it stays, the next goes.
    mask = (np.array([[1, 1]], bool), np.array([[1, 1, 1, 1], [1, 0, 0, 0]], bool))
    scores = (np.array([[0.1, 0.9]]), np.array([[0.8, 0.7, 0.6, 0.5], [0.95, 0, 0, 0]]))
    found = masks_lib.prune(mask, scores, 0.01, 6)
    assert equal(found, (mask[0], np.array([[1, 1, 1, 0], [1, 0, 0, 0]])))


def test_active_outputs_have_a_kept_edge():
    mask = (np.ones((1, 2), bool), np.array([[0, 1, 0], [0, 1, 1]], bool))
    assert masks_lib.active_outputs(mask).tolist() == [False, True, True]


def test_overlap_by_hand():
    a, b = np.array([[1, 1, 0], [1, 0, 0]]), np.array([[0, 1, 1], [1, 0, 0]])
    assert masks_lib.overlap(a, b) == pytest.approx(2 / 4)
    assert masks_lib.overlap(a, a) == 1.0
    assert masks_lib.overlap(a, 1 - a) == 0.0


def test_overlap_of_independent_masks_of_density_04_is_a_quarter():
    rng = np.random.default_rng(0)
    table = masks_lib.overlap_table(rng.random((40, 30, 40)) < 0.4)
    assert table[~np.eye(40, dtype=bool)].mean() == pytest.approx(0.25, abs=0.01)


def test_overlap_table_holds_every_pair():
    mask = np.random.default_rng(0).random((4, 3, 5)) < 0.5
    expected = [[masks_lib.overlap(a, b) for b in mask] for a in mask]
    np.testing.assert_allclose(masks_lib.overlap_table(mask), expected)
