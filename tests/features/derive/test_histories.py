import numpy as np
import pyarrow as pa
import pytest

from features import canonical
from features.config import ConfigError
from features.derive.histories import add_histories
from tests.helpers.feature_rows import make_spec, raw_batch, spec_values


def history_spec(*histories):
    features = [f for f in spec_values()["features"] if f["kind"] != "sequence"]
    features += [{"kind": "sequence", "of": "item_id", **h} for h in histories]
    return make_spec(features=features)


def table_of(spec, domain=None, **columns):
    rows = len(columns["item"])
    domain = np.zeros(rows, np.int32) if domain is None else domain
    # Equal content means equal domain: the raw column holds the index.
    batch = raw_batch(rows, domain=list(domain), **columns)
    good, rejected = canonical.canonicalise(spec, batch)
    assert rejected.num_rows == 0
    table = pa.Table.from_batches([good])
    return table.append_column("domain", pa.array(domain, pa.int32()))


def by_item(table, name="history"):
    items, lists = table.column("item").to_pylist(), table.column(name).to_pylist()
    return dict(zip(items, lists, strict=True))


PLAIN = {"name": "history", "max_length": 2}


def test_history_is_the_latest_earlier_items_oldest_first():
    spec = history_spec(PLAIN)
    table = table_of(spec, user=["u"] * 4, item=list("dbca"), ts=[4, 2, 3, 1])
    assert by_item(add_histories(spec, table)) == {
        "a": [],
        "b": ["a"],
        "c": ["a", "b"],
        "d": ["b", "c"],
    }


def test_rows_of_an_equal_time_do_not_see_each_other():
    spec = history_spec(PLAIN)
    table = table_of(spec, user=["u"] * 4, item=list("abcd"), ts=[1, 2, 2, 3])
    found = by_item(add_histories(spec, table))
    assert found["b"] == found["c"] == ["a"]
    assert sorted(found["d"]) == ["b", "c"]


def test_users_do_not_see_each_other():
    spec = history_spec(PLAIN)
    table = table_of(spec, user=["u", "v"], item=["a", "b"], ts=[1, 2])
    assert by_item(add_histories(spec, table)) == {"a": [], "b": []}


def test_only_positive_rows_enter_but_all_rows_have_a_history():
    spec = history_spec(PLAIN | {"only_positive_of": "click"})
    table = table_of(
        spec, user=["u"] * 3, item=list("abc"), ts=[1, 2, 3], click=[1, 0, 1]
    )
    assert by_item(add_histories(spec, table)) == {"a": [], "b": ["a"], "c": ["a"]}


def test_per_domain_histories_keep_to_their_domain():
    spec = history_spec(PLAIN | {"per_domain": True})
    table = table_of(
        spec, domain=[0, 1, 0, 1], user=["u"] * 4, item=list("abcd"), ts=[1, 2, 3, 4]
    )
    found = by_item(add_histories(spec, table))
    assert found == {"a": [], "b": [], "c": ["a"], "d": ["b"]}


def test_history_of_named_domains_stands_on_rows_of_every_domain():
    spec = history_spec(
        {"name": "there", "max_length": 2, "domains": ["shop"]},
        {"name": "both", "max_length": 3, "domains": ["tab", "shop"]},
    )
    table = table_of(
        spec,
        domain=[1, 0, 2, 1, 1, 0, 0],
        user=["u"] * 6 + ["v"],
        item=list("abcdefg"),
        ts=[1, 2, 3, 4, 5, 5, 9],
    )
    found = add_histories(spec, table, ["tab", "shop", "home"])
    # a, d and e are of shop, b and f of tab; e and f do not see each other.
    assert by_item(found, "there") == {
        "a": [],
        "b": ["a"],
        "c": ["a"],
        "d": ["a"],
        "e": ["a", "d"],
        "f": ["a", "d"],
        "g": [],
    }
    assert by_item(found, "both") == {
        "a": [],
        "b": ["a"],
        "c": ["a", "b"],
        "d": ["a", "b"],
        "e": ["a", "b", "d"],
        "f": ["a", "b", "d"],
        "g": [],
    }


def test_history_of_a_domain_that_is_none_is_named():
    spec = history_spec(PLAIN | {"domains": ["shp"]})
    table = table_of(spec, user=["u"], item=["a"], ts=[1])
    with pytest.raises(ConfigError, match=r"history.domains must be.*tab.*'shop'"):
        add_histories(spec, table, ["tab", "shop"])


def test_initial_items_come_first_and_make_room_for_later_ones():
    spec = history_spec({"name": "h", "max_length": 3, "initial_column": "before"})
    table = table_of(
        spec,
        user=["u", "u", "u", "v"],
        item=list("abcd"),
        ts=[1, 2, 3, 1],
        before=["w x y z"] * 3 + [None],
    )
    assert by_item(add_histories(spec, table), "h") == {
        "a": ["x", "y", "z"],
        "b": ["y", "z", "a"],
        "c": ["z", "a", "b"],
        "d": [],
    }


def test_missing_items_enter_no_history():
    spec = history_spec(PLAIN)
    table = table_of(spec, user=["u"] * 3, item=["a", None, "c"], ts=[1, 2, 3])
    assert by_item(add_histories(spec, table))["c"] == ["a"]


@pytest.mark.parametrize("repeats", [0, 1])
def test_no_row_and_one_row_work(repeats):
    spec = history_spec(PLAIN | {"per_domain": True})
    table = table_of(spec, user=["u"], item=["a"], ts=[1]).slice(0, repeats)
    assert add_histories(spec, table).column("history").to_pylist() == [[]] * repeats


def slow_history(rows, i, feature):
    """The last earlier items of row i, by a loop."""
    mine = rows[i]
    earlier = [
        (r["ts"], r["row_id"], r["item"])
        for r in rows
        if r["user_key"] == mine["user_key"]
        and r["ts"] < mine["ts"]
        and r["item"] is not None
        and (not feature.per_domain or r["domain"] == mine["domain"])
        and (not feature.domains or f"d{r['domain']}" in feature.domains)
        and (feature.only_positive_of is None or r["label/click"] == 1)
    ]
    items = [item for _, _, item in sorted(earlier)]
    initial = mine["before"] if feature.initial_column else []
    return (initial + items)[-feature.max_length :]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_histories_agree_with_a_loop_over_rows(seed):
    rng = np.random.default_rng(seed)
    options = [
        {},
        {"per_domain": True},
        {"only_positive_of": "click"},
        {"per_domain": True, "only_positive_of": "click"},
        {"initial_column": "before"},
        {"initial_column": "before", "per_domain": True},
        {"domains": ["d2", "d0"], "only_positive_of": "click"},
    ]
    spec = history_spec(
        *({"name": f"h{i}", "max_length": 1 + i} | o for i, o in enumerate(options))
    )
    rows = 250
    users = rng.integers(0, 12, rows)
    before = [[f"x{j}" for j in range(k)] for k in rng.integers(0, 5, 12)]
    item = [None if x == 0 else f"i{x}" for x in rng.integers(0, 30, rows)]
    table = table_of(
        spec,
        domain=rng.integers(0, 3, rows),
        user=[f"u{u}" for u in users],
        item=item,
        ts=rng.integers(0, 15, rows),  # many ties, and exact duplicates
        click=rng.integers(0, 2, rows),
        rating=rng.integers(1, 6, rows),
        price=[1.0] * rows,
        before=[before[u] for u in users],
    )
    domains = ["d0", "d1", "d2"]
    found = add_histories(spec, table, domains)
    plain = found.to_pylist()
    order = [(r["user_key"], r["ts"], r["row_id"]) for r in plain]
    assert order == sorted(order)
    for i, feature in enumerate(canonical.layout.computed_histories(spec)):
        expected = [slow_history(plain, j, feature) for j in range(rows)]
        assert found.column(f"h{i}").to_pylist() == expected
    table = table.take(pa.array(rng.permutation(rows)))
    shuffled = add_histories(spec, table, domains)
    assert shuffled.to_pylist() == plain
