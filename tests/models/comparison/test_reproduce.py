"""Result pages grow by data set and hold no path of the machine that made them."""

import json

import pytest

from features import processes
from models import reproduce
from models.comparison import experiment, prepare


def make():
    return experiment.Experiment.parse(
        {
            "name": "two",
            "title": "Two data sets",
            "data": {
                "first": {"dataset": "synthetic", "published": {"paper": [61.0]}},
                "second": {"dataset": "synthetic"},
            },
            "entries": {"ours": {"method": "mlp"}},
            "main": "ours",
        },
        where="test",
    )


def summary(auc):
    stats = {"mean": auc, "std": None}
    entry = {
        "cells": [{"domain": "d", "task": "t", "auc": stats}],
        "mean_auc": stats,
        "mean_logloss": {"mean": 0.5, "std": None},
        "train_rows_per_sec": None,
        "num_parameters": 7,
        "seeds": 1,
        "workdirs": ["/home/somebody/runs"],
    }
    return {"main": "ours", "entries": {"ours": entry}, "differences": {}, "search": {}}


def test_a_second_data_set_stands_beside_the_first(tmp_path):
    reproduce.write_results(make(), {"second": summary(0.7)}, tmp_path)
    page = reproduce.write_results(make(), {"first": summary(0.6)}, tmp_path)
    text = page.read_text()
    assert text.index("## first") < text.index("60.00") < text.index("## second")
    assert text.index("## second") < text.index("70.00")
    assert text.count("| paper | 61.00 |") == 1


def test_page_names_the_command_with_its_search(tmp_path):
    page = reproduce.write_results(make(), {"first": summary(0.6)}, tmp_path)
    assert "EXPERIMENT=two`." in page.read_text()
    search = {"ours": {"settings": {}, "value": 0.6, "trials": 4, "failed": 0}}
    found = {**summary(0.6), "search": search}
    reproduce.write_results(make(), {"second": found}, tmp_path)
    assert "EXPERIMENT=two SEARCH=4`." in page.read_text()


def test_no_folder_of_this_machine_is_kept(tmp_path):
    found = {**summary(0.6), "wide": summary(0.5)}
    page = reproduce.write_results(make(), {"first": found}, tmp_path)
    assert "somebody" not in page.with_suffix(".json").read_text()
    kept = json.loads(page.with_suffix(".json").read_text())
    for table in (kept["first"], kept["first"]["wide"]):
        assert table["entries"]["ours"]["num_parameters"] == 7


def test_unknown_data_set_names_the_nearest(tmp_path, capsys):
    arguments = ["--experiment=demo", "--raw_dir=x", f"--results_dir={tmp_path}"]
    assert reproduce.main([*arguments, "--data=syntetic"]) == 1
    assert "synthetic" in capsys.readouterr().err


def test_missing_raw_data_fails_with_a_status(tmp_path, capfd):
    arguments = ["--experiment=demo", f"--raw_dir={tmp_path / 'nowhere'}"]
    arguments += [f"--runs_dir={tmp_path / 'runs'}", f"--results_dir={tmp_path}"]
    assert reproduce.main(arguments) == 1
    assert f"there is no folder {tmp_path / 'nowhere'}" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "demo.json").exists()


def test_raw_data_that_is_refused_fails_with_a_status(tmp_path, capfd):
    arguments = ["--experiment=demo", f"--raw_dir={tmp_path}"]
    arguments += [f"--runs_dir={tmp_path / 'runs'}", f"--results_dir={tmp_path}"]
    assert reproduce.main(arguments) == 1
    assert "must end with status 0" in capfd.readouterr().err
    assert not (tmp_path / "demo.json").exists()


def test_raw_data_that_is_not_given_is_asked_for(tmp_path, capsys):
    assert reproduce.main(["--experiment=demo", f"--runs_dir={tmp_path}"]) == 1
    assert "raw_dir must be the folder" in capsys.readouterr().err


def test_a_planted_log_is_generated_prepared_and_its_jobs_done_once(
    tmp_path, monkeypatch
):
    data = experiment.PreparedData.parse(
        {
            "dataset": "planted_cctl",
            "preset": "planted_cctl",
            "overrides": ["a.b=1"],
            "jobs": [{"module": "some.job", "arguments": ["--x=1"], "makes": "more"}],
        }
    )
    commands = []

    def run(command):
        commands.append(command[2:])
        made = {
            "features.synthetic": "raw/truth.json",
            "pipeline.preprocess": "data/_SUCCESS",
            "some.job": "data/more/_SUCCESS",
        }[command[2]]
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).touch()
        return 0

    monkeypatch.setattr(processes, "run", run)
    for _ in range(2):
        assert prepare.prepare(data, None, tmp_path) == tmp_path / "data"
    raw, prepared = f"--raw_dir={tmp_path}/raw", f"--data_dir={tmp_path}/data"
    assert commands == [
        ["features.synthetic", "--preset=planted_cctl", f"--out={tmp_path}/raw"],
        ["pipeline.preprocess", "--dataset=planted_cctl", raw, "--set=a.b=1", prepared],
        ["some.job", prepared, "--x=1"],
    ]


def test_a_preset_and_a_raw_folder_exclude_each_other():
    values = {"dataset": "synthetic", "preset": "planted_cctl", "raw_dir": "x"}
    with pytest.raises(ValueError, match="exclude each other"):
        experiment.PreparedData.parse(values)


@pytest.mark.parametrize(
    "name",
    ["movielens_m3oe", "kuairand_m3oe", "overview_movielens", "overview_epinions_time"],
)
def test_experiments_on_real_data_compare_with_every_baseline(name):
    found = experiment.load_experiment(name)
    methods = {entry.method for entry in found.entries.values()}
    assert methods >= {"m3oe", "mlp", "shared_bottom", "mmoe", "ple", "star"}
    assert found.entries[found.target_only].form == "mtl"
