import copy
import hashlib
import json

import pytest

from features.config import ConfigError
from features.spec import FORMAT_VERSION, DatasetSpec
from tests.helpers.feature_rows import make_spec, spec_values


def changed(path, value):
    """Spec values with the value at `path` replaced; features are named."""
    values = copy.deepcopy(spec_values())
    node, (*parents, last) = values, path
    for part in parents:
        if isinstance(node, list):
            node = next(item for item in node if item.get("name") == part)
        else:
            node = node[part]
    node[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("features", "item_id", "width"), 99),
        (("features", "tags", "width"), 99),
        (("description",), "other words"),
    ],
)
def test_fingerprint_ignores_what_changes_no_bytes(path, value):
    spec = DatasetSpec.parse(changed(path, value))
    assert spec.fingerprint() == make_spec().fingerprint()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("features", "tags", "max_length"), 3),
        (("features", "cat", "encoding"), {"by": "hash", "num_buckets": 8}),
        (("features", "item_id", "encoding"), {"by": "vocab", "min_count": 2}),
        (("features", "item_id", "column"), "other"),
        (("features", "price", "transform"), "log"),
        (("features", "level", "num_buckets"), 3),
        (("features", "history", "per_domain"), True),
        (("features", "history", "domains"), ["x"]),
        (("tasks", "like", "value"), 3),
        (("tasks", "like", "missing"), "reject"),
        (("split",), {"by": "random", "seed": 1}),
        (("split",), {"by": "random", "stratify": True}),
        (("domain",), {"by": "column", "column": "domain", "min_rows": 2}),
        (("keys",), {"user": "user", "item": "item", "time": "ts2"}),
        (("weight",), None),
        (("drop_duplicates",), True),
    ],
)
def test_fingerprint_follows_what_changes_bytes(path, value):
    spec = DatasetSpec.parse(changed(path, value))
    assert spec.fingerprint() != make_spec().fingerprint()


def test_fingerprint_follows_the_order_of_features():
    features = spec_values()["features"][::-1]
    assert make_spec(features=features).fingerprint() != make_spec().fingerprint()


def test_fingerprint_is_the_same_however_the_spec_was_written():
    again = DatasetSpec.parse(make_spec().model_dump(mode="json"))
    assert again.fingerprint() == make_spec().fingerprint()
    assert len(again.fingerprint()) == 16


def value_map(**domains):
    return {"by": "value_map", "column": "c", "domains": domains}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("frature",), 1, "unknown key.*mean 'features'"),
        (("features", "tags", "max_len"), 1, "unknown key.*mean 'max_length'"),
        (("features", "tags", "max_length"), 0, "greater than or equal to 1"),
        (("features", "pop", "of"), "item", "must name a feature.*mean 'item_id'"),
        (("features", "pop", "of"), "tags", "'tags' is multi"),
        (("features", "item_id", "shares"), "none", "shares must name a feature"),
        (("features", "cat", "name"), "domain", "name is reserved"),
        (("features", "cat", "name"), "a b", "should match pattern"),
        (("features", "cat", "name"), "tags", "names must differ.*tags"),
        (("features", "history", "only_positive_of"), "clik", "mean 'click'"),
        (("keys",), {"user": "u", "item": "i"}, "computed history needs keys.time"),
        (("domain",), value_map(), "at least one domain"),
        (("domain",), value_map(a=[1], b=["1"]), "'1' is in 'a' and 'b'"),
        (("domain",), value_map(a=[]), "'a' has no raw value"),
        (
            ("domain",),
            value_map(young=[1]) | {"unmapped": "yuong"},
            "mean 'young'",
        ),
        (("domain",), {"by": "top_k", "column": "c", "k": 0}, "k: .*got 0"),
        (("tasks", "click", "compare"), "gt", "compare and value go together"),
        (("tasks",), [], "at least 1 item"),
        (
            ("split",),
            {"by": "random", "validation": 0.5, "test": 0.5},
            "below 1.*got 1",
        ),
        (
            ("split",),
            {"by": "published_order", "validation": 0.9, "test": 0.2},
            "below 1",
        ),
        (
            ("split",),
            {"by": "temporal", "validation_from": 5, "test_from": 4},
            "must not go back",
        ),
        (("split",), {"by": "tempral"}, "tempral"),
    ],
)
def test_spec_that_cannot_work_is_an_error_with_its_cure(path, value, message):
    with pytest.raises(ConfigError, match=message):
        DatasetSpec.parse(changed(path, value))


def test_spec_without_domains_of_histories_keeps_the_fingerprint_it_had():
    """Data sets prepared before the field existed open as before."""
    values = make_spec().model_dump(mode="json")
    for feature in values["features"]:
        feature.pop("domains", None)
        feature.pop("width", None)
    values.pop("description")
    for name in ("train_from", "test_until"):
        values["split"].pop(name, None)
    text = json.dumps(values | {"format_version": FORMAT_VERSION}, sort_keys=True)
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert make_spec().fingerprint() == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"domains": ["yuong"]}, "must name domains; got 'yuong'.*'young'"),
        ({"domains": ["young", "young"]}, "names must differ.*young"),
        ({"domains": ["young"], "per_domain": True}, "per_domain or domains, not both"),
    ],
)
def test_history_of_domains_that_cannot_be_is_an_error(option, message):
    features = spec_values()["features"]
    next(f for f in features if f.get("name") == "history").update(option)
    with pytest.raises(ConfigError, match=message):
        make_spec(features=features, domain=value_map(young=[1], old=[2]))


def test_ready_sequences_take_no_options_of_computed_ones():
    options = ({"initial_column": "x"}, {"per_domain": True}, {"domains": ["x"]})
    for option in options:
        features = [
            {"kind": "categorical", "name": "item", "role": "item"},
            {
                "kind": "sequence",
                "name": "s",
                "of": "item",
                "column": "seen",
                "max_length": 2,
            }
            | option,
        ]
        with pytest.raises(ConfigError, match="is for computed histories"):
            make_spec(features=features)


def test_partition_by_day_needs_a_day():
    keys = {"user": "user", "item": "item", "time": "ts", "time_unit": "order"}
    with pytest.raises(ConfigError, match="partition_by_day needs"):
        make_spec(keys=keys, partition_by_day=True)
    assert make_spec(partition_by_day=True).day_source == "time"


def test_per_user_split_needs_a_time():
    features = [{"kind": "categorical", "name": "item", "role": "item"}]
    with pytest.raises(ConfigError, match="per_user_temporal needs keys.time"):
        make_spec(
            keys={"user": "user", "item": "item"},
            features=features,
            split={"by": "per_user_temporal"},
        )


def test_feature_lists_the_known_names():
    with pytest.raises(LookupError, match="no feature 'tag'.*mean 'tags'"):
        make_spec().feature("tag")
    assert make_spec().table_of("history") == "item_id"
