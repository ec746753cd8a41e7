import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from features import canonical, encode
from features.fitted import Fitted, NumericParams
from features.schema import encoded_columns
from features.vocab import Vocab
from tests.helpers.feature_rows import make_spec, raw_batch

FITTED = Fitted(
    domains=("x", "y"),
    domain_values={"x": 0, "y": 1},
    domain_default=-1,
    vocabs={"item_id": Vocab(["0", "1", "2"]), "tags": Vocab(["t1", "t2"])},
    numeric={
        "price": NumericParams(1.0, 2.0),
        "level": NumericParams(boundaries=(1.0, 2.5)),
        "pop": NumericParams(0.5, 2.0),
    },
    popularity={"pop": np.array([0, 0, 1.5, 2.5, 0.5], np.float32)},
)


def canonical_rows(spec, rows, history=None, **columns):
    good, _ = canonical.canonicalise(spec, raw_batch(rows, **columns))
    history = [[]] * rows if history is None else history
    extra = {
        "domain": pa.array([i % 2 for i in range(rows)], pa.int32()),
        "history": pa.array(history, pa.list_(pa.string())),
    }
    return pa.RecordBatch.from_arrays(
        [*good.columns, *extra.values()], [*good.schema.names, *extra]
    )


def encoded(spec, rows, **columns):
    batch, unknown = encode.encode(spec, FITTED, canonical_rows(spec, rows, **columns))
    return {n: batch.column(n).to_pylist() for n in batch.schema.names}, unknown


def test_encode_gives_exactly_the_columns_on_disk():
    spec = make_spec()
    batch, _ = encode.encode(spec, FITTED, canonical_rows(spec, 3))
    expected = [
        (c.name, pa.int64() if c.dtype == "int64" else pa.float32(), c.length)
        for c in encoded_columns(spec)
    ]
    found = [
        (f.name, f.type.value_type, f.type.list_size)
        if pa.types.is_fixed_size_list(f.type)
        else (f.name, f.type, 1)
        for f in batch.schema
    ]
    assert found == expected


def test_ids_are_looked_up_and_unknown_ones_counted():
    columns, unknown = encoded(
        make_spec(),
        4,
        item=["2", "new", None, "0"],
        tags=["t2|t1|t1", "junk", None, "t1"],
        cat=["a", None, "b", "a"],
        history=[["0", "1", "2", "0"], ["new"], None, ["1", "new"]],
    )
    assert columns["item_id"] == [4, 1, 1, 2]
    assert columns["tags"] == [[3, 2], [1, 0], [0, 0], [2, 0]]  # the first two stay
    assert columns["history"] == [[3, 4, 2], [1, 0, 0], [0, 0, 0], [3, 1, 0]]  # last 3
    buckets = tf.strings.to_hash_bucket_fast(["a", "b"], 7).numpy() + 2
    assert columns["cat"] == [buckets[0], 1, buckets[1], buckets[0]]
    assert unknown == {"item_id": 2, "tags": 1, "history": 2, "cat": 1}


def test_numbers_are_normalised_and_missing_is_zero():
    columns, unknown = encoded(make_spec(), 4, price=[0.0, 1.0, 5.0, None])
    assert columns["price"] == [-0.5, 0.0, 2.0, 0.0]
    assert columns["level"] == [2, 3, 4, 1]
    assert unknown["level"] == 1


def test_value_on_a_boundary_belongs_to_the_bucket_above():
    columns, _ = encoded(make_spec(), 3, price=[2.4999, 2.5, 0.9999])
    assert columns["level"] == [3, 4, 2]


def test_log_is_signed():
    feature = {"kind": "numeric", "name": "price", "role": "item", "transform": "log"}
    columns, _ = encoded(make_spec(features=[feature]), 2, price=[np.e - 1, 1 - np.e])
    assert columns["price"] == pytest.approx([0.0, -1.0])


def test_popularity_follows_the_id():
    columns, _ = encoded(make_spec(), 3, item=["0", "1", "new"])
    assert columns["pop"] == [0.5, 1.0, -0.25]


def test_labels_weight_and_keys_pass_through():
    spec = make_spec()
    batch = canonical_rows(spec, 3, rating=[5.0, None, 1.0], weight=[1.0, 0.5, 0.0])
    found, _ = encode.encode(spec, FITTED, batch)
    assert found.column("label/like").to_pylist() == [1, -1, 0]
    assert found.column("weight").to_pylist() == [1.0, 0.5, 0.0]
    assert found.column("domain").to_pylist() == [0, 1, 0]
    for name in ("row_id", "user_key"):
        assert found.column(name).to_pylist() == batch.column(name).to_pylist()
    assert found.column("day").to_pylist() == [20220425] * 3


def test_encoding_does_not_depend_on_batching_or_on_dictionaries():
    spec, rng = make_spec(), np.random.default_rng(0)
    history = [[str(x) for x in rng.integers(0, 5, n)] for n in rng.integers(0, 6, 50)]
    batch = canonical_rows(spec, 50, item=rng.integers(0, 5, 50), history=history)
    whole, unknown = encode.encode(spec, FITTED, batch)
    parts = [encode.encode(spec, FITTED, batch.slice(i, 9)) for i in range(0, 50, 9)]
    joined = pa.Table.from_batches([p for p, _ in parts]).to_pylist()
    assert joined == whole.to_pylist()
    assert sum(u.get("history", 0) for _, u in parts) == unknown["history"]
    at = batch.schema.get_field_index("history")
    lists = batch.column(at)
    coded = pa.ListArray.from_arrays(lists.offsets, lists.values.dictionary_encode())
    columns = [*batch.columns[:at], coded, *batch.columns[at + 1 :]]
    again, _ = encode.encode(
        spec, FITTED, pa.RecordBatch.from_arrays(columns, batch.schema.names)
    )
    assert again.to_pylist() == whole.to_pylist()


def test_empty_batch_encodes():
    spec = make_spec()
    batch, unknown = encode.encode(spec, FITTED, canonical_rows(spec, 2).slice(0, 0))
    assert batch.num_rows == 0
    assert unknown == {}
    assert encode.decode(spec, FITTED, batch).num_rows == 0


def test_decode_reads_back_what_was_encoded():
    spec = make_spec()
    rows = canonical_rows(
        spec,
        2,
        item=["2", "new"],
        tags=["t2|t1", None],
        price=[2.0, None],
        history=[["0", "new"], []],
    )
    found = encode.decode(
        spec, FITTED, encode.encode(spec, FITTED, rows)[0]
    ).to_pylist()
    assert found[0]["item_id"] == "2"
    assert found[1]["item_id"] == "<unknown>"
    assert [r["tags"] for r in found] == [["t2", "t1"], []]
    assert [r["history"] for r in found] == [["0", "<unknown>"], []]
    assert found[0]["price"] == 2.0
    assert [r["level"] for r in found] == ["[1, 2.5)", "<unknown>"]
    assert found[0]["pop"] == 0.5
    assert [r["domain"] for r in found] == ["x", "y"]
    assert found[0]["cat"].startswith("#")
    assert found[0]["label/click"] == 0
