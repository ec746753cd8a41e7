"""Co-occurrence vectors against loops, plain integers and a float64 factorisation."""

import numpy as np
import pytest

from features.derive import co_occurrence

MASK = (1 << 64) - 1


def slow_mix(value):
    """splitmix64 of a Python integer."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def slow_signs(node, width, seed):
    """One sign a bit, lowest byte first, highest bit of a byte first."""
    result = []
    for word in range(width // 64):
        bits = slow_mix(slow_mix(node) ^ slow_mix((word + slow_mix(seed)) & MASK))
        for byte in bits.to_bytes(8, "little"):
            result += [1 if byte >> (7 - k) & 1 else -1 for k in range(8)]
    return result


def test_information_by_hand():
    count = np.array([4, 4, 1, 3])
    mass, other_mass = np.array([4, 8, 4, 3]), np.array([8, 8, 4, 16])
    found = co_occurrence.positive_information(count, mass, other_mass, 16)
    # log(4 x 16 / 32) = log 2; three times log 1.
    assert found.tolist() == [round(0.69314718 * 2**16), 0, 0, 0]
    assert co_occurrence.positive_information(*[np.zeros(0, np.int64)] * 3, 0).size == 0


def test_signs_are_bits_of_a_hash_and_depend_on_node_and_seed_only():
    node = np.array([0, 7, 2**62 - 1, 7])
    found = co_occurrence.random_signs(node, 128, seed=3)
    assert found.tolist() == [slow_signs(int(n), 128, 3) for n in node]
    other = co_occurrence.random_signs(node, 128, seed=4)
    assert 0.3 < (found == other).mean() < 0.7
    many = co_occurrence.random_signs(np.arange(4000), 64, seed=0)
    assert np.abs(many.mean(axis=0)).max() < 5 / np.sqrt(4000)
    # Columns are as good as independent.
    products = many.T @ many / 4000 - np.eye(64)
    assert np.abs(products).max() < 6 / np.sqrt(4000)


@pytest.mark.parametrize("at_once", [1, 5, 1 << 14])
def test_sketch_equals_a_loop_for_any_cut(at_once, monkeypatch):
    monkeypatch.setattr(co_occurrence, "_PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    row = np.sort(rng.integers(0, 6, 40))
    row = np.unique(row, return_inverse=True)[1]
    other, weight = rng.integers(0, 9, 40), rng.integers(1, 1 << 22, 40)
    found = co_occurrence.sketch(row, other, weight, 64, seed=1)
    expected = [[0] * 64 for _ in range(row[-1] + 1)]
    for r, o, w in zip(row.tolist(), other.tolist(), weight.tolist(), strict=True):
        for column, sign in enumerate(slow_signs(o, 64, 1)):
            expected[r][column] += sign * w
    assert found.tolist() == expected


def test_no_pairs_give_no_rows():
    nothing = np.zeros(0, np.int64)
    rows = co_occurrence.unit_rows(
        co_occurrence.sketch(nothing, nothing, nothing, 64, 0)
    )
    assert rows.shape == (0, 64)
    directions = co_occurrence.leading_directions(co_occurrence.gram(rows), 5)
    assert not directions.any()
    assert co_occurrence.turn(rows, directions).shape == (0, 5)


@pytest.mark.parametrize(("dim", "width"), [(1, 64), (16, 64), (17, 128), (64, 256)])
def test_sketch_is_four_times_as_wide_in_whole_words(dim, width):
    assert co_occurrence.sketch_width(dim) == width


def vectors_of(values, dim):
    rows = co_occurrence.unit_rows(values)
    directions = co_occurrence.leading_directions(co_occurrence.gram(rows), dim)
    return rows, directions, co_occurrence.turn(rows, directions)


def test_cosines_are_those_of_the_truncated_factorisation_in_float64():
    rng = np.random.default_rng(2)
    values = rng.integers(-50, 50, (80, 6)) @ rng.integers(-9, 9, (6, 64))
    values = values * 1000 + rng.integers(-20_000, 20_000, values.shape)
    *_, found = vectors_of(values, 4)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    left, scale, _ = np.linalg.svd(unit)
    expected = left[:, :4] * scale[:4]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    cosines = found.astype(np.float64) @ found.T / co_occurrence.VECTOR_SCALE**2
    assert np.abs(cosines - expected @ expected.T).max() < 2e-3


def test_directions_that_nothing_fills_are_zeros():
    rng = np.random.default_rng(3)
    values = rng.integers(-50, 50, (40, 2)) @ rng.integers(-900, 900, (2, 64))
    _, directions, found = vectors_of(values, 8)
    assert directions[:, :2].any(axis=0).all()
    assert not directions[:, 2:].any()
    assert not found[:, 2:].any()


def test_sums_and_products_do_not_depend_on_how_rows_are_cut():
    values = np.random.default_rng(4).integers(-(2**40), 2**40, (101, 128))
    rows, directions, found = vectors_of(values, 32)
    for cuts in ([1], [17, 64], list(range(1, 101))):
        parts = np.split(rows, cuts)
        squares = sum(co_occurrence.gram(part) for part in reversed(parts))
        assert (squares == co_occurrence.gram(rows)).all()
        turned = [co_occurrence.turn(part, directions) for part in parts]
        assert (np.concatenate(turned) == found).all()
        again = [co_occurrence.unit_rows(part) for part in np.split(values, cuts)]
        assert (np.concatenate(again) == rows).all()
    # In Python's integers too.
    assert int(squares[3, 5]) == sum(a * b for a, b in rows[:, [3, 5]].tolist())


def test_cosines_are_exact_in_float32():
    rng = np.random.default_rng(5)
    *_, found = vectors_of(rng.integers(-99, 99, (60, 256)), 64)
    wide = found.astype(np.int64) @ found.T.astype(np.int64)
    assert (found.astype(np.float32) @ found.T.astype(np.float32) == wide).all()
    assert np.abs(np.diag(wide) / co_occurrence.VECTOR_SCALE**2 - 1).max() < 2e-3


def test_best_of_each_group_by_hand():
    group = np.array([2, 1, 2, 1, 2, 1])
    node = np.array([10, 11, 12, 13, 14, 15])
    value = np.array([5, 1, 9, 7, 5, 7], np.int32)

    def best(most):
        chosen = co_occurrence.best_of_group(group, node, value, most)
        return [(int(group[i]), int(node[i])) for i in chosen]

    assert best(1) == [(1, 13), (2, 12)]  # of equal values the smaller node
    assert best(2) == [(1, 13), (1, 15), (2, 12), (2, 10)]
    assert len(best(9)) == 6
    nothing = np.zeros(0, np.int64)
    assert not len(co_occurrence.best_of_group(nothing, nothing, nothing, 3))
