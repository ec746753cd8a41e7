import itertools
import pickle

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from features.spec import NUM_RESERVED_IDS, PAD_ID, UNKNOWN_ID
from features.vocab import Vocab, hash_ids

COUNTS = {"b": 5, "a": 5, "é": 5, "z": 9, "rare": 1, "": 100, "two\nlines": 100}


def test_from_counts_orders_by_count_then_bytes_whatever_the_input_order():
    for items in itertools.islice(itertools.permutations(COUNTS.items()), 0, 5040, 611):
        values, counts = zip(*items, strict=True)
        vocab = Vocab.from_counts(values, np.array(counts), min_count=2)
        assert vocab.values == ["z", "a", "b", "é"]


def test_from_counts_keeps_max_size():
    vocab = Vocab.from_counts(list(COUNTS), [*COUNTS.values()], max_size=2)
    assert vocab.values == ["z", "a"]
    assert vocab.num_ids == 4


def test_from_counts_of_nothing_is_empty_and_all_is_unknown():
    vocab = Vocab.from_counts([], [])
    assert vocab.num_ids == NUM_RESERVED_IDS
    assert vocab.lookup(pa.array(["a", None])).tolist() == [UNKNOWN_ID, UNKNOWN_ID]


@pytest.mark.parametrize("size", [3, 5000])  # both ways of looking up
@pytest.mark.parametrize("as_dictionary", [False, True])
def test_lookup_gives_position_plus_reserved(size, as_dictionary):
    vocab = Vocab([f"v{i}" for i in range(size)])
    texts = pa.array(["v2", "nope", None, "v0", "", "v2"])
    if as_dictionary:
        texts = texts.dictionary_encode()
    assert vocab.lookup(texts).tolist() == [4, 1, 1, 2, 1, 4]
    assert vocab.lookup(texts).dtype == np.int64
    assert vocab.lookup(texts.slice(3)).tolist() == [2, 1, 4]


def test_lookup_takes_dictionaries_with_nulls_and_chunks():
    vocab = Vocab(["a"])
    dictionary = pa.DictionaryArray.from_arrays([0, 1, None], ["a", None])
    assert vocab.lookup(dictionary).tolist() == [2, 1, 1]
    assert vocab.lookup(pa.chunked_array([["a"], ["b"]])).tolist() == [2, 1]
    assert vocab.lookup(pa.array([], pa.string())).tolist() == []


def test_lookup_agrees_with_a_python_dict_and_never_pads():
    rng = np.random.default_rng(0)
    vocab = Vocab([str(i) for i in rng.permutation(300)])
    ids = {value: i + NUM_RESERVED_IDS for i, value in enumerate(vocab.values)}
    texts = [str(i) for i in rng.integers(0, 600, 5000)]
    found = vocab.lookup(pa.array(texts))
    assert found.tolist() == [ids.get(t, UNKNOWN_ID) for t in texts]
    assert PAD_ID not in found


def test_extend_appends_and_never_renumbers():
    old = Vocab(["b", "a"])
    new = old.extend(["a", "c", "d", "e"], np.array([99, 2, 7, 1]), min_count=2)
    assert new.values == ["b", "a", "d", "c"]
    assert (old.version, new.version) == (1, 2)
    assert old.values == ["b", "a"]


def test_extend_keeps_old_values_past_max_size():
    assert Vocab(["b", "a"]).extend(["c"], [9], max_size=1).values == ["b", "a"]
    assert Vocab(["b"]).extend(["c", "d"], [9, 8], max_size=2).values == ["b", "c"]


def test_save_writes_one_value_a_line_and_load_reads_it(tmp_path):
    vocab = Vocab(["é", " x ", "\u2028"], version=3)  # a Unicode line end is no line
    vocab.save(tmp_path / "v.txt")
    text = (tmp_path / "v.txt").read_bytes()
    assert text == "é\n x \n\u2028\n".encode()
    assert Vocab.load(tmp_path / "v.txt", version=3) == vocab


def test_sha256_follows_values_and_their_order():
    digests = {Vocab(v).sha256 for v in (["a", "b"], ["b", "a"], ["ab"], [])}
    assert len(digests) == 4
    assert Vocab(["a"]).sha256 == Vocab(["a"], version=2).sha256


def test_pickle_leaves_the_index_out():
    vocab = Vocab([str(i) for i in range(2000)])
    before = len(pickle.dumps(vocab))
    vocab.lookup(pa.array(["7"]))
    assert len(pickle.dumps(vocab)) == before
    assert pickle.loads(pickle.dumps(vocab)).lookup(pa.array(["7"])).tolist() == [9]


@pytest.mark.parametrize("bad", [["a", "a"], [""], ["a\nb"], [None]])
def test_values_that_cannot_be_a_vocabulary_are_refused(bad):
    with pytest.raises(ValueError, match=r"Vocab\.values must"):
        Vocab(bad)


def test_counts_of_another_length_are_refused():
    with pytest.raises(ValueError, match="1 counts for 2 values"):
        Vocab.from_counts(["a", "b"], [1])


@pytest.mark.parametrize("num_buckets", [1, 7, 1000, 2**31 - 1])
def test_hash_ids_are_tensorflows_plus_reserved(num_buckets):
    rng = np.random.default_rng(1)
    texts = [str(i) for i in rng.integers(-(2**62), 2**62, 500)]
    texts += ["é" * n + "x" * (70 - n) for n in range(70)] + ["日本", " ", "\n"]
    expected = tf.strings.to_hash_bucket_fast(texts, num_buckets).numpy()
    found = hash_ids(pa.array(texts), num_buckets)
    np.testing.assert_array_equal(found, expected + NUM_RESERVED_IDS)


def test_hash_ids_of_null_and_empty_are_unknown():
    assert hash_ids(pa.array([None, ""]), 5).tolist() == [UNKNOWN_ID, UNKNOWN_ID]
    with pytest.raises(ValueError, match="num_buckets"):
        hash_ids(pa.array(["a"]), 0)
