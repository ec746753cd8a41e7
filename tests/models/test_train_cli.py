"""python -m models.train and python -m models.evaluate, called in this process."""

import json

import numpy as np
import pytest

from models import evaluate, registry, train
from models.training.evaluate import Scores
from tests.helpers import tiny_dataset
from tests.models.training import fakes


@pytest.fixture(autouse=True)
def _fake_method(monkeypatch):
    monkeypatch.setitem(registry.METHODS, "fake", "tests.models.training.fakes:Fake")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dataset.make_dataset(
        tmp_path_factory.mktemp("data") / "a", rows=400, domains=2
    )


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "w"
    arguments = ["--method", "fake", "--data_dir", str(data.data_dir)]
    arguments += ["--workdir", str(workdir), "--max_epochs", "1", "--batch_size", "64"]
    with fakes.registered():
        assert train.main([*arguments, "--set", "form=mtl"]) == 0
    return arguments, workdir


def test_train_prints_both_tables_and_workdir(run, capsys):
    arguments, workdir = run
    assert train.main([*arguments, "--set", "form=mtl"]) == 0  # finished: prints again
    printed = capsys.readouterr().out
    assert printed.count("mean of cells") == 2
    assert printed.count("d1               task1") == 2
    assert f"workdir: {workdir}" in printed


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (["--set", "batchsize=3"], "Did you mean 'batch_size'"),
        (["--set", "metric=aucc"], "metric must be one of"),
        (["--set", "method_config.dropot=1"], "Did you mean 'dropout'"),
        (["--method", "m3o"], "Did you mean 'm3oe'"),
        (["--data_dir", "/nowhere"], "/nowhere is missing"),
        (["--set", "domains=[d9]"], "got 'd9'"),
        ([], "differs in form: 'mtl' there, 'mdmt' asked"),
    ],
)
def test_train_explains_user_errors(run, capsys, tmp_path, extra, text):
    arguments, workdir = run
    if extra:
        arguments = [*arguments, "--workdir", str(tmp_path / "w")]
    assert train.main([*arguments, *extra]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def test_train_needs_a_method_or_config(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--workdir", str(tmp_path)])
    assert stopped.value.code == 2


def test_flags_win_over_file_and_set_over_flags(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("method: mlp\ndata_dir: a\nseed: 1\nbatch_size: 2\nform: mdl\n")
    arguments = ["--config", str(path), "--workdir", "w", "--seed", "3"]
    arguments += ["--batch_size", "4", "--set", "batch_size=8", "--profile"]
    config = train.run_config(train._parser().parse_args(arguments))
    assert (config.seed, config.batch_size, config.form) == (3, 8, "mdl")
    assert config.profile.num_steps == train.PROFILE_STEPS


def test_evaluate_equals_training_result(run, capsys, tmp_path):
    _, workdir = run
    out, path = tmp_path / "out.json", tmp_path / "s.npz"
    arguments = ["--workdir", str(workdir), "--json", str(out), "--scores", str(path)]
    assert evaluate.main(arguments) == 0
    expected = json.loads((workdir / "result.json").read_text())["metrics"]["test"]
    assert json.loads(out.read_text()) == {"test": expected}
    np.testing.assert_array_equal(
        Scores.load(path).logits, Scores.load(workdir / "scores_test.npz").logits
    )
    assert "mean of cells" in capsys.readouterr().out


def test_evaluate_takes_other_rows_of_the_same_fingerprint(run, tmp_path, capsys):
    _, workdir = run
    other = tiny_dataset.make_dataset(tmp_path / "b", rows=600, seed=5, domains=2)
    arguments = ["--workdir", str(workdir), "--data_dir", str(other.data_dir)]
    assert evaluate.main(arguments) == 0
    assert f"{other.info.num_rows('test'):>10,}" in capsys.readouterr().out


def test_evaluate_refuses_other_fingerprint_and_unfinished_run(run, tmp_path, capsys):
    _, workdir = run
    other = tiny_dataset.make_dataset(tmp_path / "c", rows=100, domains=3)
    arguments = ["--workdir", str(workdir), "--data_dir", str(other.data_dir)]
    assert evaluate.main(arguments) == 1
    assert "must have the fingerprint" in capsys.readouterr().err
    assert evaluate.main(["--workdir", str(tmp_path)]) == 1
    assert "Is this a workdir of" in capsys.readouterr().err
