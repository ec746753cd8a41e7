"""A run that goes on from another: old rows kept bit for bit, new rows beside them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from features.dataset import Dataset
from features.vocab import Vocab
from models.layers.grown_tables import GrowthError
from models.training import trainer, warm_start
from models.training.checkpoint import Checkpoints, RunState
from models.training.config import RunConfig
from models.training.evaluate import Scores
from models.training.result import scores_path
from tests.helpers import tiny_dataset

NEW_ITEMS = 7


def config(dataset, **changes):
    values = {
        "method": "mlp",
        "method_config": {
            "hidden_units": [8],
            "optimizer": {"embedding": {"kind": "lazy_adam", "learning_rate": 0.02}},
        },
        "data_dir": str(dataset.data_dir),
        "batch_size": 64,
        "max_epochs": 1,
    }
    return RunConfig.parse({**values, **changes})


def grown(dataset, folder, *, first=(), last=NEW_ITEMS):
    """The same rows with a longer item vocabulary."""
    shutil.copytree(dataset.data_dir, folder)
    fitted = dataset.info.fitted
    names = [*first, *fitted.vocabs["item_id"].array.to_pylist()]
    names += [f"new{i}" for i in range(last)]
    extra = np.zeros(len(first) + last, np.float32)
    popularity = np.append(fitted.popularity["item_popularity"], extra)
    info = dataclasses.replace(
        dataset.info,
        fitted=dataclasses.replace(
            fitted,
            vocabs={**fitted.vocabs, "item_id": Vocab(names, version=2)},
            popularity={"item_popularity": popularity},
        ),
    )
    info.save(folder)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset.make_dataset(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def first_run(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    trainer.train(config(dataset), folder)
    method = trainer.make_method(config(dataset), dataset)
    assert Checkpoints(folder, method, RunState(), keep=1).restore()
    return folder, method


def table(method, name, slot=None):
    variable, first, last = method.model.embeddings.table_rows()[name]
    if slot is not None:
        variable = method.optimizers["embedding"].slots(variable)[slot]
    return variable.numpy()[first:last]


def started(dataset, workdir, first_run, **changes):
    """A method as it is before its first step."""
    method = trainer.make_method(config(dataset, **changes), dataset)
    return method, warm_start.warm_start(method, dataset, first_run[0])


def test_same_data_gives_every_value_back(dataset, first_run, tmp_path):
    method, report = started(dataset, tmp_path, first_run)
    before = first_run[1]
    pairs = [*zip(before.model.variables, method.model.variables, strict=True)]
    for name, optimizer in before.optimizers.items():
        pairs += zip(
            optimizer.variables, method.optimizers[name].variables, strict=True
        )
    for old, new in pairs:
        np.testing.assert_array_equal(new.numpy(), old.numpy(), err_msg=old.name)
    assert int(method.optimizers["dense"].iterations) == 13  # steps of the first run
    assert (report.grown, report.new) == ({}, [])
    assert report.restored >= len(before.model.variables)


@pytest.mark.parametrize("slot", [None, "m", "v"])
def test_old_rows_of_a_grown_table_keep_value_and_slots(
    dataset, first_run, tmp_path, slot
):
    more = grown(dataset, tmp_path / "more")
    method, report = started(more, tmp_path, first_run)
    untouched = trainer.make_method(config(more), more)
    assert report.grown == {"item_id": (62, 62 + NEW_ITEMS)}
    for name in ("user_id", "item_id", "domain_indicator"):
        old, new = (table(m, name, slot) for m in (first_run[1], method))
        np.testing.assert_array_equal(new[: len(old)], old, err_msg=name)
        if slot:
            assert not np.any(new[len(old) :])
    assert len(table(method, "item_id")) == len(table(untouched, "item_id"))
    assert np.any(table(method, "item_id")[-NEW_ITEMS:])


def test_run_goes_on_writes_its_report_and_resumes_without_starting_again(
    dataset, first_run, tmp_path, monkeypatch
):
    more = grown(dataset, tmp_path / "more")
    settings = config(more, init_from=str(first_run[0]))
    whole = trainer.train(settings, tmp_path / "second")
    report = json.loads((tmp_path / "second" / warm_start.REPORT_FILE).read_text())
    assert report["grown"] == {"item_id": [62, 69]}
    cold = trainer.train(config(more), tmp_path / "cold")
    assert whole.metrics["test"]["mean_logloss"] < cold.metrics["test"]["mean_logloss"]
    monkeypatch.setattr(warm_start, "warm_start", None)  # a call would fail
    again = trainer.train(settings, tmp_path / "second")
    assert again.metrics == whole.metrics


def test_scores_before_are_those_of_the_run_compared_with(dataset, first_run, tmp_path):
    """First day published, second refused: the third is measured against the first."""
    more = grown(dataset, tmp_path / "more")
    second = tmp_path / "second"
    trainer.train(config(more, init_from=str(first_run[0])), second)
    plain, other = tmp_path / "plain", tmp_path / "other"
    trainer.train(config(more, init_from=str(second)), plain)
    both = {"init_from": str(second), "compare_with": str(first_run[0])}
    trainer.train(config(more, **both), other)

    def scores(folder, name):
        return Scores.load(scores_path(folder, name)).logits

    first_day = scores(second, warm_start.SCORES_BEFORE)
    np.testing.assert_array_equal(scores(other, "test_before"), first_day)
    assert not np.array_equal(scores(plain, "test_before"), first_day)
    # What it goes on from, and so what it comes to, is the same.
    np.testing.assert_array_equal(scores(other, "test"), scores(plain, "test"))
    report = json.loads((other / warm_start.REPORT_FILE).read_text())
    assert report["workdir"] == str(second)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"first": ("other",)}, "vocabulary 'item_id' does not begin"),
        ({"last": -1}, "vocabulary 'item_id' does not begin"),
    ],
)
def test_data_that_does_not_continue_is_refused(
    dataset, first_run, tmp_path, change, expected
):
    names = dataset.info.fitted.vocabs["item_id"].array.to_pylist()
    if change.get("last") == -1:  # the last item is lost
        info = dataclasses.replace(
            dataset.info,
            fitted=dataclasses.replace(
                dataset.info.fitted,
                vocabs={**dataset.info.fitted.vocabs, "item_id": Vocab(names[:-1])},
            ),
        )
        with pytest.raises(warm_start.WarmStartError, match=expected):
            warm_start.check_continues(dataset.info, info, "x")
        return
    other = grown(dataset, tmp_path / "other", **change)
    with pytest.raises(warm_start.WarmStartError, match=expected):
        started(other, tmp_path, first_run)


def test_other_method_other_size_and_no_run_are_refused(dataset, first_run, tmp_path):
    with pytest.raises(warm_start.WarmStartError, match="run of MMoE; got one of MLP"):
        started(dataset, tmp_path, first_run, method="mmoe", method_config={})
    small = {"method_config": {"hidden_units": [4]}}
    with pytest.raises(GrowthError, match="must have the shape it had"):
        started(dataset, tmp_path, first_run, **small)
    deep = {"method_config": {"hidden_units": [8, 8]}}
    with pytest.raises(warm_start.WarmStartError, match="with the same model"):
        started(dataset, tmp_path, first_run, **deep)
    with pytest.raises(warm_start.WarmStartError, match="must be the workdir of a run"):
        warm_start.warm_start(first_run[1], dataset, tmp_path)


def test_only_rows_of_the_training_days_are_trained_on(dataset, tmp_path):
    days = (tiny_dataset.FIRST_DAY, tiny_dataset.FIRST_DAY)
    with trainer.strategy_lib.quiet():
        one = trainer.Trainer(config(dataset, train_days=days), dataset, tmp_path)
    assert one.plans["main"].rows == 200  # of 800 training rows over four days
    assert one.run().steps == 4
    assert one.state.rows == 200
    late = (20250101, 20250102)
    with pytest.raises(ValueError, match=r"must have rows.*on days \(20250101"):
        trainer.Trainer(config(dataset, train_days=late), dataset, tmp_path / "late")


def test_run_to_compare_with_needs_one_to_go_on_from(dataset):
    with pytest.raises(ValueError, match="compare_with is for runs with init_from"):
        config(dataset, compare_with="x")


def test_init_from_is_for_one_model(dataset):
    with pytest.raises(ValueError, match="init_from is for form=mdmt"):
        config(dataset, init_from="x", form="mtl")
