import multiprocessing
import os
import signal
import time

import pytest

from serving import publish


def make(base, *numbers):
    for number in numbers:
        (base / str(number)).mkdir(parents=True)
        (base / str(number) / "saved_model.pb").write_text(str(number))


def test_versions_are_folders_with_plain_integer_names(tmp_path):
    make(tmp_path, 10, 9)
    for name in (".writing-3-host-1", "007", "1.bak", "٣", "²"):  # noqa: RUF001
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    assert publish.versions(tmp_path) == [9, 10]


def test_versions_of_a_missing_folder_are_none(tmp_path):
    assert publish.versions(tmp_path / "missing") == []


def test_next_version_is_the_time_and_above_all_others(tmp_path):
    before = int(time.time())
    assert before <= publish.next_version(tmp_path) <= time.time()
    make(tmp_path, 99_999_999_999)
    assert publish.next_version(tmp_path) == 100_000_000_000


@pytest.mark.parametrize("wanted", [0, -1, 4, 5])
def test_next_version_refuses_one_that_servers_would_not_take_for_new(tmp_path, wanted):
    make(tmp_path, 5)
    with pytest.raises(publish.PublishError, match=f"export.version must .*{wanted}"):
        publish.next_version(tmp_path, wanted)


def test_version_appears_whole_when_its_writer_is_done(tmp_path):
    with publish.atomic_version(tmp_path / "m", 1) as folder:
        (folder / "saved_model.pb").write_text("x")
        assert publish.versions(tmp_path / "m") == []
    assert publish.versions(tmp_path / "m") == [1]
    assert (tmp_path / "m" / "1" / "saved_model.pb").read_text() == "x"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_writer_leaves_the_old_version_and_nothing_else(tmp_path, error):
    make(tmp_path, 1)

    def write():
        with publish.atomic_version(tmp_path, 2) as folder:
            (folder / "saved_model.pb").write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "1"


def _write_and_wait(base, ready):
    with publish.atomic_version(base, 2) as folder:
        (folder / "saved_model.pb").write_text("half")
        ready.set()
        time.sleep(60)


def test_killed_writer_is_never_seen_and_is_cleaned_up_by_the_next(tmp_path):
    make(tmp_path, 1)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    writer = context.Process(target=_write_and_wait, args=(tmp_path, ready))
    writer.start()
    assert ready.wait(30)
    with publish.atomic_version(tmp_path, 3) as folder:
        (folder / "saved_model.pb").write_text("3")
    assert len(list(tmp_path.glob(".writing-2-*"))) == 1, "its writer is alive"
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert publish.versions(tmp_path) == [1, 3]
    with publish.atomic_version(tmp_path, 4) as folder:
        (folder / "saved_model.pb").write_text("4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3", "4"]


def test_half_written_folder_of_another_host_is_left_alone(tmp_path):
    (tmp_path / ".writing-2-elsewhere-999999").mkdir()
    with publish.atomic_version(tmp_path, 3):
        pass
    assert (tmp_path / ".writing-2-elsewhere-999999").exists()


def test_version_that_another_export_took_meanwhile_is_refused(tmp_path):
    def write():
        with publish.atomic_version(tmp_path, 2) as folder:
            (folder / "saved_model.pb").write_text("ours")
            make(tmp_path, 2)

    with pytest.raises(publish.PublishError, match="export.version must be new"):
        write()
    assert (tmp_path / "2" / "saved_model.pb").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["2"]


def test_keep_newest_removes_the_older_ones(tmp_path):
    make(tmp_path, 1, 2, 10)
    assert publish.keep_newest(tmp_path, 2) == [1]
    assert publish.keep_newest(tmp_path, 2) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "2"]


def test_keep_newest_never_removes_all(tmp_path):
    make(tmp_path, 1)
    with pytest.raises(publish.PublishError, match=r"export.keep must be .*got 0"):
        publish.keep_newest(tmp_path, 0)
