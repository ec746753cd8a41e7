import collections
import json

import numpy as np
import pyarrow as pa
import pytest

from features.registry import dataset_spec
from pipeline import registry
from pipeline.readers import amazon_timed
from pipeline.readers.amazon_timed import with_negatives
from pipeline.readers.base import ReadError

PURCHASES = [
    ("ann", "bread", "food", 100),
    ("ann", "milk", "food", 200),
    ("ann", "pan", "kitchen", 200),
    ("bob", "rice", "food", 150),
    ("bob", "pot", "kitchen", 160),
    ("bob", "cup", "kitchen", 170),
]
NAMES = ("user", "item", "domain", "timestamp", "click")


def source(**options):
    spec_source = dataset_spec("amazon_timed").source
    return spec_source.model_copy(
        update={"options": {**spec_source.options, **options}}
    )


def read(folder, columns=None, **options):
    reader = registry.reader("amazon_timed")
    rows, bad = [], []
    for shard in reader.shards(source(**options), folder, columns):
        for batch, rejected in reader.read(shard):
            rows += batch.to_pylist() if batch is not None else []
            bad += rejected.to_pylist() if rejected is not None else []
    return rows, bad


def write_csv(folder, rows=PURCHASES, extra=()):
    lines = ["user,item,domain,timestamp", *(",".join(map(str, r)) for r in rows)]
    (folder / "food_kitchen.csv").write_text("\n".join([*lines, *extra]))


def many(count, seed=0):
    """Returns purchases of 30 users among 40 items of two domains."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 30, count), (rng.random(count) ** 2 * 40).astype(int)
    rows = {(int(u), int(i)) for u, i in zip(users, items, strict=True)}
    return [
        (f"u{u}", f"i{i}", ("food", "kitchen")[i % 2], 10 * k)
        for k, (u, i) in enumerate(sorted(rows))
    ]


def table(rows):
    columns = zip(*rows, strict=True)
    return pa.table({n: list(c) for n, c in zip(NAMES[:4], columns, strict=True)})


def test_negatives_are_unbought_items_of_the_same_user_domain_and_time(tmp_path):
    write_csv(tmp_path)
    rows, _ = read(tmp_path)
    assert len(rows) == 12
    positives = [r for r in rows if r["click"] == 1]
    assert [tuple(r[n] for n in NAMES[:4]) for r in positives] == PURCHASES
    bought = {(u, i) for u, i, _, _ in PURCHASES}
    domain_of = {i: d for _, i, d, _ in PURCHASES}
    for positive, negative in zip(positives, rows[6:], strict=True):
        for name in ("user", "domain", "timestamp"):
            assert negative[name] == positive[name]
        assert negative["click"] == 0
        assert (negative["user"], negative["item"]) not in bought
        assert domain_of[negative["item"]] == negative["domain"]


def test_negatives_do_not_depend_on_the_order_of_the_file():
    rows = many(300)
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    results = [
        collections.Counter(
            map(
                tuple,
                with_negatives(table(r), negatives=3, sampling="popularity", seed=5)
                .to_pandas()
                .values.tolist(),
            )
        )
        for r in (rows, shuffled)
    ]
    assert results[0] == results[1]


def test_seed_and_number_give_other_negatives():
    rows = table(many(300))
    one, two = (
        with_negatives(rows, negatives=2, sampling="uniform", seed=s).to_pandas()
        for s in (0, 1)
    )
    count = len(rows)
    assert len(one) == 3 * count
    assert (one["item"][count:] != two["item"][count:]).mean() > 0.8
    first, second = one["item"][count : 2 * count], one["item"][2 * count :]
    assert (first.to_numpy() != second.to_numpy()).mean() > 0.8


def test_popularity_sampling_draws_popular_items_more_often():
    # One user bought nothing else, so every draw is free: a 81 times, b once.
    rows = [(f"u{i}", "a", "food", i) for i in range(81)] + [("v", "b", "food", 0)]
    rows += [("w", "c", "food", i) for i in range(2000)]
    result = with_negatives(
        table(rows), negatives=1, sampling="popularity", seed=0
    ).to_pandas()
    drawn = result[(result["click"] == 0) & (result["user"] == "w")]["item"]
    # 81 ** 0.75 = 27 to 1.
    assert (drawn == "a").mean() == pytest.approx(27 / 28, abs=0.015)
    assert set(drawn) == {"a", "b"}


def test_negatives_are_of_items_that_somebody_had_bought_by_then():
    """One purchase a day of a new item: later days have more to draw from."""
    rows = [(f"u{i}", f"i{i:04}", "food", i) for i in range(400)]

    def drawn(candidates):
        result = with_negatives(
            table(rows),
            negatives=5,
            sampling="uniform",
            seed=1,
            candidates=candidates,
        ).to_pandas()
        found = result[result["click"] == 0]
        return found["item"].str[1:].astype(int), found["timestamp"]

    item, time = drawn("seen")
    first_hundred = 100  # open from the start
    assert (item <= np.maximum(time, first_hundred - 1)).all()
    late = item[time > 300]
    assert late.max() > 300
    assert late.mean() == pytest.approx(175, abs=12)  # uniform over 0..time
    item, time = drawn("all")
    assert (item > time)[time > 100].mean() > 0.3


def test_recent_negatives_are_new_as_often_as_purchases_are(monkeypatch):
    """A new item every fourth day; the others are of three that always sell."""
    monkeypatch.setattr(amazon_timed, "RECENT", 200)
    rows = [
        (f"u{i}", f"n{i:05}" if i % 4 == 0 else f"old{i % 4}", "food", i)
        for i in range(4000)
    ]

    def drawn(rows):
        result = with_negatives(
            table(rows), negatives=2, sampling="uniform", seed=1, candidates="recent"
        ).to_pandas()
        return result[(result["click"] == 0) & (result["timestamp"] > 400)]

    found = drawn(rows)
    is_new = found["item"].str.startswith("n")
    # Users of an old item draw among three quarters of the purchases, others all.
    expected = 0.75 * 0.25 / 0.75 + 0.25 * 0.25
    assert is_new.mean() == pytest.approx(expected, abs=0.02)
    age = found["timestamp"][is_new] - found["item"][is_new].str[1:].astype(int)
    assert (age.min(), age.max()) == (1, 199)
    again = drawn([rows[i] for i in np.random.default_rng(1).permutation(len(rows))])
    one, two = (
        collections.Counter(zip(x["user"], x["item"], strict=True))
        for x in (found, again)
    )
    assert one == two


def test_number_of_negatives_and_columns_are_options(tmp_path):
    write_csv(tmp_path)
    assert [r["click"] for r in read(tmp_path, negatives=0)[0]] == [1] * 6
    rows, _ = read(tmp_path, ["item", "click"], negatives=2)
    assert len(rows) == 18
    assert list(rows[0]) == ["item", "click"]


def test_user_who_bought_everything_is_an_error(tmp_path):
    write_csv(tmp_path, [("ann", "bread", "food", 1), ("ann", "milk", "food", 2)])
    with pytest.raises(ReadError, match="an item that the user never bought"):
        read(tmp_path)


def test_malformed_purchases_are_rejected(tmp_path):
    extra = ["ann,tea,food,yesterday", ",tea,food,3", "ann"]
    write_csv(tmp_path, extra=extra)
    rows, bad = read(tmp_path)
    assert len(rows) == 12
    assert len(bad) == 3
    assert {b["reason"] for b in bad} == {"malformed purchase"}


@pytest.mark.parametrize("folder", ["", "afk"])
def test_original_files_of_abxi_give_the_same_rows(tmp_path, folder):
    write_csv(tmp_path)
    expected = sorted(map(str, read(tmp_path)[0]))
    (tmp_path / "food_kitchen.csv").unlink()
    users = {u: n for n, u in enumerate(("ann", "bob"))}
    domains = {i: int(d == "kitchen") for _, i, d, _ in PURCHASES}
    items = {i: [n, d] for n, (i, d) in enumerate(domains.items(), 1)}
    lines = [
        " ".join(
            [str(number)]
            + [f"{items[i][0]}|{t}" for u, i, _, t in PURCHASES if u == user]
        )
        for user, number in users.items()
    ]
    target = tmp_path / folder
    target.mkdir(exist_ok=True)
    (target / "map_user_50.txt").write_text(json.dumps(users))
    (target / "map_item_50.txt").write_text(json.dumps(items))
    (target / "afk_50_preprocessed.txt").write_text("\n".join([*lines, "9 1|2"]))
    rows, bad = read(tmp_path)
    assert sorted(map(str, rows)) == expected
    assert [b["row"] for b in bad] == ["afk_50_preprocessed.txt:3: 9 1|2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair": "food"}, "pair must be one of food_kitchen"),
        ({"sampling": "hard"}, "sampling must be one of"),
        ({"negatives": -1}, "negatives must be at least 0"),
        ({"negative": 1}, "Did you mean 'negatives'"),
        ({"seed": "x"}, "seed must be int"),
        ({"pair": "beauty_electronics"}, "beauty_electronics.csv or abe_50"),
    ],
)
def test_bad_options_and_missing_files_are_explained(tmp_path, options, message):
    write_csv(tmp_path)
    with pytest.raises(ReadError, match=message):
        read(tmp_path, **options)
