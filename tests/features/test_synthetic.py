import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from features import synthetic
from features.config import ConfigError
from features.datasets.synthetic import DOMAINS, SECONDS_PER_DAY, START_TIME
from features.registry import dataset_spec
from features.synthetic_dirt import DIRT
from features.synthetic_world import SyntheticConfig, World

SMALL = {"num_users": 500, "num_items": 200, "chunk_rows": 4000, "rows": 10_000}


def files(folder):
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    out = tmp_path_factory.mktemp("log") / "raw"
    return synthetic.generate(out, SyntheticConfig(rows=120_000, num_users=2000))


@pytest.fixture(scope="module")
def events(log):
    return pq.read_table(log / "events").to_pandas()


def test_same_seed_gives_same_bytes_and_another_seed_others(tmp_path):
    config = SyntheticConfig(**SMALL)
    one = files(synthetic.generate(tmp_path / "a", config))
    two = files(synthetic.generate(tmp_path / "b", config))
    other = files(
        synthetic.generate(tmp_path / "c", config.model_copy(update={"seed": 1}))
    )
    assert one == two
    assert one["events/part-00000.parquet"] != other["events/part-00000.parquet"]
    assert {f"events/part-0000{i}.parquet" for i in range(3)} <= set(one)


def test_chunk_depends_on_its_number_only():
    config = SyntheticConfig(**SMALL)
    alone = World(config).chunk(2)
    world = World(config)
    in_turn = [world.chunk(i) for i in range(3)][2]
    assert alone[0].to_pydict().keys() == in_turn[0].to_pydict().keys()
    assert alone[0].drop(["click"]).equals(in_turn[0].drop(["click"]))
    np.testing.assert_array_equal(alone[0]["click"], in_turn[0]["click"])
    assert alone[1].equals(in_turn[1])
    assert len(alone[0]) == 2000  # the last chunk takes what is left of 10,000


def test_rows_lie_in_order_of_time_within_the_days(events):
    times = events["time"].dropna()
    assert times.is_monotonic_increasing
    assert times.min() >= START_TIME
    assert times.max() < START_TIME + 10 * SECONDS_PER_DAY


def test_domains_have_the_stated_skew_and_share_users_and_items(events):
    shares = events["domain"].value_counts(normalize=True)
    expected = SyntheticConfig().shares
    assert expected.sum() == pytest.approx(1)
    for name, share in zip(DOMAINS, expected, strict=True):
        assert shares[name] == pytest.approx(share, abs=0.005)
    assert shares["home"] == pytest.approx(0.8, abs=0.005)
    for column in ("user_id", "item_id"):
        seen = {d: set(events[column][events["domain"] == d]) for d in DOMAINS}
        common = len(seen["home"] & seen["video"]) / len(seen["video"])
        assert common > 0.8
        assert seen["video"] - seen["food"]


def test_like_implies_click(events):
    clean = events.dropna()
    assert (clean["click"][clean["like"] == 1] == 1).all()
    assert 0.15 < clean["click"].mean() < 0.45


def test_dirty_rows_are_of_every_kind_at_the_stated_rate(events, log):
    counts = json.loads((log / "truth.json").read_text())["dirty_rows"]
    assert sum(counts.values()) == pytest.approx(120_000 * 0.002, rel=0.25)
    assert counts["malformed_line"] == 0
    assert counts["missing_user"] == events["user_id"].isna().sum()
    assert counts["missing_item"] == events["item_id"].isna().sum()
    assert counts["missing_time"] == events["time"].isna().sum()
    assert counts["nan_label"] == events["click"].isna().sum()
    assert counts["unknown_domain"] == (events["domain"] == "nowhere").sum()
    assert counts["malformed_number"] == (events["position"] == "1O").sum()
    assert set(counts) == set(DIRT)


def test_truth_is_calibrated_and_its_auc_is_what_scikit_learn_says(events, log):
    truth = pq.read_table(log / "truth").to_pandas()
    clean = truth["clean"]
    assert len(truth) == len(events)
    for task in ("click", "like"):
        mean = truth[task][clean].mean()
        assert events[task][clean].mean() == pytest.approx(mean, abs=0.005)
    best = synthetic.best_auc(log)
    home = clean & (events["domain"] == "home")
    expected = roc_auc_score(events["click"][home], truth["click"][home])
    assert best["home"]["click"] == pytest.approx(expected, abs=1e-12)
    assert min(v[task] for v in best.values() for task in v) > 0.7
    later = synthetic.best_auc(log, START_TIME + 9 * SECONDS_PER_DAY)
    assert later["home"]["click"] != best["home"]["click"]


def test_shared_taste_helps_all_domains_but_the_conflicting_one(events, log):
    # Click rate of (segment, category) in the dominant domain as the score elsewhere:
    # what a model knows that was trained without the domain.
    users = pq.read_table(log / "users.parquet").to_pandas()
    items = pq.read_table(log / "items.parquet").to_pandas()
    rows = events.dropna().merge(users).merge(items)
    rates = rows[rows["domain"] == "home"].groupby(["segment", "category"])["click"]
    rows = rows.merge(rates.mean().rename("score").reset_index())
    auc = {
        d: roc_auc_score(own["click"], own["score"])
        for d, own in rows.groupby("domain")
        if d in DOMAINS
    }
    conflict = DOMAINS[json.loads((log / "truth.json").read_text())["conflict_domain"]]
    assert auc.pop(conflict) < 0.45
    assert min(auc.values()) > 0.6


def test_conflict_can_be_left_out_and_groups_are_recorded(tmp_path):
    config = SyntheticConfig(**SMALL, conflict=False, num_domains=4, num_groups=3)
    out = synthetic.generate(tmp_path / "raw", config)
    truth = json.loads((out / "truth.json").read_text())
    assert truth["conflict_domain"] is None
    assert truth["groups"] == [0, 1, 2, 0]
    assert truth["domains"] == ["home", "video", "food", "travel"]


def test_drift_moves_click_rates_of_categories_from_day_to_day():
    def largest_move(drift):
        config = SyntheticConfig(**SMALL, drift=drift, taste=0, quality=0)
        world = World(config)
        category = dict(world.items().select([0, 1]).to_pandas().to_numpy().tolist())
        rates = []
        for index in (0, 2):  # the first four days, the last two
            events, truth, _ = world.chunk(index)
            rows = truth.to_pandas().assign(
                category=[category.get(i) for i in events["item_id"].to_pylist()]
            )
            rates.append(rows.groupby("category")["click"].mean())
        return (rates[0] - rates[1]).abs().max()

    assert largest_move(0.0) < 0.05
    assert largest_move(2.0) > 0.12


def test_json_lines_hold_the_rows_of_parquet_with_broken_lines(tmp_path):
    base = SyntheticConfig(**SMALL, dirty_rate=0.0)
    parquet = synthetic.generate(tmp_path / "p", base)
    jsonl = synthetic.generate(
        tmp_path / "j", base.model_copy(update={"format": "jsonl"})
    )
    lines = (jsonl / "events/part-00000.jsonl").read_text().splitlines()
    expected = pq.read_table(parquet / "events/part-00000.parquet").to_pylist()
    assert [json.loads(line) for line in lines] == expected
    dirty = synthetic.generate(
        tmp_path / "d",
        base.model_copy(update={"format": "jsonl", "dirty_rate": 0.05}),
    )
    broken = 0
    for path in sorted((dirty / "events").iterdir()):
        for line in path.read_text().splitlines():
            try:
                json.loads(line)
            except ValueError:
                broken += 1
    counts = json.loads((dirty / "truth.json").read_text())["dirty_rows"]
    assert broken == counts["malformed_line"] > 0


def test_truth_can_be_columns_of_the_log_or_nowhere(tmp_path):
    config = SyntheticConfig(**SMALL, truth="column")
    out = synthetic.generate(tmp_path / "c", config)
    events = pq.read_table(out / "events/part-00000.parquet")
    assert {"true_click", "true_like"} <= set(events.column_names)
    out = synthetic.generate(
        tmp_path / "n", config.model_copy(update={"truth": "none"})
    )
    assert not (out / "truth").exists()
    assert (
        "true_click"
        not in pq.read_table(out / "events/part-00000.parquet").schema.names
    )


def test_command_line_writes_a_log_with_its_spec(tmp_path, capsys):
    args = ["--out", str(tmp_path / "raw"), "--rows", "5000", "--seed", "3"]
    args += ["--set", "num_users=100", "--set", "num_domains=8"]
    assert synthetic.main(args) == 0
    spec = dataset_spec(str(tmp_path / "raw/dataset.yaml"))
    assert spec.domain.values == [*DOMAINS, "domain_6", "domain_7"]
    assert "5000 rows" in capsys.readouterr().out
    assert synthetic.main(args) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert synthetic.main([*args, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("num_userz=3", "Did you mean 'num_users'"),
        ("dominant_share=1.5", "dominant_share"),
        ("num_domains=1", "conflict needs num_domains"),
        ("num_groups=9", "num_groups must be at most"),
    ],
)
def test_command_line_names_bad_settings(tmp_path, capsys, setting, message):
    assert synthetic.main(["--out", str(tmp_path / "raw"), "--set", setting]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_overwrite_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="something else"):
        synthetic.generate(tmp_path / "raw", SyntheticConfig(**SMALL), overwrite=True)
    assert (tmp_path / "raw" / "thesis.txt").exists()


def test_killed_generator_leaves_no_half_log(tmp_path, monkeypatch):
    monkeypatch.setattr(
        World, "chunk", lambda self, index: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        synthetic.generate(tmp_path / "raw", SyntheticConfig(**SMALL))
    assert list(tmp_path.iterdir()) == []
