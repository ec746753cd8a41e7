"""Durations, and the parts of a workdir that need no model."""

import json
import os
import signal

import pytest

from models.training import durations, history, profile, workdir
from models.training.config import FREE_KEYS, ProfileConfig, RunConfig
from models.training.result import Result
from models.training.signals import StopRequest


@pytest.mark.parametrize(
    ("value", "steps"),
    [(7, 7), ("7 steps", 7), ("1 epoch", 20), ("0.1 epochs", 2), ("1e3 rows", 10)]
    + [("101 rows", 2), ("0.01 epochs", 1), ("2.5 epochs", 50)],
)
def test_duration_in_steps(value, steps):
    given = durations.to_steps(value, rows_per_step=100, steps_per_epoch=20)
    assert given == steps


@pytest.mark.parametrize("value", [0, -3, "0 epochs", "5", "3 days", "epochs", ""])
def test_duration_refuses(value):
    with pytest.raises(ValueError, match="positive number of steps"):
        durations.parse_duration(value)


def test_free_keys_are_keys():
    assert set(RunConfig.model_fields) >= FREE_KEYS


def test_write_json_leaves_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.json"
    workdir.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        workdir.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_history_cut_forgets_later_and_half_written_lines(tmp_path):
    log = history.History(tmp_path)
    for step in (5, 10, 15):
        log.add({"step": step})
    path = tmp_path / "history.jsonl"
    path.write_text(path.read_text() + '{"step": 2')
    log.cut(10)
    assert [x["step"] for x in history.read_history(path)] == [5, 10]


def test_unfinished_run_has_no_result(tmp_path):
    with pytest.raises(workdir.WorkdirError, match="must hold a finished run"):
        Result.load(tmp_path)


def test_stop_request_notes_signal_and_puts_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_profiler_cuts_calls_at_its_range(tmp_path, monkeypatch):
    monkeypatch.setattr(profile.tf.profiler.experimental, "start", lambda _: None)
    monkeypatch.setattr(profile.tf.profiler.experimental, "stop", lambda: None)
    one = profile.StepProfiler(ProfileConfig(start_step=10, num_steps=5), tmp_path)
    step, calls = 0, []
    while step < 30:
        steps = one.before(step, 8)
        step += steps
        calls.append(steps)
        one.after(step, rows=64 * steps, secs=0.1 * steps)
    assert calls == [8, 2, 5, 8, 8]
    assert one.report()[0] == "5 steps, 100.00 ms a step, 640 rows/s"
