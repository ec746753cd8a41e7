"""M3oE trained from files: when fusion steps come, and which rows they see."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import collections  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.m3oe import M3oE, M3oEConfig  # isort: skip
from models.training import trainer  # isort: skip
from models.training.config import RunConfig  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.models.methods import data  # isort: skip

TRAIN_ROWS, EPOCHS, HELD_OUT_SHARE = 800, 2, 0.2


def spy(monkeypatch, name, seen):
    """Notes the prices (which tell rows apart) in the batches of a kind of step."""
    step = getattr(M3oE, name)

    def note(price, valid):
        seen.append(price[valid])
        return np.int64(0)

    def noting(method, batches):
        batch = batches[MAIN]
        tf.numpy_function(note, [batch.features["price"], batch.valid], tf.int64)
        return step(method, batches)

    monkeypatch.setattr(M3oE, name, noting)


def test_held_out_rows_are_seen_by_fusion_steps_alone(tmp_path, monkeypatch):
    dataset = tiny_dataset.make_dataset(tmp_path / "tiny")
    inner, outer = [], []
    spy(monkeypatch, "train_step", inner)
    spy(monkeypatch, "fusion_step", outer)
    config = RunConfig(
        method="m3oe",
        method_config=data.SMALL["m3oe"]
        | {
            "fusion_update": "alternate",
            "fusion_every": "0.5 epochs",
            "fusion_holdout": HELD_OUT_SHARE,
        },
        data_dir=str(dataset.data_dir),
        batch_size=64,
        max_epochs=EPOCHS,
    )
    workdir = tmp_path / "run"
    workdir.mkdir()
    one = trainer.Trainer(config, dataset, workdir)
    start = one.method.scalars()
    one.run()
    one.close()
    times = collections.Counter(np.concatenate(inner).tolist())
    held_out = set(np.concatenate(outer).tolist())
    assert not held_out & set(times)
    assert set(times.values()) == {EPOCHS}
    prices = tiny_dataset.make_rows(1000)["price"].to_numpy()[:TRAIN_ROWS]
    left = set(prices.tolist()) - set(times)
    assert held_out <= left
    assert len(left) == pytest.approx(HELD_OUT_SHARE * TRAIN_ROWS, rel=0.25)
    # One fusion step at the half and the end of each epoch.
    assert len(outer) == 2 * EPOCHS
    assert len(inner) == EPOCHS * -(-len(times) // 64)
    assert all(v != start[k] for k, v in one.method.scalars().items())


def test_an_epoch_counts_the_batches_of_fusion_steps(tmp_path, monkeypatch):
    dataset = tiny_dataset.make_dataset(tmp_path / "tiny")
    inner, outer = [], []
    spy(monkeypatch, "train_step", inner)
    spy(monkeypatch, "fusion_step", outer)
    settings = {"fusion_update": "alternate", "fusion_every": 4}
    config = RunConfig(
        method="m3oe",
        method_config=data.SMALL["m3oe"] | settings,
        data_dir=str(dataset.data_dir),
        batch_size=40,  # 20 batches an epoch: 16 steps and a fusion step every four
        max_epochs=1,
    )
    workdir = tmp_path / "run"
    workdir.mkdir()
    one = trainer.Trainer(config, dataset, workdir)
    one.run()
    one.close()
    assert (len(inner), len(outer)) == (16, 4)
    times = collections.Counter(np.concatenate(inner + outer).tolist())
    assert len(times) == TRAIN_ROWS
    assert set(times.values()) == {1}


def test_holdout_needs_fusion_steps_and_rows():
    with pytest.raises(ConfigError, match="fusion_update: alternate"):
        M3oEConfig.parse({"fusion_holdout": 0.1})
    settings = {"fusion_update": "alternate", "fusion_holdout": 0.1}
    method = data.make_method("m3oe", data.make_schema(), **settings)
    (event,) = method.periodic_events()
    with pytest.raises(ValueError, match="fusion_holdout must leave a row"):
        event.run(lambda _: None)


@pytest.mark.parametrize("every", [0, "0 epochs", "often"])
def test_fusion_every_is_a_duration(every):
    with pytest.raises(ConfigError, match="fusion_every"):
        M3oEConfig.parse({"fusion_every": every})
