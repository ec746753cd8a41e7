"""That the planted structure is measurably in each log, by tables of click rates.

The score of a row is the click rate of its (segment, category) among some other rows:
what a small model could learn from those.
"""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from features import synthetic
from features.config import ConfigError
from features.registry import dataset_spec
from features.synthetic_presets import PRESETS, preset

ROWS = 60_000
PRIOR_ROWS = 5  # that many rows of the mean rate are added to each cell


class Log:
    """A generated log with its side tables and truth joined, row by row."""

    def __init__(self, folder, **changes):
        self.name = folder.name
        config = preset(folder.name, **{"rows": ROWS, "dirty_rate": 0.0} | changes)
        self.folder = synthetic.generate(folder, config)
        self.config = config
        self.facts = json.loads((folder / "truth.json").read_text())
        rows = pq.read_table(folder / "events").to_pandas()
        for side in ("users", "items"):
            table = pq.read_table(folder / f"{side}.parquet").to_pandas()
            rows = rows.merge(table, on=f"{side[:-1]}_id", how="left")
        truth = pq.read_table(folder / "truth").to_pandas()
        rows["rule"], rows["flipped"] = truth["rule"], truth["flipped"]
        rows["domain"], rows["true_click"] = truth["domain"], truth["click"]
        rows["day"] = (rows["time"] - rows["time"].min()) // 86_400
        self.rows = rows


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = Log(tmp_path_factory.mktemp("raw") / name)
        return made[name]

    return get


def transfer(train, test, label="click"):
    """Returns the AUC on `test` of click rates by (segment, category) in `train`."""
    cells = train.groupby(["segment", "category"])[label].agg(["sum", "size"])
    rates = cells["sum"] + PRIOR_ROWS * train[label].mean()
    rates = (rates / (cells["size"] + PRIOR_ROWS)).rename("score").reset_index()
    scored = test.merge(rates, how="left")
    return roc_auc_score(scored[label], scored["score"].fillna(train[label].mean()))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_has_its_spec_and_a_best_reachable_auc_in_every_domain(name, logs):
    log = logs(name)
    registered = dataset_spec(name)
    written = yaml.safe_load((log.folder / "dataset.yaml").read_text())
    assert written == registered.model_dump(mode="json")
    best = synthetic.best_auc(log.folder)
    assert list(best) == list(log.config.domains)
    home = log.rows[log.rows["domain"] == 0]
    expected = roc_auc_score(home["click"], home["true_click"])
    assert best["home"]["click"] == pytest.approx(expected, abs=1e-12)
    assert min(values["click"] for values in best.values()) > 0.7
    assert log.rows["click"].mean() == pytest.approx(
        log.rows["true_click"].mean(), abs=0.01
    )


def test_ssctl_hidden_rows_follow_a_small_domain_the_others_do_not(logs):
    rows = logs("planted_ssctl").rows
    home = rows["domain"] == 0
    hidden = home & (rows["rule"] != 0)
    assert home.mean() == pytest.approx(0.8, abs=0.01)
    assert hidden[home].mean() == pytest.approx(0.5, abs=0.02)
    assert (rows["rule"] == rows["domain"])[~home].all()
    for domain in range(1, 5):
        own = rows[rows["domain"] == domain]
        follows = transfer(rows[hidden & (rows["rule"] == domain)], own)
        others = transfer(rows[home & ~hidden], own)
        assert follows > others + 0.04


def test_ssctl_hidden_rows_are_told_by_user_and_item_together_only(logs):
    log = logs("planted_ssctl")
    rows = log.rows
    home, hidden = rows["domain"] == 0, rows["rule"] != rows["domain"]
    owner = {
        kind: {
            v: d
            for d, own in log.facts["planted"]["typical"].items()
            for v in own[kind]
        }
        for kind in ("segment", "category")
    }
    user = rows["segment"].map(owner["segment"])
    item = rows["category"].map(owner["category"])
    assert ((user == item) == hidden)[home].all()
    # One feature alone does not tell: hidden or not, each value is about as frequent.
    for side in (user, item):
        parts = [
            side[home & which].value_counts(normalize=True)
            for which in (hidden, ~hidden)
        ]
        assert (parts[0] - parts[1]).abs().max() < 0.05
    # A classifier of domains that saw small domains only is sure of hidden rows.
    small = rows[~home]
    scores = [
        np.log(rows["segment"].map(own["segment"].value_counts(normalize=True)))
        + np.log(rows["category"].map(own["category"].value_counts(normalize=True)))
        for _, own in small.groupby("domain")
    ]
    chances = np.exp(np.nan_to_num(np.stack(scores), nan=-20.0))  # naive Bayes
    sure = pd.Series(chances.max(axis=0) / chances.sum(axis=0))
    assert sure[home & hidden].mean() > 0.9
    assert sure[home & ~hidden].mean() < 0.75


def test_ssctl_rewards_taking_the_hidden_rows_and_no_others(tmp_path):
    rows = Log(tmp_path / "planted_ssctl", rows=250_000).rows
    test, train = rows[rows["day"] >= 8], rows[rows["day"] < 8]
    gains = []
    for domain in range(1, 5):
        own = test[test["domain"] == domain]
        single = transfer(train[train["domain"] == domain], own)
        mixed = transfer(train, own)
        taken = transfer(train[train["rule"] == domain], own)
        gains.append((taken - single, taken - mixed))
    assert np.mean(gains, axis=0).min() > 0.007


def test_aread_has_twelve_minor_domains_and_tastes_agree_inside_groups(logs):
    log = logs("planted_aread")
    shares = log.rows["domain"].value_counts(normalize=True).sort_index()
    assert (log.config.shares < 0.02).sum() == 12
    assert (shares < 0.022).sum() >= 12
    groups = log.facts["groups"]
    assert sorted(set(groups)) == [0, 1, 2, 3]
    by_domain = [rows for _, rows in log.rows.groupby("domain")]
    inside, across = [], []
    for a in range(8):
        for b in range(8):
            if a != b:
                same = groups[a] == groups[b]
                (inside if same else across).append(
                    transfer(by_domain[a], by_domain[b])
                )
    assert np.mean(inside) > np.mean(across) + 0.05
    assert min(inside) > 0.55


def test_ecat_source_helps_inside_the_unflipped_segments_and_harms_outside(logs):
    log = logs("planted_ecat")
    rows, flipped = log.rows, log.facts["planted"]["flipped"]["segment"]
    source = rows["domain"] == 0
    outside = rows["segment"].isin(flipped)
    assert (rows["flipped"] == (source & outside)).all()
    assert rows["flipped"][source].mean() == pytest.approx(0.6, abs=0.08)
    assert (~outside)[~source].mean() == pytest.approx(0.5, abs=0.02)
    target = rows[~source]
    assert transfer(rows[source], target[~outside[~source]]) > 0.62
    assert transfer(rows[source], target[outside[~source]]) < 0.42
    only_target = transfer(
        rows[~source & (rows["day"] < 10)], rows[~source & (rows["day"] >= 10)]
    )
    merged = transfer(rows[rows["day"] < 10], rows[~source & (rows["day"] >= 10)])
    chosen = transfer(
        rows[(rows["day"] < 10) & ~rows["flipped"]], rows[~source & (rows["day"] >= 10)]
    )
    assert merged < only_target < chosen


def test_ecat_target_users_lead_to_unflipped_source_rows(logs):
    rows = logs("planted_ecat").rows
    source = rows["domain"] == 0
    seeds = set(rows["user_id"][~source])
    selected = source & rows["user_id"].isin(seeds)
    assert selected.sum() < 0.7 * source.sum()
    assert rows["flipped"][selected].mean() < rows["flipped"][source].mean() - 0.2


def test_ecat_tastes_turn_by_day(logs):
    rows = logs("planted_ecat").rows
    clean = rows[~rows["flipped"]]
    last = clean[clean["day"] >= 12]
    old = transfer(clean[clean["day"] < 3], last)
    recent = transfer(clean[(clean["day"] >= 9) & (clean["day"] < 12)], last)
    assert recent > old + 0.03


def test_m3oe_has_one_conflicting_domain_and_task(logs):
    rows = logs("planted_m3oe").rows
    by_domain = [own for _, own in rows.groupby("domain")]
    assert transfer(by_domain[0], by_domain[2]) > 0.6
    assert transfer(by_domain[0], by_domain[1]) < 0.4
    for own in by_domain:
        liked = own[own["click"] == 1]
        assert transfer(own, liked.assign(click=liked["like"])) < 0.45


def test_cctl_half_of_the_source_is_flipped_by_category_and_harms_the_target(logs):
    log = logs("planted_cctl")
    rows, flipped = log.rows, log.facts["planted"]["flipped"]["category"]
    source = rows["domain"] == 0
    inside = rows["category"].isin(flipped)
    assert (rows["flipped"] == (source & inside)).all()
    assert rows["flipped"][source].mean() == pytest.approx(0.5, abs=0.04)
    clicks = rows[source].groupby("flipped")["click"].mean()
    assert clicks[True] == pytest.approx(clicks[False], abs=0.15)
    target = rows[~source]
    assert transfer(rows[source & inside], target[inside[~source]]) < 0.4
    assert transfer(rows[source & ~inside], target[~inside[~source]]) > 0.6
    late = target[target["day"] >= 8]
    early = rows[rows["day"] < 8]
    mixed, clean = transfer(early, late), transfer(early[~early["flipped"]], late)
    only_target = transfer(early[early["domain"] == 1], late)
    assert mixed < only_target
    assert mixed < clean


def test_command_line_takes_a_preset_and_changes_to_it(tmp_path, capsys):
    args = ["--out", str(tmp_path / "raw"), "--preset", "planted_cctl"]
    assert synthetic.main([*args, "--rows", "2000", "--set", "flip_share=0.3"]) == 0
    facts = json.loads((tmp_path / "raw/truth.json").read_text())
    assert facts["config"]["flip_share"] == 0.3
    assert facts["config"]["rows"] == 2000
    assert facts["config"]["name"] == "planted_cctl"
    assert dataset_spec(str(tmp_path / "raw/dataset.yaml")).name == "planted_cctl"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("planted_ssctl", {"typical": 0.0}, "hidden_share needs typical"),
        ("planted_ssctl", {"num_domains": 2}, "at least two small domains"),
        ("planted_ssctl", {"flip_by": "category"}, "no typical segments"),
        ("planted_cctl", {"inside": 0.5}, "inside needs flip_by=segment"),
        ("planted_ecat", {"num_domains": 1}, "needs a small domain"),
    ],
)
def test_settings_that_cannot_be_planted_are_refused_in_words(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        preset(name, **changes)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(LookupError, match="Did you mean 'planted_ssctl'"):
        preset("planted_sctl")


def test_same_seed_gives_the_same_planted_log_and_another_seed_another(tmp_path):
    def bytes_of(folder, **changes):
        config = preset("planted_ssctl", rows=3000, **changes)
        out = synthetic.generate(tmp_path / folder, config)
        return (out / "events/part-00000.parquet").read_bytes()

    assert bytes_of("a") == bytes_of("b")
    assert bytes_of("a2", seed=1) != bytes_of("b2")
