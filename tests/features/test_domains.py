import numpy as np
import pyarrow as pa
import pytest

from features import canonical, domains
from features.config import ConfigError
from tests.helpers.feature_rows import make_spec, raw_batch


def fitted(rule, counts):
    spec = make_spec(domain={"column": "domain"} | rule)
    values = pa.array(list(counts), pa.string())
    return spec, domains.fit_domains(spec, values, np.array([*counts.values()]))


def assigned(spec, found, values):
    batch = raw_batch(len(values), domain=pa.array(values))
    good, _ = canonical.canonicalise(spec, batch)
    index = domains.assign_domains(found.values, found.default, spec, good)
    assert index.dtype == np.int32
    return index.tolist()


@pytest.mark.parametrize(
    ("unmapped", "expected"), [("reject", [0, 1, 1, -1]), ("old", [0, 1, 1, 1])]
)
def test_value_map_assigns_listed_values_and_the_rest_by_rule(unmapped, expected):
    rule = {"by": "value_map", "domains": {"young": [1], "old": ["25", 35]}}
    spec, found = fitted(rule | {"unmapped": unmapped}, {})
    assert found.names == ("young", "old")
    assert assigned(spec, found, [1, 25, 35, 99]) == expected


def test_column_domains_are_in_natural_order_with_enough_rows():
    counts = {"10": 5, "9": 5, "b": 5, "NaN": 5, "rare": 1}
    spec, found = fitted({"by": "column", "min_rows": 2}, counts)
    assert found.names == ("domain_9", "domain_10", "NaN", "b")
    assert assigned(spec, found, ["b", "9", "rare", None]) == [3, 0, -1, -1]


def test_column_values_fix_which_domains_and_their_order():
    spec, found = fitted({"by": "column", "values": ["b", 1]}, {})
    assert found.names == ("b", "domain_1")
    assert assigned(spec, found, ["1", "b", "c"]) == [1, 0, -1]


def test_top_k_takes_the_most_frequent_and_the_rest_is_one_domain():
    spec, found = fitted({"by": "top_k", "k": 2}, {"c": 5, "b": 7, "a": 5, "d": 1})
    assert found.names == ("b", "a", "rest")
    assert assigned(spec, found, ["a", "b", "c", "new"]) == [1, 0, 2, 2]


def test_counts_are_those_of_the_column():
    batch = raw_batch(4, domain=["a", "b", "a", None])
    good, _ = canonical.canonicalise(make_spec(), batch)
    values, counts = domains.domain_counts(make_spec(), good)
    found = dict(zip(values.to_pylist(), counts.tolist(), strict=True))
    assert found == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("rule", "counts", "message"),
    [
        ({"by": "column", "min_rows": 9}, {"a": 8}, "domain.min_rows.*got 9.* 8 rows"),
        ({"by": "column"}, {}, "min_rows must leave a domain"),
        (
            {"by": "top_k", "k": 3},
            {"a": 1, "b": 1},
            "domain.k must be at most.*3 and 2",
        ),
        ({"by": "column"}, {"a b": 1, "a-b": 1}, "names must differ; got a_b"),
        ({"by": "column", "values": ["x y", "x-y"]}, {}, "must differ; got x_y"),
        ({"by": "top_k", "k": 1}, {"rest": 3}, "names must differ; got rest"),
    ],
)
def test_rule_that_the_data_cannot_meet_is_an_error(rule, counts, message):
    with pytest.raises(ConfigError, match=message):
        fitted(rule, counts)
