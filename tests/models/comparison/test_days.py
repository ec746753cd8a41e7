"""Chains of days against each other: what is walked, and what is compared."""

import json
import pathlib

import numpy as np
import pytest
import yaml

from features import registry
from features.config import ConfigError
from models import reproduce
from models.comparison import days, prepare
from models.training.config import RunConfig
from models.training.evaluate import Scores
from models.training.result import Result
from pipeline.chain import Chain

# By chain and day: logits of six rows, of which the last is of another domain.
LABELS = np.array([[1], [1], [0], [0], [0], [1]], np.float32)
LOGITS = {
    "source": {1: [4, 3, 2, 1, 0, 0], 2: [4, 3, 2, 1, 0, 0], 3: [4, 3, 2, 1, 0, 0]},
    "ours": {2: [4, 3, 2, 1, 0, 0], 3: [4, 1, 3, 2, 0, 0]},  # AUC 1 and 4 of 6 pairs
    "once": {2: [4, 1, 2, 3, 0, 0], 3: [3, 0, 4, 2, 1, 0]},  # 4 of 6 and 2 of 6 pairs
}
AUCS = {"source": [1.0, 1.0], "ours": [1.0, 4 / 6], "once": [4 / 6, 2 / 6]}


def make(**changes):
    values = {
        "name": "tiny",
        "title": "Chains",
        "data": {"dataset": "planted_ecat", "raw_dir": "logs", "overrides": ["a.b=1"]},
        "domain": "small",
        "first_day": 20240102,
        "last_day": 20240103,
        "base": {"window_days": 3, "run": {"method": "ecat", "batch_size": 8}},
        "chains": {
            "source": {"first_day": 20240101, "chain": {"run": {"method": "eta"}}},
            "ours": {"source": "source"},
            "once": {"source": "source", "source_mode": "one_time"},
        },
        "main": "ours",
    }
    return days.DaysExperiment.parse({**values, **changes}, where="test")


@pytest.fixture
def walked(monkeypatch, tmp_path):
    """Stands in for `pipeline.continual`: leaves a result and scores of every day."""
    (tmp_path / "logs").mkdir()
    calls = []

    def run(module, *arguments):
        flags = dict(a.removeprefix("--").split("=", 1) for a in arguments)
        calls.append((module, flags))
        folder = pathlib.Path(flags["workdir"])
        first, last = int(flags["first_day"]), int(flags["last_day"])
        for day in range(first, last + 1):
            leave_run(folder / str(day) / "run", folder.parent.name, day % 100)

    monkeypatch.setattr(prepare, "run_module", run)
    return calls


def leave_run(folder, label, day):
    folder.mkdir(parents=True)
    number, ones = len(LABELS), np.ones((len(LABELS), 1), np.float32)
    logits = np.array(LOGITS[label][day], np.float32)[:, None]
    served = ("big", "small")
    Scores(
        row_id=np.arange(number) + 100 * day,
        user_key=np.arange(number),
        domain=np.array([1, 1, 1, 1, 1, 0], np.int32),
        labels=LABELS,
        label_mask=ones,
        weight=ones[:, 0],
        logits=logits,
        domains=served,
        tasks=("click",),
        split="test",
    ).save(folder / "scores_test.npz")
    auc = AUCS[label][day - 2]
    cell = {"task": "click", "rows": 5, "auc": auc, "logloss": day / 10, "pcoc": 1.0}
    cells = [{**cell, "domain": "big", "auc": 0.0}, {**cell, "domain": "small"}]
    speed = {"train_rows_per_sec": 100.0 * day, "num_parameters": 10 * day}
    values = {"best_metric": None, "best_step": None, "best_epoch": None, "steps": 1}
    values |= {"epochs": 1.0, "stop_reason": "", "secs": 1.0, "peak_rss_bytes": 1}
    metrics = {"test": {"cells": cells}}
    Result(folder, metrics=metrics, metric="m", **values, **speed).save()


def test_chains_are_walked_in_order_and_read_each_other(walked, tmp_path):
    days.walk(make(), tmp_path, tmp_path, seeds=2)
    assert {module for module, _ in walked} == {"pipeline.continual"}
    folders = [pathlib.Path(flags["workdir"]) for _, flags in walked]
    assert [str(f.relative_to(tmp_path)) for f in folders] == [
        f"{label}/seed{seed}" for seed in (0, 1) for label in ("source", "ours", "once")
    ]
    begins = [flags["first_day"] for _, flags in walked]
    assert begins == ["20240101", "20240102", "20240102"] * 2
    chains = [yaml.safe_load(open(flags["config"])) for _, flags in walked]
    # One chain prepares the days, for all seeds.
    maker = str(tmp_path / "source" / "seed0")
    assert [chain.get("data_from") for chain in chains] == [None, *[maker] * 5]
    assert [chain.get("source") for chain in chains] == [
        value
        for seed in (0, 1)
        for value in (
            None,
            {"chain": str(tmp_path / f"source/seed{seed}"), "mode": "continual"},
            {"chain": str(tmp_path / f"source/seed{seed}"), "mode": "one_time"},
        )
    ]
    assert chains[3]["run"] == {"method": "eta", "batch_size": 8, "seed": 1}
    assert chains[4]["run"] == {"method": "ecat", "batch_size": 8, "seed": 1}
    assert {chain["raw_dir"] for chain in chains} == {str(tmp_path / "logs")}
    assert all(chain["overrides"] == ["a.b=1"] for chain in chains)


def test_days_that_all_chains_have_are_compared_on_the_domains_rows(walked, tmp_path):
    experiment = make()
    workdirs = days.walk(experiment, tmp_path, tmp_path, seeds=1)
    summary = days.summarise(experiment, workdirs)
    for label, aucs in AUCS.items():
        entry = summary["entries"][label]
        cells = [(c["domain"], c["task"], c["rows"]) for c in entry["cells"]]
        assert cells == [("20240102", "click", 5), ("20240103", "click", 5)]
        found = [cell["auc"]["mean"] for cell in entry["cells"]]
        assert found == pytest.approx(aucs)
        assert entry["mean_auc"]["mean"] == pytest.approx(np.mean(aucs))
        assert entry["mean_logloss"]["mean"] == pytest.approx(0.25)
        assert entry["train_rows_per_sec"] == 250.0
        assert entry["num_parameters"] == 30  # of the last day: tables grow
    assert list(summary["differences"]) == ["source", "once"]
    once = summary["differences"]["once"]
    assert once["mean"]["difference"] == pytest.approx(5 / 6 - 3 / 6)
    assert [c["difference"] for c in once["cells"]] == pytest.approx([2 / 6, 2 / 6])


def test_page_says_what_each_chain_has_and_keeps_no_folder(
    walked, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "tiny.yaml"
    text = yaml.safe_dump(make().model_dump(mode="json"), sort_keys=False)
    path.write_text(text)
    arguments = [f"--experiment={path}", f"--raw_dir={tmp_path}", "--seeds=1"]
    arguments += [f"--runs_dir={tmp_path / 'runs'}"]
    results = tmp_path / "results"
    assert reproduce.main([*arguments, f"--results_dir={results}"]) == 0
    assert "*ours" in capsys.readouterr().out
    page = (results / "tiny.md").read_text()
    assert "| **ours** | 100.00 | 66.67 | 83.33 |" in page
    assert "A column is the day trained on; its test rows are the next day's." in page
    assert "- ours - once (once), AUC x 100: +33.33" in page
    kept = (results / "tiny.json").read_text()
    assert str(tmp_path) not in kept
    assert "planted_ecat" in json.loads(kept)
    assert "tiny / planted_ecat" in (results / "overview.md").read_text()


def test_no_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"reproduce.seeds must be at least 1; got 0"):
        days.walk(make(), tmp_path, tmp_path, seeds=0)


@pytest.mark.parametrize(
    "flag", ["--data=x", "--entries=ours", "--workers=2", "--search=3"]
)
def test_flags_of_runs_are_refused_for_chains(flag, capsys):
    assert reproduce.main(["--experiment=kuairand_continual", flag]) == 1
    name = flag.strip("-").split("=")[0]
    assert f"reproduce.{name} must be left out for chains" in capsys.readouterr().err


def test_unknown_experiment_names_the_nearest_of_both_kinds(capsys):
    assert reproduce.main(["--experiment=kuairand_continuall"]) == 1
    assert "'kuairand_continual'" in capsys.readouterr().err


def test_a_file_that_is_not_there_or_no_yaml_is_told(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    assert reproduce.main([f"--experiment={path}"]) == 1
    assert f"must be an existing file; got '{path}'" in capsys.readouterr().err
    path.write_text("a: [")
    assert reproduce.main([f"--experiment={path}"]) == 1
    assert "must be valid YAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"main": "our"}, "main must be one of chains; got 'our'"),
        ({"chains": {"ours": {"source": "ours"}}}, "source must be a chain above it"),
        (
            {"chains": {"a": {}, "ours": {"first_day": 20240101}}},
            "ours.first_day must not be before that of 'a'",
        ),
    ],
)
def test_impossible_comparisons_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


@pytest.mark.parametrize("name", days.names())
def test_built_in_chains_are_what_the_pipeline_reads(name):
    experiment = days.load(name)
    raw, folder = pathlib.Path("raw"), pathlib.Path("runs")
    for label in experiment.chains:
        chain = Chain.parse(days.chain_settings(experiment, label, 0, raw, folder))
        registry.dataset_spec(chain.dataset, chain.overrides)
        run = RunConfig.parse({**chain.run, "data_dir": "data"}, where=label)
        config = run.parsed_method_config()
        if run.method == "ecat":  # what it trains for is what is compared
            assert config.target_domain == experiment.domain
        if chain.select is not None:
            assert chain.select["target_domains"] == [experiment.domain]
    assert experiment.chains[experiment.main].source_mode == "continual"
