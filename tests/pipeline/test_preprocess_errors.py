"""What the preprocessing job says about bad input, and that nothing is published."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pyarrow as pa
import pytest

from pipeline import preprocess
from pipeline.errors import JobError, is_user_error, root_cause
from pipeline.jobs import preprocess as job
from pipeline.publish import Staging
from pipeline.transforms import write
from tests.pipeline import job_data


@pytest.fixture
def raw(tmp_path):
    return job_data.write_raw(tmp_path / "raw", job_data.make_log(200), files=2)


def left(tmp_path):
    return sorted(p.name for p in tmp_path.iterdir() if p.name != "raw")


@pytest.fixture
def old(tmp_path):
    """A folder of an earlier run."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "_SUCCESS").write_text("old")
    return job_data.content(tmp_path / "data")


def test_too_many_rejected_rows_end_the_job_with_counts(tmp_path):
    raw = job_data.write_raw(tmp_path / "raw", job_data.make_log(200, bad=30))
    with pytest.raises(
        JobError, match=r"30 of 200 rows.*30 x user_id is missing, such"
    ):
        job_data.run(raw, tmp_path / "data")
    assert left(tmp_path) == []


def test_empty_input_is_an_error(tmp_path):
    raw = job_data.write_raw(tmp_path / "raw", job_data.make_log(20).slice(0, 0))
    with pytest.raises(ValueError, match="must have rows"):
        job_data.run(raw, tmp_path / "data")
    assert left(tmp_path) == []


def test_no_training_row_is_an_error(raw, tmp_path):
    spec = job_data.make_spec(
        split={"by": "temporal", "validation_from": 0, "test_from": 5}
    )
    with pytest.raises(JobError, match="must leave rows to train on"):
        job_data.run(raw, tmp_path / "data", spec)


def test_missing_column_is_named_before_any_work(raw, tmp_path):
    tasks = [{"name": "click", "column": "clik"}]
    with pytest.raises(ValueError, match=r"'clik' must be.*Did you mean 'click'"):
        job_data.run(raw, tmp_path / "data", job_data.make_spec(tasks=tasks))


def test_truncated_parquet_is_named(raw, tmp_path):
    path = raw / "log1.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"log1\.parquet must be a whole Parquet"):
        job_data.run(raw, tmp_path / "data")


def test_table_with_a_key_twice_is_named(raw, tmp_path):
    users = pa.table({"user_id": ["u1", "u2", "u1"], "city": ["a", "b", "c"]})
    pa.parquet.write_table(users, raw / "users.parquet")
    with pytest.raises(JobError, match=r"user_table.key must be unique.*'u1'"):
        job_data.run(raw, tmp_path / "data")


def test_full_disk_leaves_the_old_data_set(raw, old, tmp_path, monkeypatch):
    def full(path, *_, **__):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("tfrecords_tools.encode.write_records", full)
    with pytest.raises(Exception, match="No space left") as caught:
        job_data.run(raw, tmp_path / "data", seed=5, overwrite=True)
    assert root_cause(caught.value).startswith("data_dir must be on a disk with room")
    assert job_data.content(tmp_path / "data") == old
    assert left(tmp_path) == ["data"]


def test_file_size_limit_is_an_error_of_the_real_writer(tmp_path):
    log = job_data.make_log(5000)
    raw = job_data.write_raw(tmp_path / "raw", log)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(Exception, match="File too large") as caught:
            job_data.run(raw, tmp_path / "data", rows_per_file=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "disk with room" in root_cause(caught.value)
    assert left(tmp_path) == []


@pytest.mark.slow
def test_killed_job_leaves_the_old_data_set(raw, old, tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from tests.pipeline import job_data\n"
        "from tfrecords_tools import encode\n"
        "def stuck(path, *_, **__):\n"
        "    path.write_bytes(b'half')\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "encode.write_records = stuck\n"
        "job_data.run(*map(pathlib.Path, sys.argv[1:]), overwrite=True)\n"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(raw), str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert killed.stdout.readline() == b"writing\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert job_data.content(tmp_path / "data") == old
    assert len(left(tmp_path)) == 2  # the old data set, and what was begun
    with Staging(tmp_path / "data", overwrite=True):
        pass  # the next job with this target cleans up
    assert left(tmp_path) == ["data"]


def test_replacing_removes_what_was_begun(tmp_path):
    def begin_and_fail():
        with write.replacing(tmp_path / "x") as path:
            path.write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        begin_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_root_cause_unwraps_a_worker_process():
    text = (
        "Traceback (most recent call last):\n"
        '  File "beam.py", line 1, in process\n'
        "pipeline.readers.base.ReadError: log1 must be whole: it is not.\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n"
        '  File "beam.py", line 2, in _reraise\n'
        "RuntimeError: log1 must be whole: it is not. [while running 'Read']\n"
    )
    error = RuntimeError(f"Pipeline failed. {text}")
    assert root_cause(error) == "log1 must be whole: it is not."
    assert is_user_error(error)
    assert not is_user_error(ZeroDivisionError("division by zero"))
    assert root_cause(ZeroDivisionError("by zero")) == "ZeroDivisionError: by zero"


def cli(*flags):
    needed = ["--dataset", "synthetic", "--raw_dir", "r", "--data_dir", "d"]
    return preprocess.main([*needed, *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recrd_format=row"], "--recrd_format"),
        (["--set", "tasks=3"], "tasks"),
        (["--direct_num_workers=2"], "raw_dir must be"),
        (["--block_rows=0"], "block_rows"),
    ],
)
def test_command_line_names_the_bad_flag(flags, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli(*flags) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert left(tmp_path) == []


def test_command_line_prints_a_summary(raw, tmp_path, capsys):
    spec = tmp_path / "raw" / "spec.yaml"
    spec.write_text(job_data.make_spec().to_json())
    flags = ["--dataset", str(spec), "--raw_dir", str(raw), "--no-statistics"]
    assert preprocess.main([*flags, "--data_dir", str(tmp_path / "data")]) == 0
    out = capsys.readouterr().out
    assert "train       home" in out
    assert "200 rows in" in out
    assert "fingerprint" in out
    assert preprocess.main([*flags, "--data_dir", str(tmp_path / "data")]) == 1
    assert "must name what does not exist yet" in capsys.readouterr().err


@pytest.mark.slow
def test_bad_input_in_worker_processes_gives_the_same_message(tmp_path, capsys):
    raw = job_data.write_raw(tmp_path / "raw", job_data.make_log(200, bad=30))
    spec = tmp_path / "raw" / "spec.yaml"
    spec.write_text(job_data.make_spec().to_json())
    flags = ["--dataset", str(spec), "--raw_dir", str(raw), "--no-statistics"]
    flags += ["--data_dir", str(tmp_path / "data")]
    flags += ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    assert preprocess.main(flags) == 1
    error = capsys.readouterr().err
    assert "30 x user_id is missing" in error
    assert "Traceback" not in error
    assert left(tmp_path) == []


def test_build_is_the_registered_job():
    from pipeline import registry

    assert registry.job("preprocess") is job.build
    with pytest.raises(LookupError, match="Did you mean 'preprocess'"):
        registry.job("preproces")
