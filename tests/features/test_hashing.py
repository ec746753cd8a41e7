import farmhash
import numpy as np
import pyarrow as pa

from features import hashing


def test_hash_text_is_farmhash_and_null_has_its_own():
    hashes = hashing.hash_text(pa.array(["a", None, "a", "é"]))
    assert hashes[0] == hashes[2] == farmhash.fingerprint64("a")
    assert hashes[3] == farmhash.fingerprint64("é")
    assert hashes[1] == hashing.NULL_HASH


def test_hash_number_tells_values_apart_but_not_the_sign_of_zero():
    hashes = hashing.hash_number(pa.array([0.0, -0.0, 1.0, None, 5e-324]))
    assert hashes[0] == hashes[1]
    assert len(set(hashes.tolist())) == 4


def test_hash_lists_depends_on_order_and_borders_not_on_batching():
    lists = [["a", "b"], ["b", "a"], ["ab"], [], ["a"], ["a", "a"], ["a", "b"]]
    column = pa.array(lists)
    hashes = hashing.hash_lists(column)
    assert hashes[0] == hashes[6]
    assert len(set(hashes.tolist())) == 6
    np.testing.assert_array_equal(hashing.hash_lists(column.slice(3)), hashes[3:])
    assert hashing.hash_lists(pa.array([None, []], pa.list_(pa.string()))).tolist() == [
        hashes[3],
        hashes[3],
    ]


def test_hash_column_is_salted_by_the_name():
    column = pa.array(["a"])
    assert hashing.hash_column("x", column) != hashing.hash_column("y", column)


def test_mix64_is_a_bijection_that_spreads():
    mixed = hashing.mix64(np.arange(100_000, dtype=np.uint64))
    assert len(np.unique(mixed)) == 100_000
    high_bits = np.bincount((mixed >> np.uint64(60)).astype(int), minlength=16)
    # 16 bins of 6,250 +- 77 (one standard deviation): six of them.
    assert abs(high_bits - 6250).max() < 6 * 77
    keys = hashing.to_key(mixed)
    assert keys.min() >= 0
    assert keys.max() < 2**62
