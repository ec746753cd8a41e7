import json

import numpy as np
import pyarrow as pa
import pytest

from features import canonical
from features.config import ConfigError
from features.layout import canonical_name, canonical_schema, raw_columns
from tests.helpers.feature_rows import make_spec, raw_batch, spec_values


def test_good_rows_have_canonical_types_and_values():
    spec = make_spec()
    good, rejected = canonical.canonicalise(spec, raw_batch(2))
    assert rejected.num_rows == 0
    assert good.schema == canonical_schema(spec)
    row = good.to_pylist()[0]
    assert row.pop("row_id") >= 0
    assert row.pop("user_key") >= 0
    assert row == {
        "user": "u0",
        "item": "0",
        "ts": 1_650_844_800,
        "raw/domain/id": "y",
        "cat": "a",
        "tags": ["t1", "t2"],
        "price": 0.0,
        "label/click": 0,
        "label/like": 0,
        "weight": 1.0,
        "day": 20220425,
    }


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user", None, "user is missing"),
        ("ts", None, "ts is missing"),
        ("ts", "soon", "ts must be a time"),
        ("ts", 10**15, "ts must be a time in seconds"),
        ("price", "dear", "price must be a finite number"),
        ("price", float("inf"), "price must be a finite number"),
        ("click", None, "label/click is missing"),
        ("click", float("nan"), "label/click is missing"),
        ("click", 2, "label/click must be 0 or 1"),
        ("click", "yes", "click must be a finite number"),
        ("rating", "five", "rating must be a finite number"),
        ("weight", -1.0, "weight must be >= 0"),
        ("weight", None, "weight is missing"),
        ("weight", float("inf"), "weight must be a finite number"),
    ],
)
def test_bad_value_is_rejected_with_its_reason_and_its_row(column, value, reason):
    batch = raw_batch(1, **{column: [value]})
    good, rejected = canonical.canonicalise(make_spec(), batch)
    assert (good.num_rows, rejected.num_rows) == (0, 1)
    row = rejected.to_pylist()[0]
    assert row["reason"] == reason
    shown = json.loads(row["row"])
    assert shown["item"] == 0
    assert str(shown[column]) in (str(value), "nan", "inf")


def test_every_row_is_either_good_or_rejected_and_good_ones_keep_their_order():
    rng = np.random.default_rng(0)
    rows = 500
    user = [None if x < 0.1 else f"u{i}" for i, x in enumerate(rng.random(rows))]
    click = [None if x < 0.1 else 1 for x in rng.random(rows)]
    batch = raw_batch(rows, user=user, click=click)
    good, rejected = canonical.canonicalise(make_spec(), batch)
    kept = [u for u, c in zip(user, click, strict=True) if u and c]
    assert good.column(0).to_pylist() == kept
    assert rejected.num_rows == rows - len(kept)


def test_missing_label_masks_where_the_task_says_so():
    batch = raw_batch(4, rating=[5.0, None, float("nan"), 4.0])
    good, _ = canonical.canonicalise(make_spec(), batch)
    at = good.schema.get_field_index("label/like")
    assert good.column(at).to_pylist() == [1, -1, -1, 1]


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        ("gt", [0, 0, 1]),
        ("ge", [0, 1, 1]),
        ("lt", [1, 0, 0]),
        ("le", [1, 1, 0]),
        ("eq", [0, 1, 0]),
    ],
)
def test_label_compares_with_the_value(compare, expected):
    task = {"name": "t", "column": "rating", "compare": compare, "value": 3}
    spec = make_spec(tasks=[task])
    good, _ = canonical.canonicalise(spec, raw_batch(3, rating=[2, 3, 4]))
    at = good.schema.get_field_index("label/t")
    assert good.column(at).to_pylist() == expected


def test_masked_label_may_hold_anything():
    task = {"name": "t", "column": "click", "mask_column": "shown"}
    batch = raw_batch(
        5,
        click=["1", "junk", None, "junk", "7"],
        shown=["1", "0", None, "1", "1"],
    )
    good, rejected = canonical.canonicalise(make_spec(tasks=[task]), batch)
    at = good.schema.get_field_index("label/t")
    assert good.column(at).to_pylist() == [1, -1, -1]
    assert rejected.column(0).to_pylist() == ["label/t must be 0 or 1"] * 2


def test_row_id_does_not_depend_on_batching_order_or_arrow_type():
    spec = make_spec()
    batch = raw_batch(40)
    whole = canonical.canonicalise(spec, batch)[0].column("row_id")
    parts = [
        canonical.canonicalise(spec, batch.slice(i, 7))[0] for i in range(0, 40, 7)
    ]
    assert [x for p in parts for x in p.column("row_id").to_pylist()] == (
        whole.to_pylist()
    )
    backwards = batch.take(pa.array(range(39, -1, -1)))
    ids = canonical.canonicalise(spec, backwards)[0].column("row_id").to_pylist()
    assert ids == whole.to_pylist()[::-1]
    as_text = raw_batch(40, item=[str(i) for i in range(40)], click=["0", "1"] * 20)
    ids = canonical.canonicalise(spec, as_text)[0].column("row_id").to_pylist()
    assert ids == whole.to_pylist()


@pytest.mark.parametrize(
    "change",
    [{"item": [9]}, {"price": [None]}, {"tags": ["t2|t1"]}, {"rating": [None]}],
)
def test_row_id_changes_with_every_used_column(change):
    spec = make_spec()
    ids = [
        canonical.canonicalise(spec, raw_batch(1, **c))[0].column("row_id")[0].as_py()
        for c in ({}, change)
    ]
    assert ids[0] != ids[1]


def test_row_id_ignores_columns_that_the_spec_does_not_use():
    spec, batches = make_spec(), (raw_batch(3), raw_batch(3, other=[1, 2, 3]))
    first, second = (canonical.canonicalise(spec, b)[0] for b in batches)
    assert first.equals(second)


def test_user_key_groups_by_user_alone():
    good, _ = canonical.canonicalise(make_spec(), raw_batch(4))
    keys = good.column("user_key").to_pylist()
    assert keys[0] == keys[2] != keys[1] == keys[3]


def test_missing_column_is_named_with_its_nearest():
    batch = raw_batch(2)
    names = ["pryce" if n == "price" else n for n in batch.schema.names]
    batch = pa.RecordBatch.from_arrays(batch.columns, names)
    with pytest.raises(ConfigError, match=r"'price' must be in.*mean 'pryce'"):
        canonical.canonicalise(make_spec(), batch)


def test_column_of_a_useless_type_is_named():
    with pytest.raises(ConfigError, match=r"column 'price' must hold numbers.*list"):
        canonical.canonicalise(make_spec(), raw_batch(1, price=[[1.0]]))


def test_empty_batch_gives_empty_batches_of_the_right_schema():
    spec = make_spec()
    good, rejected = canonical.canonicalise(spec, raw_batch(3).slice(0, 0))
    assert good.schema == canonical_schema(spec)
    assert (good.num_rows, rejected.num_rows) == (0, 0)
    assert rejected.schema == canonical.REJECTED_SCHEMA


@pytest.mark.parametrize(
    ("keys", "columns", "expected"),
    [
        ({"time": "ts", "time_unit": "order"}, {}, None),
        ({"time": "ts", "time_unit": "days"}, {"ts": [19_107]}, 20220425),
        ({"day": "date"}, {"date": ["2022-04-25"]}, 20220425),
    ],
)
def test_day_comes_from_its_column_or_the_time(keys, columns, expected):
    features = [f for f in spec_values()["features"] if f["kind"] != "sequence"]
    spec = make_spec(keys={"user": "user", "item": "item"} | keys, features=features)
    good, _ = canonical.canonicalise(spec, raw_batch(1, **columns))
    assert good.to_pylist()[0].get("day") == expected


def test_column_used_as_two_types_stands_there_twice():
    features = [
        {"kind": "categorical", "name": "age", "role": "user"},
        {"kind": "numeric", "name": "years", "role": "user", "column": "age"},
    ]
    spec = make_spec(features=features)
    assert raw_columns(spec)["age"] == "raw"
    good, _ = canonical.canonicalise(spec, raw_batch(1, age=[25.0]))
    row = good.to_pylist()[0]
    assert row[canonical_name(spec, "age", "id")] == "25"
    assert row[canonical_name(spec, "age", "number")] == 25.0


def test_separators_of_one_column_must_agree():
    features = [
        {"kind": "categorical", "name": "item", "role": "item"},
        {"kind": "multi", "name": "seen", "role": "item", "max_length": 2},
        {
            "kind": "sequence",
            "name": "s",
            "of": "item",
            "column": "seen",
            "max_length": 2,
        },
    ]
    with pytest.raises(ConfigError, match="separator of column 'seen'"):
        raw_columns(make_spec(features=features))


def test_rejected_rows_shows_bytes_lists_and_text_beyond_ascii():
    batch = pa.RecordBatch.from_pydict({"a": [b"\xff", b"b"], "b": [["é"], [None]]})
    rejected = canonical.rejected_rows(batch, np.array([0]), ["why"])
    assert rejected.to_pylist() == [
        {"reason": "why", "row": '{"a": "\ufffd", "b": ["é"]}'}
    ]
