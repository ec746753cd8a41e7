"""`compare` as a whole on the tiny data set: runs, resumes, summary, report."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent import futures

import pytest
import yaml

from models import compare, registry, train
from models.comparison import experiment, report, runner, table
from models.training.workdir import WorkdirError
from tests.helpers import tiny_dataset
from tests.models.training import fakes

PAPER = {"paper": [50.0] * 4}
needs_two = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="runs at a time need two processors"
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "tiny"
    tiny_dataset.make_dataset(folder, domains=2)
    return str(folder)


def make(**changes):
    values = {
        "name": "tiny",
        "title": "Two sizes <of> one method",
        "data": {"tiny": {"dataset": "tiny"}},
        "base": {
            "batch_size": 128,
            "max_epochs": 1,
            "method_config": {"optimizer": {"dense": {"learning_rate": 0.01}}},
        },
        "entries": {
            "big": {"method": "mlp", "method_config": {"hidden_units": [8]}},
            "alone": {
                "method": "mlp",
                "form": "mtl",
                "method_config": {"hidden_units": [4], "domain_feature": False},
            },
        },
        "main": "big",
        "target_only": "alone",
    }
    return experiment.Experiment.parse({**values, **changes}, where="test")


@pytest.fixture(scope="module")
def done(data_dir, tmp_path_factory):
    """Two entries, two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, compare.compare(make(), data_dir, folder, seeds=2, references=PAPER)


def test_every_entry_has_every_seed(done):
    folder, summary = done
    assert {k: v["seeds"] for k, v in summary["entries"].items()} == {
        "big": 2,
        "alone": 2,
    }
    for label in ("big", "alone"):
        for seed in (0, 1):
            found = json.loads((folder / label / f"seed{seed}/config.json").read_text())
            assert found["run"]["seed"] == seed
            assert found["run"]["method_config"]["optimizer"]["dense"][
                "learning_rate"
            ] == pytest.approx(0.01)


@needs_two
def test_runs_at_a_time_equal_runs_one_by_one(done, data_dir, tmp_path):
    compare.compare(make(), data_dir, tmp_path, seeds=2, labels=("big",), workers=2)
    for seed in ("seed0", "seed1"):
        one, two = (
            json.loads((folder / "big" / seed / "result.json").read_text())
            for folder in (done[0], tmp_path)
        )
        for a, b in zip(
            one["metrics"]["test"]["cells"],
            two["metrics"]["test"]["cells"],
            strict=True,
        ):
            assert b["auc"] == pytest.approx(a["auc"], abs=1e-6)
            assert b["rows"] == a["rows"]


def test_finished_runs_are_found_again(done, data_dir, monkeypatch):
    monkeypatch.setattr(runner, "train", None)  # a call would fail
    monkeypatch.setattr(runner, "_start", None)
    folder, summary = done
    again = compare.compare(make(), data_dir, folder, seeds=2, references=PAPER)
    assert again["entries"] == summary["entries"]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=needs_two)])
def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(
    done, data_dir, workers
):
    changed = make(base={**make().base, "batch_size": 64})
    with pytest.raises(WorkdirError, match="batch_size: 128 there, 64 asked"):
        compare.compare(changed, data_dir, done[0], seeds=2, workers=workers)


def test_differences_name_both_references_and_every_cell(done):
    _, summary = done
    assert summary["differences"]["target_only"]["label"] == "alone"
    assert summary["differences"]["best_baseline"]["label"] == "alone"
    cells = summary["differences"]["target_only"]["cells"]
    assert [(c["domain"], c["task"]) for c in cells] == [
        ("d0", "task0"),
        ("d0", "task1"),
        ("d1", "task0"),
        ("d1", "task1"),
    ]


def test_every_entry_stands_against_the_target_only_one(done):
    _, summary = done
    assert list(summary["transfer"]) == ["big"]  # not the reference itself
    found = summary["transfer"]["big"]
    whole = summary["differences"]["target_only"]
    assert found["mean"] == whole["mean"]
    assert found["alarm"] == whole["alarm"] == table.alarm(whole)
    ours, theirs = (summary["entries"][k]["mean_auc"]["mean"] for k in ("big", "alone"))
    assert found["rimp"] == pytest.approx(ours / theirs - 1)


def test_only_named_domains_are_compared(done, data_dir):
    folder, whole = done
    results = runner.run_entries(make(), data_dir, folder, seeds=2)
    summary = table.summarise(make(domains=["d1"]), results)
    for label, entry in summary["entries"].items():
        other = whole["entries"][label]
        assert entry["cells"] == other["cells"][2:]
        means = [cell["auc"]["mean"] for cell in other["cells"][2:]]
        assert entry["mean_auc"]["mean"] == pytest.approx(sum(means) / 2)
    both, one = (s["differences"]["target_only"] for s in (whole, summary))
    for cell, other in zip(one["cells"], both["cells"][2:], strict=True):
        assert cell == pytest.approx(other)
    with pytest.raises(LookupError, match="experiment.domains.*d7"):
        table.summarise(make(domains=["d7"]), results)


def test_runs_that_stop_on_domain_auc_are_compared_by_it(done, data_dir):
    folder, whole = done
    results = runner.run_entries(make(), data_dir, folder, seeds=2)
    results = {
        label: [dataclasses.replace(run, metric="domain_auc") for run in runs]
        for label, runs in results.items()
    }
    # Validation ranks entries by the same average: that of the metric table.
    summary = table.summarise(make(), results)
    assert (whole["average"], summary["average"]) == ("mean_auc", "domain_auc")
    aucs = {}
    for label, runs in results.items():
        entry = summary["entries"][label]
        for split, value in (
            ("test", entry["domain_auc"]["mean"]),
            ("validation", entry["validation"]),
        ):
            found = [run.metrics[split]["domain_auc"][""] for run in runs]
            assert value == pytest.approx(sum(found) / 2)
        aucs[label] = entry["domain_auc"]["mean"]
        assert entry["domain_auc"] != entry["mean_auc"]
    gain = summary["differences"]["target_only"]["mean"]["difference"]
    assert gain == pytest.approx(aucs["big"] - aucs["alone"])
    assert gain != whole["differences"]["target_only"]["mean"]["difference"]
    one = {"big": results["big"], "alone": whole_runs(results["alone"])}
    assert table.summarise(make(), one)["average"] == "mean_auc"


def whole_runs(runs):
    """The runs, as if they had stopped on the mean over cells."""
    return [dataclasses.replace(run, metric="mean_domain_auc") for run in runs]


def test_domains_that_an_entry_does_not_serve_are_left_out(
    data_dir, tmp_path, monkeypatch
):
    monkeypatch.setitem(registry.METHODS, "fake", "tests.models.training.fakes:Fake")
    entries = {
        "one": {"method": "fake", "method_config": {"serves": "d1"}},
        "all": {"method": "mlp", "method_config": {"hidden_units": [4]}},
    }
    experiment = make(entries=entries, main="one", target_only=None)
    summary = compare.compare(experiment, data_dir, tmp_path, seeds=1)
    for entry in summary["entries"].values():
        assert [cell["domain"] for cell in entry["cells"]] == ["d1", "d1"]
    assert summary["differences"]["best_baseline"]["cells"][0]["domain"] == "d1"
    assert list(summary["wide"]["entries"]) == ["all"]
    assert len(summary["wide"]["entries"]["all"]["cells"]) == 4
    page = (tmp_path / "report.html").read_text()
    assert "The entries that serve all domains" in page


def test_best_baseline_is_of_another_method_where_there_is_one():
    made = make(
        entries={
            "big": {"method": "mlp"},
            "variant": {"method": "mlp"},
            "low": {"method": "mmoe"},
            "high": {"method": "ple"},
            "undefined": {"method": "star"},
        },
        target_only=None,
    )
    auc = {"big": 0.6, "variant": 0.9, "low": 0.5, "high": 0.7, "undefined": None}
    entries = {k: {"validation": v} for k, v in auc.items()}

    def best(*labels):
        return table._best_baseline(made, {k: entries[k] for k in labels})

    assert best(*entries) == "high"
    assert best("big", "variant", "undefined") == "variant"
    assert best("big", "undefined") is None


def test_alarm_tells_harm_from_gain_and_noise():
    cells = [
        {"domain": "a", "task": "t", "difference": -0.1, "p_value": 0.01},
        {"domain": "b", "task": "t", "difference": 0.1, "p_value": 0.05},
        {"domain": "c", "task": "t", "difference": -0.1, "p_value": 0.051},
        {"domain": "d", "task": "t", "difference": -0.1, "p_value": None},
    ]
    assert table.alarm({"cells": cells}) == {
        "hurt": ["a/t"],
        "helped": ["b/t"],
        "unclear": ["c/t", "d/t"],
    }


def test_report_is_one_file_with_table_and_curves(done):
    folder, _ = done
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "Two sizes &lt;of&gt; one method" in page
    assert "paper" in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page), "nothing is loaded"
    assert len(report.history_paths(folder / "alone" / "seed0")) == 2
    assert len(report.history_paths(folder / "big" / "seed0")) == 1


def test_report_shows_audits_and_leaves_them_as_they_are(done, data_dir):
    folder, _ = done
    audit = folder / "big" / "seed0" / "audit_weight.csv"
    content = "source,value,rows,mean_weight\nd0,,4,0.5\nd0,1,4,0.5\n"
    audit.write_text(content)
    (folder / "report.html").unlink()
    compare.compare(make(), data_dir, folder, seeds=2, references=PAPER)
    assert audit.read_text() == content
    assert "Mean weight of big over training" in (folder / "report.html").read_text()
    audit.unlink()
    compare.compare(make(), data_dir, folder, seeds=2, references=PAPER)


@pytest.mark.parametrize("chosen", [(), ("reader",)])
def test_a_source_is_trained_before_the_entries_that_read_it(
    chosen, tmp_path, data_dir, monkeypatch
):
    entries = {
        "reader": {"method": "ecat", "source": "big"},
        "big": {"method": "eta"},
    }
    if chosen:
        entries["other"] = {"method": "mlp"}  # nobody asks for it
    made = make(entries=entries, main="reader", target_only=None)
    started = []
    monkeypatch.setattr(
        runner, "run_all", lambda runs, **_: started.append([f for _, f in runs])
    )
    runner.run_entries(made, data_dir, tmp_path, seeds=2, labels=chosen)
    both = [
        [tmp_path / name / f"seed{i}" for i in (0, 1)] for name in ("big", "reader")
    ]
    assert started == both
    config = made.run_config("reader", data_dir, 1, tmp_path)
    source = config.method_config["source_workdir"]
    assert source == str(tmp_path / "big" / "seed1")


@pytest.mark.parametrize("source", ["bigg", "reader"])
def test_a_source_must_be_a_run_of_its_own(source):
    entries = {
        "reader": {"method": "ecat", "source": source},
        "big": {"method": "eta"},
    }
    with pytest.raises(ValueError, match="entries.reader.source must be an entry"):
        make(entries=entries, main="reader", target_only=None)


def test_no_run_begins_past_the_time_limit(data_dir, tmp_path):
    summary = compare.compare(make(), data_dir, tmp_path, seeds=1, time_limit_secs=1e-9)
    assert summary["entries"] == {}
    assert not (tmp_path / "report.html").exists()


@needs_two
def test_a_failing_run_names_itself_and_ends_the_others(
    data_dir, tmp_path, monkeypatch
):
    started = []

    def start(config, folder, processors):
        folder.mkdir(parents=True)
        (folder / runner.LOG_FILE).write_text("before\nno such domain: nowhere\n")
        command = ["sleep", "60"] if started else ["sh", "-c", "sleep 1; exit 3"]
        started.append(subprocess.Popen(command))
        assert len(processors) == len(os.sched_getaffinity(0)) // 2
        return started[-1]

    monkeypatch.setattr(runner, "_start", start)
    expected = "seed0 must end with status 0; got status 3; .*no such domain.*train.log"
    with pytest.raises(RuntimeError, match=expected):
        compare.compare(make(), data_dir, tmp_path, seeds=2, workers=2)
    assert [process.poll() for process in started] == [3, -signal.SIGTERM]


@needs_two
def test_a_killed_run_names_the_signal(data_dir, tmp_path, monkeypatch):
    def start(config, folder, processors):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / runner.LOG_FILE).write_text("step 3\n")
        return subprocess.Popen(["sh", "-c", "kill -9 $$"])

    monkeypatch.setattr(runner, "_start", start)
    with pytest.raises(RuntimeError, match=r"got signal 9 \(Killed\).*memory.*step 3"):
        runner.run_all([(fakes.config(data_dir), tmp_path / "run")] * 2, workers=2)


@needs_two
def test_a_worker_that_diverges_need_not_end_the_others(
    data_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(registry.METHODS, "fake", "tests.models.training.fakes:Fake")
    config = fakes.config(data_dir, method_config={"nan_from_step": 2})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    status = train.main([f"--config={path}", f"--workdir={tmp_path / 'alone'}"])
    ending = capsys.readouterr().err  # what a worker leaves in its log
    runs = [(config, tmp_path / name) for name in ("bad", "good")]

    def start(_, folder, processors):
        folder.mkdir()
        (folder / runner.LOG_FILE).write_text(ending)
        code = status if folder.name == "bad" else 0
        return subprocess.Popen(["sh", "-c", f"exit {code}"])

    monkeypatch.setattr(runner, "_start", start)
    found = runner.run_all(runs, workers=2, may_diverge=True)
    assert list(found) == [tmp_path / "bad"]
    assert found[tmp_path / "bad"].startswith("loss must be finite; it was not at step")
    for _, folder in runs:
        shutil.rmtree(folder)
    with pytest.raises(RuntimeError, match="bad must end with status 0; got status 1"):
        runner.run_all(runs, workers=2)


def test_a_run_ends_when_nobody_waits_for_it_any_more(monkeypatch, tmp_path):
    program, begun = tmp_path / "python", tmp_path / "begun"
    program.write_text(f"#!/bin/sh\ntouch {begun}\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    config, processors = fakes.config("data"), os.sched_getaffinity(0)

    def start():
        process = runner._start(config, tmp_path / "run", processors)
        while not begun.exists() and process.poll() is None:
            time.sleep(0.01)
        return process

    # Linux tells a child of the end of the thread that made it, as kill -9 ends all.
    with futures.ThreadPoolExecutor(1) as pool:
        task = pool.submit(start)
        assert task.result().poll() is None
    assert task.result().wait(timeout=10) == -signal.SIGTERM


@pytest.mark.parametrize("workers", [0, 10_000])
def test_impossible_number_of_workers_is_an_error(data_dir, tmp_path, workers):
    with pytest.raises(ValueError, match=f"workers must be 1 to .*got {workers}"):
        compare.compare(make(), data_dir, tmp_path, seeds=1, workers=workers)


def test_unknown_entry_names_the_nearest(data_dir, tmp_path):
    with pytest.raises(LookupError, match="'alone'"):
        compare.compare(make(), data_dir, tmp_path, seeds=1, labels=("alon",))


def test_main_must_be_an_entry():
    with pytest.raises(ValueError, match="main must be an entry; got 'bog'.*'big'"):
        make(main="bog")


def test_settings_of_an_entry_go_over_the_common_ones():
    values = make(
        base={"method_config": {"optimizer": {"dense": {"l2": 0.5}}}, "batch_size": 7},
        entries={
            "a": {
                "method": "mlp",
                "run": {"batch_size": 9},
                "method_config": {"optimizer": {"dense": {"learning_rate": 0.2}}},
            }
        },
        main="a",
        target_only=None,
    ).run_config("a", "x", 3)
    assert values.batch_size == 9
    assert values.seed == 3
    assert values.method_config == {
        "optimizer": {"dense": {"l2": 0.5, "learning_rate": 0.2}}
    }


def test_built_in_experiments_are_valid_and_name_known_data_sets():
    from features import registry as datasets

    names = [path.stem for path in experiment.FOLDER.glob("*.yaml")]
    assert "demo" in names
    for name in names:
        found = experiment.load_experiment(name)
        assert found.name == name
        for data in found.data.values():
            assert data.dataset in datasets.DATASETS
        for label in found.entries:
            found.run_config(label, "x", 0).parsed_method_config()


def test_references_of_another_form_are_an_error(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="must be a JSON object of lists.*list"):
        compare.read_references(path)
