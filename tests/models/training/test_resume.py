"""A run that was stopped, killed or repeated is the same run."""

import signal

import numpy as np
import pytest
import tensorflow as tf

from models.training import checkpoint, trainer
from models.training.history import read_history
from models.training.signals import Interrupted, StopRequest
from models.training.workdir import WorkdirError, claim, locked
from tests.models.methods import data
from tests.models.training import fakes

# Dropout, events that draw batches, a second stream: all that can go out of step.
HARD = {"dropout": 0.3, "every_steps": 4, "takes_batch": True, "two_streams": True}


def _same_run(a, b):
    left, right = fakes.weights(a), fakes.weights(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)
    assert fakes.state(a) == fakes.state(b)
    old, new = (read_history(path / "history.jsonl") for path in (a, b))
    for line in old + new:
        line.pop("train_rows_per_sec")
    assert old == new


@pytest.fixture(scope="module")
def whole_run(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    config = fakes.config(
        dataset.data_dir, method_config=HARD, checkpoint_every="7 steps"
    )
    with fakes.registered():
        trainer.train(config, workdir)
    return config, workdir


@pytest.mark.parametrize(
    ("number", "at_call"), [(signal.SIGKILL, 9), (signal.SIGTERM, 6)]
)
def test_resume_after_signal_gives_bit_identical_run(
    whole_run, run_process, tmp_path, number, at_call
):
    config, whole = whole_run
    workdir = tmp_path / "stopped"
    done = run_process(config, workdir, signal_number=int(number), at_call=at_call)
    if number == signal.SIGKILL:
        assert done.returncode == -9
    else:
        assert done.returncode == 143, done.stderr
        assert "Start the same command again" in done.stderr
    assert not (workdir / "result.json").exists()
    trainer.train(config, workdir)
    _same_run(whole, workdir)


def test_resume_in_every_call_gives_same_run(whole_run, tmp_path, monkeypatch):
    config, whole = whole_run
    asked = []

    def enter(self):
        asked.append(self)
        self.received = 15 if len(asked) < 4 else None
        return self

    monkeypatch.setattr(StopRequest, "__enter__", enter)
    plain = trainer.Trainer._after_step
    calls = []

    def after_step(self, progress):
        plain(self, progress)
        calls.append(self.state.step)
        asked[-1].received = 15 if len(asked) < 4 and len(calls) % 3 == 0 else None

    monkeypatch.setattr(trainer.Trainer, "_after_step", after_step)
    for _ in range(3):
        with pytest.raises(Interrupted) as stopped:
            trainer.train(config, tmp_path / "w")
        assert stopped.value.exit_code == 143
    trainer.train(config, tmp_path / "w")
    _same_run(whole, tmp_path / "w")


def test_finished_run_does_nothing_again(whole_run, monkeypatch):
    config, workdir = whole_run
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.name != ".lock"}
    monkeypatch.setattr(trainer, "train_one", None)
    result = trainer.train(config, workdir)
    # Three epochs of 13 batches, of which every fifth is an event's.
    assert result.steps == 33
    assert before == {
        p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.name != ".lock"
    }


def test_workdir_of_other_config_names_differing_keys(whole_run, tmp_path):
    config, workdir = whole_run
    other = fakes.config(config.data_dir, batch_size=32, method_config={"dropout": 0.3})
    with pytest.raises(WorkdirError) as error:
        trainer.train(other, workdir)
    assert "batch_size: 64 there, 32 asked" in str(error.value)
    assert "method_config.every_steps: 4 there, 0 asked" in str(error.value)
    assert "dropout" not in str(error.value)


def test_a_key_that_is_newer_than_the_run_is_no_difference_while_it_is_off(tmp_path):
    old = {"run": {"batch_size": 64}, "dataset": {"rows": 9}}
    claim(tmp_path, old)
    off = {"run": {"batch_size": 64, "init_from": ""}, "dataset": {"rows": 9}}
    assert claim(tmp_path, off)
    on = {"run": {"batch_size": 64, "init_from": "x"}, "dataset": {"rows": 9}}
    with pytest.raises(WorkdirError, match="init_from: '.unset.' there, 'x' asked"):
        claim(tmp_path, on)


def test_workdir_of_other_dataset_names_fingerprint(whole_run, tmp_path):
    from tests.helpers.tiny_dataset import make_dataset

    config, workdir = whole_run
    other = make_dataset(tmp_path / "two", domains=2)
    with pytest.raises(WorkdirError, match=r"dataset\.fingerprint"):
        trainer.train(
            config.model_copy(update={"data_dir": str(other.data_dir)}), workdir
        )


def test_two_runs_in_one_workdir_name_pid_and_host(dataset, tmp_path):
    import os
    import socket

    with locked(tmp_path), pytest.raises(WorkdirError) as error:
        trainer.train(fakes.config(dataset.data_dir), tmp_path)
    assert f"pid {os.getpid()} on host {socket.gethostname()}" in str(error.value)
    with locked(tmp_path):
        pass  # free again


def test_full_disk_keeps_the_last_checkpoint_and_a_second_start_goes_on(
    whole_run, tmp_path, monkeypatch
):
    config, whole = whole_run
    save = checkpoint.tf.train.CheckpointManager.save

    def full(self, *args, checkpoint_number):
        if checkpoint_number > 20:
            raise checkpoint.tf.errors.ResourceExhaustedError(
                None, None, "ckpt-30_temp; No space left on device"
            )
        return save(self, *args, checkpoint_number=checkpoint_number)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.tf.train.CheckpointManager, "save", full)
        with pytest.raises(
            checkpoint.CheckpointError, match=r"No space left.*checkpoints\)"
        ):
            trainer.train(config, tmp_path)
    assert 0 < fakes.state(tmp_path)["step"] <= 20
    trainer.train(config, tmp_path)
    _same_run(whole, tmp_path)


def test_weights_of_another_version_of_a_model_are_named_and_refused(tmp_path):
    schema = data.make_schema()
    old = data.make_method("star", schema, partitioned_norm=False)
    new = data.make_method("star", schema)
    (tmp_path / checkpoint.BEST_DIR).mkdir()
    best = tf.train.Checkpoint(**checkpoint.scoring_trackables(old))
    best.write(str(tmp_path / checkpoint.BEST_DIR / "step-3"))
    checkpoint.restore_scoring(old, tmp_path, 3)
    with pytest.raises(checkpoint.CheckpointError, match=r"norm.*step-3.*train again"):
        checkpoint.restore_scoring(new, tmp_path, 3)
