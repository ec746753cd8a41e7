import pytest

from serving.inputs import raw_inputs
from tests.helpers import feature_rows, tiny_dataset


def by_name(spec):
    return {item.name: (item.kind, item.per_item) for item in raw_inputs(spec)}


def test_inputs_are_the_raw_columns_with_kind_and_side():
    assert by_name(tiny_dataset.make_spec()) == {
        "user_id": ("id", False),
        "item_id": ("id", True),
        "genres": ("ids", True),
        "price": ("number", True),
        "age": ("number", False),
        "history": ("ids", False),
        "channel": ("id", False),
    }


def test_two_features_of_one_column_are_one_input():
    names = [item.name for item in raw_inputs(feature_rows.make_spec())]
    assert names.count("price") == 1
    assert "level" not in names
    assert "pop" not in names, "popularity follows the item's id"


def with_feature(**feature):
    features = feature_rows.spec_values()["features"]
    return feature_rows.make_spec(features=[*features, feature])


def test_column_read_as_id_and_as_number_travels_as_text():
    spec = with_feature(
        kind="categorical", name="price_id", role="item", column="price"
    )
    assert by_name(spec)["price"] == ("id", True)


def test_column_of_both_sides_is_the_users():
    """One value a request: a candidate cannot have its own."""
    spec = with_feature(kind="numeric", name="paid", role="user", column="price")
    assert by_name(spec)["price"] == ("number", False)


def test_domain_that_belongs_to_the_item_comes_with_each_candidate():
    spec = with_feature(
        kind="categorical", name="domain_id", role="item", column="domain"
    )
    assert by_name(spec)["domain"] == ("id", True)


def test_column_as_list_and_as_value_is_refused():
    spec = with_feature(kind="categorical", name="tag", role="item", column="tags")
    with pytest.raises(ValueError, match="'tags' must be a list or a single value"):
        raw_inputs(spec)
