"""Runs whose batches hold rows of one domain each."""

import numpy as np
import pytest

from features.config import ConfigError
from features.dataset import Dataset
from models.training import trainer
from tests.models.training import fakes


def run_config(dataset, **changes):
    return fakes.config(dataset.data_dir, one_domain_batches=True, **changes)


def test_every_step_has_one_domain_in_another_order_each_epoch(dataset, tmp_path):
    one = trainer.Trainer(run_config(dataset), Dataset.open(dataset.data_dir), tmp_path)
    rows = [dataset.info.num_rows("train", d) for d in dataset.info.fitted.domains]
    steps = sum(-(-n // 64) for n in rows)
    assert one.plans["main"].steps_per_epoch == steps > -(-800 // 64)
    assert one.max_steps == 3 * steps
    epochs = []
    for _ in range(2):
        batches = [one._streams.draw()["main"] for _ in range(steps)]
        found = [b.domain.numpy()[b.valid.numpy()] for b in batches]
        assert {len(set(own.tolist())) for own in found} == {1}
        assert np.bincount(np.concatenate(found)).tolist() == rows
        epochs.append([int(own[0]) for own in found])
    assert epochs[0] != epochs[1]


def test_run_stopped_inside_an_epoch_goes_on_as_if_never_stopped(
    dataset, tmp_path, monkeypatch
):
    config = run_config(
        dataset, max_epochs=2, checkpoint_every="7 steps", eval_every="2 epochs"
    )
    whole, resumed = fakes.assert_resumes_exactly(config, tmp_path, monkeypatch, step=7)
    assert (resumed.steps, resumed.metrics) == (whole.steps, whole.metrics)


def test_joined_streams_and_several_devices_are_refused(dataset, tmp_path):
    config = run_config(dataset, method_config={"two_streams": True})
    with pytest.raises(ValueError, match="joins batches of main, other; got true"):
        trainer.train(config, tmp_path)
    with pytest.raises(ConfigError, match="must be false with several devices"):
        run_config(dataset, strategy="mirrored")


def test_draws_of_events_keep_their_own_streams(dataset, tmp_path):
    """A stream of events is as before; only what steps read is ordered by domain."""
    config = run_config(dataset, method_config={"draws": True, "every_steps": 4})
    one = trainer.Trainer(config, Dataset.open(dataset.data_dir), tmp_path)
    assert {n: p.is_one_domain for n, p in one.plans.items()} == {
        "main": True,
        "asked": False,
    }
