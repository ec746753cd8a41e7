"""CCTL in training: a planted log, files, resuming, replicas."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import csv  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.schema import FeatureInfo  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.cctl import SOURCE  # isort: skip
from models.metrics.auc import auc  # isort: skip
from models.training import evaluate, measure, restore, trainer  # isort: skip
from models.training.history import read_history  # isort: skip
from models.training.signals import Interrupted, StopRequest  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.training import fakes  # isort: skip

NUMBERS, SOURCE_ROWS, TARGET_ROWS = 16, 8000, 3000
TARGET_BATCH, SOURCE_BATCH, WINDOW, NUM_WINDOWS = 16, 64, 5, 100


def planted_schema():
    region = FeatureInfo("region", "context", "number")
    return data.number_schema(NUMBERS, ("big", "small"), region)


def planted_rows(rng, rows, weights, *, domain):
    """Clicks follow `weights`; in the source's region -1 the labels are flipped."""
    batch = data.linear_batch(rng, np.full(rows, domain), np.stack([weights] * 2))
    region = rng.choice([1, -1], rows) if domain == 0 else np.zeros(rows)
    labels = tf.where(region[:, None] < 0, 1.0 - batch.labels, batch.labels)
    features = batch.features | {"region": tf.constant(region, tf.float32)}
    return batch._replace(features=features, labels=labels)


def train_planted(seed, *, by_region=False, **settings):
    """Returns target AUC, and mean p of clean and flipped source rows (or None).

    With `by_region` all source rows of a step are of one region, else of both.
    """
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=NUMBERS) * 0.6
    target = planted_rows(rng, TARGET_ROWS, weights, domain=1)
    source = planted_rows(rng, SOURCE_ROWS, weights, domain=0)
    test = planted_rows(rng, 4000, weights, domain=1)
    slow = {"kind": "sgd", "learning_rate": 0.02}
    method = data.make_method(
        "cctl",
        planted_schema(),
        seed=seed,
        optimizer={"dense": slow, "groups": {"selector": {"learning_rate": 0.03}}},
        target_domain="small",
        hidden_units=(),  # linear: it cannot tell the regions apart by itself
        window=WINDOW,
        **settings,
    )
    draws = tf.random.Generator.from_seed(seed)
    clean = source.features["region"].numpy() > 0
    regions = [np.flatnonzero(clean), np.flatnonzero(~clean)]
    regions = tf.constant([r[: SOURCE_ROWS // 2 - 200] for r in regions], tf.int32)

    @tf.function(autograph=False)
    def window():
        def body(step):
            batches = {}
            for name, rows, size, total in (
                (MAIN, target, TARGET_BATCH, TARGET_ROWS),
                (SOURCE, source, SOURCE_BATCH, SOURCE_ROWS),
            ):
                if by_region and name == SOURCE:
                    region = regions[draws.uniform([], 0, 2, tf.int32)]
                    draw = draws.uniform([size], 0, regions.shape[1], tf.int32)
                    index = tf.gather(region, draw)
                else:
                    index = draws.uniform([size], 0, total, tf.int32)
                batches[name] = data.take(rows, index)
            method.train_step(batches)
            return (step + 1,)

        tf.while_loop(lambda step: step < WINDOW, body, [tf.constant(0)])

    for _ in range(NUM_WINDOWS):
        window()
        method.end_window()
    scores = method.serving_model()(test.features)["click"].numpy()
    found = auc(test.labels.numpy()[:, 0], scores)
    if method.model.selector is None:
        return found, None, None
    index = method.model.source_index(source.features)
    x = method.model.source_rows(source.features, index)
    probs = tf.sigmoid(method.model.selector(x, index)).numpy()
    return found, probs[clean].mean(), probs[~clean].mean()


@pytest.mark.parametrize(("mode", "by_region"), [("bernoulli", False), ("soft", True)])
def test_flipped_source_rows_are_turned_down_and_the_target_gains(mode, by_region):
    """`soft` needs batches that differ: it draws nothing that tells rows apart."""
    gains = []
    for seed in (1, 2):
        mixed, _, _ = train_planted(seed, by_region=by_region, alpha=0.0)
        chosen, clean, flipped = train_planted(seed, by_region=by_region, mode=mode)
        assert clean > 1.2 * flipped
        gains.append(chosen - mixed)
    assert np.mean(gains) > 0.015, gains


# -------------------------------------------------------------------- from files


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_dataset.make_dataset(tmp_path_factory.mktemp("data") / "tiny")


def run_config(dataset):
    return fakes.config(
        dataset.data_dir,
        method="cctl",
        batch_size=32,
        max_steps=8,
        eval_every="4 steps",
        steps_per_call=3,
        checkpoint_every="100 steps",
        method_config={
            "target_domain": "d1",
            "hidden_units": (8,),
            "selector_units": (4,),
            "window": 5,
            "mode": "bernoulli",
            "audit_feature": "age",
            "source_batch_share": 2.0,
        },
    )


def test_run_from_files_measures_the_target_and_resumes_inside_a_window(
    tiny, tmp_path, monkeypatch
):
    config = run_config(tiny)
    whole = trainer.train(config, tmp_path / "whole")
    assert whole.steps == 8
    lines = read_history(tmp_path / "whole" / "history.jsonl")
    assert [line["step"] for line in lines] == [4, 8]
    assert not any("/d0" in key for key in lines[0]["validation"])
    assert lines[0]["method"].keys() >= {"weight/d0", "weight/d2", "reward/std"}
    # Inside a window the towers differ; the one that is not served decides nothing.
    other = {k: v for k, v in lines[0]["method"].items() if k.startswith("pure/")}
    assert other.keys() == {f"pure/{name}" for name in lines[0]["validation"]}
    assert other != {f"pure/{k}": v for k, v in lines[0]["validation"].items()}
    assert lines[0]["metric"] == lines[0]["validation"][config.metric]
    loaded = restore.load_method(tmp_path / "whole")
    assert whole.best_step == lines[-1]["step"]
    scores = evaluate.Scorer(loaded.method, loaded.method.tower_model("pure")).score(
        loaded.dataset, "validation"
    )
    expected = measure.metrics_of(scores).scalars()
    assert expected == {k: lines[-1]["method"][f"pure/{k}"] for k in expected}

    requests = []
    enter, call = StopRequest.__enter__, trainer.Trainer._call

    def note(self):
        requests.append(self)
        return enter(self)

    def stop_inside_a_window(self, progress):
        call(self, progress)
        if self.state.step == 3 and len(requests) == 1:
            requests[0].received = 15

    monkeypatch.setattr(StopRequest, "__enter__", note)
    monkeypatch.setattr(trainer.Trainer, "_call", stop_inside_a_window)
    with pytest.raises(Interrupted, match="at step 3"):
        trainer.train(config, tmp_path / "stopped")
    trainer.train(config, tmp_path / "stopped")
    tables = [tmp_path / n / "audit_source_weight.csv" for n in ("whole", "stopped")]
    assert tables[0].read_text() == tables[1].read_text()
    with tables[0].open() as file:
        lines = list(csv.DictReader(file))
    edges = [f"{b:g}" for b in tiny.info.fitted.numeric["age"].boundaries]
    names = ["", "<unknown>", f"[-inf, {edges[0]})"]
    names += [f"[{a}, {b})" for a, b in zip(edges, [*edges[1:], "inf"], strict=True)]
    valued = [line for line in lines if line["value"]]
    assert valued
    assert [line["text"] for line in valued] == [names[int(x["value"])] for x in valued]
    assert {line["text"] for line in lines if not line["value"]} == {""}
    left, right = (fakes.weights(tmp_path / name) for name in ("whole", "stopped"))
    assert left.keys() == right.keys()
    assert any("reinforce/credit" in name for name in left)
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_two_replicas_train_as_one_device(two_replicas):
    schema, results = data.make_schema(), []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            method = data.make_method("cctl", schema, window=2, audit_feature="item")
            given = [
                data.feed(method, data.make_batch(schema, 32, seed=s)) for s in range(3)
            ]
            count = strategy.num_replicas_in_sync

            def replica(batches, method=method, count=count):
                context = tf.distribute.get_replica_context()
                part = context.replica_id_in_sync_group
                mine = {
                    name: tf.nest.map_structure(
                        lambda x: tf.reshape(x, [count, -1, *x.shape[1:]])[part], batch
                    )
                    for name, batch in batches.items()
                }
                return method.train_step(mine)

            step = tf.function(
                lambda b, s=strategy, r=replica: s.run(r, (b,)), autograph=False
            )
            rewards = []
            for i, batches in enumerate(given, 1):
                metrics = step(batches)
                rewards.append(strategy.reduce("SUM", metrics["reward"], axis=None))
                if i % 2 == 0:
                    reported = method.end_window()
        state = [v.numpy() for v in method.model.trainable_variables]
        state += [v.numpy() for v in method.ren.seen.values()]
        # Of the third step, inside a window: as one replica has it, to be saved.
        state += [v.numpy() for v in method.reinforce.trace]
        state += [method.audit.totals.numpy(), method.audit.by_value.numpy()]
        results.append([*state, np.array(rewards), np.array(list(reported.values()))])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)
