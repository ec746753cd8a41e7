"""Popularity, quotas and draws against hand arithmetic and plain loops."""

import math

import numpy as np
import pytest

from features.derive import augmentation


def test_popularity_and_weights_by_hand():
    positives, rows = np.array([0, 1, 9]), np.array([0, 2, 18])
    np.testing.assert_allclose(
        augmentation.popularity(positives, rows), [0.5, 0.5, 0.5]
    )
    weights = augmentation.draw_weights(np.array([0, 3]), np.array([2, 2]))
    assert weights.tolist() == [4 * 65_536, 65_536]  # 1 / 0.25 and 1 / 1


def test_shares_of_copies_by_hand():
    # Lacks: (100 + 500 + 900 + 900) / 3 - rows = 800 - rows: 700, 300, 100 (not -100).
    rows, copies = np.array([100, 500, 900]), 900
    lack = [700.0, 300.0, 100.0]
    quantile = 100 + 0.6 * (300 - 100)  # 30 % of the way through three values
    expected = [math.exp(x / quantile) for x in lack]
    found = augmentation.shares_of_copies(rows, copies)
    np.testing.assert_allclose(found, np.array(expected) / sum(expected))


def test_shares_stay_finite_when_one_domain_lacks_far_more():
    shares = augmentation.shares_of_copies(np.array([1, *[10**6] * 9]), 10**7)
    assert np.isfinite(shares).all()
    assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("total", [0, 1, 7, 1000])
def test_whole_numbers_add_up_and_stay_within_one(total):
    shares = np.array([0.05, 0.2, 0.2, 0.55])
    found = augmentation.whole_numbers(shares, total)
    assert found.sum() == total
    assert (np.abs(found - shares * total) < 1).all()


@pytest.mark.parametrize("draws", [0, 1, 13, 500])
@pytest.mark.parametrize("start", [0.001, 0.4, 0.999])
def test_draws_add_up_and_follow_the_weights(draws, start):
    weights = np.random.default_rng(0).integers(1, 10**9, 60)
    total = int(weights.sum())
    times = augmentation.times_drawn(weights, 0, total, draws, start)
    assert times.sum() == draws
    assert (np.abs(times - draws * weights / total) < 1).all()
    # Cut into parts that know only what stands before them: the same.
    ends = np.cumsum(weights)
    parts = [
        augmentation.times_drawn(weights[a:b], int(ends[a] - weights[a]), total, *rest)
        for a, b in ((0, 7), (7, 8), (8, 60))
        for rest in [(draws, start)]
    ]
    np.testing.assert_array_equal(np.concatenate(parts), times)


def test_draws_equal_marks_on_a_line():
    weights, draws, start = np.array([3, 1, 6]), 4, 0.5
    marks = [(k + start) * 10 / draws for k in range(draws)]  # 1.25, 3.75, 6.25, 8.75
    expected = [sum(a <= m < b for m in marks) for a, b in ((0, 3), (3, 4), (4, 10))]
    found = augmentation.times_drawn(weights, 0, 10, draws, start)
    assert found.tolist() == expected == [1, 1, 2]
