"""A published folder is absent, old or new: never half."""

import os
import subprocess
import sys

import pytest

from pipeline import publish
from pipeline.errors import JobError
from pipeline.publish import Staging


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_staging_publishes_with_success_file(tmp_path):
    with Staging(tmp_path / "data") as staging:
        (staging.path / "x").write_text("new")
        assert names(tmp_path) == [staging.path.name]
        staging.publish()
    assert names(tmp_path) == ["data"]
    assert names(tmp_path / "data") == ["_SUCCESS", "x"]


def test_staging_removes_everything_on_error(tmp_path):
    def begin_and_stop():
        with Staging(tmp_path / "data") as staging:
            (staging.path / "x").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin_and_stop()
    assert names(tmp_path) == []


def test_staging_refuses_a_taken_target(tmp_path):
    (tmp_path / "data").mkdir()
    with Staging(tmp_path / "data"):
        pass  # an empty folder is free
    (tmp_path / "data" / "old").touch()
    with (
        pytest.raises(JobError, match="must name what does not exist yet.*--overwrite"),
        Staging(tmp_path / "data"),
    ):
        pass
    assert names(tmp_path / "data") == ["old"]


@pytest.mark.parametrize("can_swap", [True, False])
def test_staging_keeps_the_old_folder_until_published(tmp_path, monkeypatch, can_swap):
    if not can_swap:
        monkeypatch.setattr(publish.ctypes, "CDLL", lambda *a, **k: object())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").touch()
    with Staging(tmp_path / "data", overwrite=True) as staging:
        assert names(tmp_path / "data") == ["old"]
        staging.publish()
    assert names(tmp_path / "data") == ["_SUCCESS"]
    assert names(tmp_path) == ["data"]


def test_two_runs_with_one_target_do_not_mix(tmp_path):
    with Staging(tmp_path / "data") as one, Staging(tmp_path / "data") as two:
        (one.path / "one").touch()
        (two.path / "two").touch()
        two.publish()
        with pytest.raises(JobError, match="must name what does not exist yet"):
            one.publish()
    assert names(tmp_path / "data") == ["_SUCCESS", "two"]


def test_stale_folders_of_dead_jobs_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = publish._host()
    stale = tmp_path / f"data.tmp-{host}-{dead.pid}-00000000"
    alive = tmp_path / f"data.tmp-{host}-{os.getpid()}-00000000"
    elsewhere = tmp_path / f"data.tmp-other_host-{dead.pid}-00000000"
    for folder in (stale, alive, elsewhere):
        folder.mkdir()
    assert publish.remove_stale(tmp_path / "data") == [stale]
    assert names(tmp_path) == sorted([alive.name, elsewhere.name])


def test_folder_set_aside_by_a_killed_swap_comes_back(tmp_path):
    (tmp_path / "data.replaced").mkdir()
    (tmp_path / "data.replaced" / "old").touch()
    publish.remove_stale(tmp_path / "data")
    assert names(tmp_path / "data") == ["old"]
