"""What a single run does: steps, events, stopping, errors, precision, replicas."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from features.config import ConfigError
from features.dataset import Dataset
from models.audit import Matrix
from models.training import measure, nonfinite, restore, trainer
from models.training import strategy as strategy_lib
from models.training import workdir as workdir_lib
from models.training.evaluate import CountError, Scores
from models.training.history import read_history
from models.training.result import load_matrices
from tests.helpers import tiny_dataset
from tests.models.training import fakes

TRAIN_ROWS = 800  # of the tiny data set


def _trainer(config, workdir):
    strategy_lib.seed_everything(config.seed)
    return trainer.Trainer(config, Dataset.open(config.data_dir), workdir)


def test_run_traces_once_and_counts_steps_rows_and_epochs(dataset, tmp_path):
    one = _trainer(fakes.config(dataset.data_dir, steps_per_call=5), tmp_path)
    result = one.run()
    # 800 rows in batches of 64: 13 steps, the last one half full.
    assert (result.steps, result.epochs) == (39, 3.0)
    assert one.state.rows == 3 * TRAIN_ROWS
    assert one.loop.trace_count == 1


def test_steps_per_call_changes_no_weight(dataset, tmp_path):
    for steps in (1, 32):
        config = fakes.config(
            dataset.data_dir,
            steps_per_call=steps,
            max_epochs=1,
            method_config={"dropout": 0.2},
        )
        trainer.train(config, tmp_path / str(steps))
    one, many = (fakes.weights(tmp_path / name) for name in ("1", "32"))
    for name in one:
        np.testing.assert_array_equal(one[name], many[name], err_msg=name)


def test_every_row_of_an_epoch_is_trained_on_once(dataset, tmp_path):
    one = _trainer(fakes.config(dataset.data_dir, batch_size=48), tmp_path)
    ids = []
    for _ in range(one.plans["main"].steps_per_epoch):
        batch = one._streams.draw()["main"]
        ids += batch.features["price"].numpy()[batch.valid.numpy()].tolist()
    part = tiny_dataset.make_rows(1000)["price"].to_numpy()[:TRAIN_ROWS]
    assert sorted(ids) == sorted(part.tolist())


def test_events_run_on_exact_steps(dataset, tmp_path):
    config = fakes.config(
        dataset.data_dir, max_steps=20, method_config={"every_steps": 6}
    )
    one = _trainer(config, tmp_path)
    one.run()
    assert one.method.seen == [6, 12, 18]


def test_an_event_draws_a_stream_that_steps_never_see(dataset, tmp_path):
    drawing = {"every_steps": 6, "draws": True}
    plain, asked = (
        _trainer(
            fakes.config(dataset.data_dir, max_steps=20, method_config=settings),
            tmp_path / str(len(settings)),
        )
        for settings in ({}, drawing)
    )
    plain.run()
    asked.run()
    assert asked.state.drawn == {"main": 20, "asked": 9}
    assert set(asked.method.drawn) == {2}
    # 3 x 3 batches go round the domain's rows, each exactly once a pass.
    rows = asked.plans["asked"].rows
    passes, steps = divmod(9, asked.plans["asked"].steps_per_epoch)
    whole = len(asked.method.drawn) - passes * rows
    assert 0 <= whole <= steps * 64
    for name, value in fakes.weights(tmp_path / "0").items():
        if "event" not in name:
            other = fakes.weights(tmp_path / "2")[name]
            np.testing.assert_array_equal(other, value, err_msg=name)


def test_a_stream_for_events_may_have_no_rows(dataset, tmp_path, monkeypatch):
    config = fakes.config(
        dataset.data_dir,
        max_steps=6,
        method_config={"every_steps": 6, "draws": True},
    )
    counted = type(dataset.info).num_rows
    monkeypatch.setattr(
        type(dataset.info),
        "num_rows",
        lambda info, split=None, domain=None: (
            0 if domain == "d2" and split == "train" else counted(info, split, domain)
        ),
    )
    one = _trainer(config, tmp_path)
    assert one._streams.draw_one("asked") is None
    assert "asked" not in one.plans


def test_only_served_domains_are_evaluated(dataset, tmp_path):
    config = fakes.config(
        dataset.data_dir, max_epochs=1, method_config={"serves": "d1"}
    )
    result = trainer.train(config, tmp_path / "one")
    assert {cell["domain"] for cell in result.metrics["test"]["cells"]} == {"d1"}
    scores = Scores.load(trainer.scores_path(tmp_path / "one", "test"))
    assert (scores.domains, set(scores.domain)) == (("d1",), {0})
    assert scores.num_rows == dataset.info.num_rows("test", "d1")
    whole = trainer.train(
        fakes.config(dataset.data_dir, max_epochs=1), tmp_path / "all"
    )
    every = Scores.load(trainer.scores_path(whole.workdir, "test"))
    np.testing.assert_array_equal(every.logits[every.domain == 1], scores.logits)


def test_best_weights_are_restored_at_the_limit(dataset, tmp_path, monkeypatch):
    metrics = iter([0.6, 0.9, 0.7])
    plain = measure.metrics_of

    def fake_metrics(scores):
        value = next(metrics, None)
        table = plain(scores)
        if value is None:
            return table
        return dataclasses.replace(table, mean_domain_auc=value)

    monkeypatch.setattr(measure, "metrics_of", fake_metrics)
    saved = {}
    one = _trainer(fakes.config(dataset.data_dir), tmp_path)
    plain_save = one.checkpoints.save_best

    def save_best():
        saved[one.state.step] = [v.numpy() for v in one.method.model.variables]
        plain_save()

    one.checkpoints.save_best = save_best
    bias = one.method.model.hidden.bias
    one.method.matrices = lambda: {"bias": Matrix(["b"], range(8), bias.numpy()[None])}
    result = one.run()
    kept = load_matrices(tmp_path)["bias"].values[0]
    np.testing.assert_array_equal(kept, bias.numpy())
    assert (result.best_metric, result.best_step, result.best_epoch) == (0.9, 26, 2.0)
    assert "limit" in result.stop_reason
    for variable, value in zip(one.method.model.variables, saved[26], strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    workdir_lib.claim(
        tmp_path, workdir_lib.describe(one.config, dataset)
    )  # train() did it
    loaded = restore.load_method(tmp_path).method
    for variable, value in zip(loaded.model.variables, saved[26], strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_early_stopping_waits_for_patience(dataset, tmp_path, monkeypatch):
    values = iter([0.7, 0.6, 0.8, 0.8, 0.5])
    plain = measure.metrics_of
    monkeypatch.setattr(
        measure,
        "metrics_of",
        lambda scores: dataclasses.replace(
            plain(scores), mean_domain_auc=next(values, None)
        ),
    )
    config = fakes.config(
        dataset.data_dir, max_epochs=9, patience=2, eval_every="5 steps"
    )
    result = trainer.train(config, tmp_path)
    # Best at the third evaluation; equal is no gain; two later ones without: stop.
    assert (result.best_step, result.steps) == (15, 25)
    assert result.stop_reason == "no gain in 2 evaluations"
    lines = read_history(tmp_path / "history.jsonl")
    assert [x["step"] for x in lines] == [5, 10, 15, 20, 25]
    assert [x["is_best"] for x in lines] == [True, False, True, False, False]


def test_metric_direction_and_unknown_metric():
    assert measure.is_better("mean_logloss", 0.1, 0.2)
    assert not measure.is_better("auc/d0/t", 0.1, 0.2)
    assert measure.is_better("auc/d0/t", None, None)
    assert not measure.is_better("auc/d0/t", None, 0.5)
    measure.check_metric("logloss/d1/t", ["d0", "d1"], ["t"])
    with pytest.raises(LookupError, match="Did you mean 'mean_domain_auc'"):
        measure.check_metric("mean_domain_acu", ["d0"], ["t"])


def test_non_finite_loss_names_step_task_and_domain(dataset, tmp_path):
    config = fakes.config(
        dataset.data_dir,
        method_config={"nan_from_step": 9, "every_steps": 4, "takes_batch": True},
    )
    with pytest.raises(nonfinite.NonFiniteLossError) as error:
        trainer.train(config, tmp_path)
    text = str(error.value)
    assert "at step 9, task 'task1' in domain 'd1'" in text
    assert "d0" not in text
    assert "task0" not in text


def test_non_finite_input_is_named(dataset, tmp_path):
    one = _trainer(fakes.config(dataset.data_dir), tmp_path)
    batch = one._streams.draw()["main"]
    price = tf.tensor_scatter_nd_update(batch.features["price"], [[0]], [float("inf")])
    batch = batch._replace(features={**batch.features, "price": price})
    assert "input 'price' has NaN or inf" in str(
        nonfinite.explain(one.method, {"main": batch}, 1)
    )


@pytest.mark.parametrize("option", ["mixed_precision", "jit_compile"])
def test_option_trains_as_well(dataset, tmp_path, option):
    config = fakes.config(dataset.data_dir, **{option: True})
    one = _trainer(config, tmp_path)
    if option == "mixed_precision":
        assert one.method.model.hidden.compute_dtype == "bfloat16"
        assert one.method.model.hidden.variable_dtype == "float32"
        assert one.method.model.hidden.dtype_policy.name == "mixed_bfloat16"
    assert one.run().best_metric > 0.75
    assert one.loop.trace_count == 1


def test_corrupt_record_names_file_and_record(tmp_path):
    data = tiny_dataset.make_dataset(tmp_path / "data", rows=300)
    path = data.files("train")[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=rf"{path.name}.*record"):
        trainer.train(fakes.config(data.data_dir), tmp_path / "w")


def test_missing_rows_are_an_error(tmp_path):
    data = tiny_dataset.make_dataset(tmp_path / "data", rows=300)
    path = data.data_dir / "dataset.json"
    values = json.loads(path.read_text())
    values["counts"]["validation"]["d0"]["rows"] += 1
    path.write_text(json.dumps(values))
    with pytest.raises(CountError, match=r"domain 'd0' gave \d+ rows, dataset.json"):
        trainer.train(fakes.config(data.data_dir), tmp_path / "w")


def test_scores_hold_every_row_once_in_row_order(dataset, tmp_path):
    result = trainer.train(fakes.config(dataset.data_dir, max_epochs=1), tmp_path)
    scores = Scores.load(result.scores_paths["test"])
    assert scores.row_id.tolist() == list(range(900, 1000))
    rows = tiny_dataset.make_rows(1000).slice(900)
    np.testing.assert_array_equal(scores.domain, rows["domain"].to_numpy())
    label = rows["label/task1"].to_numpy()
    np.testing.assert_array_equal(scores.label_mask[:, 1], label >= 0)
    np.testing.assert_array_equal(scores.labels[:, 1], np.maximum(label, 0))
    table = measure.metrics_of(scores).to_json()
    assert (
        table == json.loads((tmp_path / "result.json").read_text())["metrics"]["test"]
    )


def test_unknown_keys_and_impossible_values_are_errors(dataset):
    with pytest.raises(ConfigError, match="Did you mean 'batch_size'"):
        fakes.config(dataset.data_dir, batchsize=3)
    with pytest.raises(ConfigError, match="positive number of steps"):
        fakes.config(dataset.data_dir, eval_every="3 days")
    with pytest.raises(ConfigError, match="Did you mean 'dropout'"):
        fakes.config(
            dataset.data_dir, method_config={"dropot": 1}
        ).parsed_method_config()


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_every": "3 steps", "method_config": {"two_streams": True}},
        # One device takes 64 rows in passes of 24, 24 and 16, two take 32 each.
        {"method": "mlp", "method_config": {"rows_per_pass": 24}},
    ],
    ids=["two streams", "passes"],
)
def test_mirrored_equals_one_device(dataset, tmp_path, run_process, changes):
    config = fakes.config(dataset.data_dir, max_epochs=1, **changes)
    trainer.train(config, tmp_path / "one")
    mirrored = config.model_copy(update={"strategy": "mirrored", "num_devices": 2})
    done = run_process(mirrored, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = (fakes.weights(tmp_path / name) for name in ("one", "two"))
    compared = [n for n in one if n.startswith(("model", "optim"))]
    assert len(compared) > 10
    for name in compared:
        np.testing.assert_allclose(two[name], one[name], rtol=2e-4, atol=2e-5)
    losses = [
        [x["train_loss"] for x in read_history(tmp_path / name / "history.jsonl")]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
