"""The embedded server as a whole: start, swap under load, stop, command line."""

import gc
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import weakref

import pytest

from serving import client, model_store
from serving import server as server_lib
from serving.server import ServerConfig
from tests.serving import running
from tests.serving.tiny_raw import request_rows

ROOT = pathlib.Path(__file__).parents[2]
MODEL = "/v1/models/ranker"


@pytest.fixture
def base(saved, tmp_path):
    """A model folder of its own with version 1."""
    base = tmp_path / "ranker"
    shutil.copytree(saved, base / "1")
    return base


def publish(saved, base, version):
    """Copies and renames, as an export does."""
    shutil.copytree(saved, base / ".writing")
    (base / ".writing").rename(base / str(version))


def wait_for(condition, secs=60):
    end = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def status(server):
    answer = running.call(server, "GET", MODEL)[1]["model_version_status"]
    return {int(v["version"]): v["state"] for v in answer}


class Traffic:
    """Threads that send REST and gRPC requests until told to stop."""

    def __init__(self, server, arrays):
        self.answers = self.versions = 0
        self.failures = []
        self._stop = threading.Event()
        rows = request_rows(arrays, 2)
        inputs = {name: value[:2] for name, value in arrays.items()}
        url = f"http://127.0.0.1:{server.rest_port}{MODEL}"
        address = f"127.0.0.1:{server.grpc_port}"
        calls = (
            lambda: client.predict_rest(url, rows),
            lambda: client.predict_grpc(address, "ranker", inputs),
        )
        self._threads = [
            threading.Thread(target=self._run, args=(call,)) for call in calls
        ]

    def _run(self, call):
        while not self._stop.is_set():
            try:
                call()
            except Exception as error:
                self.failures.append(error)
            self.answers += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_new_version_takes_over_under_load_without_a_failed_request(
    base, saved, arrays
):
    with running.serve(base) as server, Traffic(server, arrays) as traffic:
        wait_for(lambda: traffic.answers > 10)
        old = weakref.ref(server.store.get("ranker"))
        publish(saved, base, 2)
        wait_for(lambda: server.store.get("ranker").version == 2)
        seen = traffic.answers
        wait_for(lambda: traffic.answers > seen + 10)
        assert traffic.failures == []
        assert status(server) == {1: "END", 2: "AVAILABLE"}
        wait_for(lambda: gc.collect() >= 0 and old() is None)
        code, answer = running.call(server, "GET", MODEL + "/versions/1/metadata")
        assert code == 404
        assert "[2]" in answer["error"]
        metrics = running.call(server, "GET", "/monitoring/prometheus/metrics")[1]
    assert "isthmus_model_version 2.0" in metrics
    assert "isthmus_model_swaps_total 2.0" in metrics


@pytest.mark.parametrize("damage", ["graph", "variables", "vocabulary"])
def test_broken_version_on_disk_does_not_take_down_the_good_one(
    base, saved, arrays, damage
):
    rows = request_rows(arrays, 1)
    with running.serve(base) as server:
        broken = base / ".writing"
        shutil.copytree(saved, broken)
        path = {
            "graph": broken / "saved_model.pb",
            "variables": next((broken / "variables").glob("variables.data*")),
            "vocabulary": next((broken / "assets").iterdir()),
        }[damage]
        os.truncate(path, path.stat().st_size // 2)
        if damage == "vocabulary":
            path.unlink()
        broken.rename(base / "2")
        wait_for(lambda: status(server).get(2) == "END")
        answer = running.call(server, "GET", MODEL + "/versions/2")[1]
        error = answer["model_version_status"][0]["status"]
        assert error["error_code"] == "UNKNOWN"
        assert error["error_message"]
        body = {"signature_name": "predict", "instances": rows}
        assert running.call(server, "POST", MODEL + ":predict", body)[0] == 200
        assert running.call(server, "GET", "/health")[0] == 200


def test_start_without_a_version_fails_and_says_what_to_do(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"model_dir must .*serving.export"),
        running.serve(tmp_path),
    ):
        pass


def test_start_with_only_a_broken_version_says_why(base):
    (base / "1" / "saved_model.pb").write_bytes(b"garbage")
    with (
        pytest.raises(FileNotFoundError, match=r"; 1: .*saved_model.pb"),
        running.serve(base),
    ):
        pass


@pytest.fixture
def no_model(monkeypatch):
    """Ports need no model: leaves out loading one."""
    monkeypatch.setattr(
        model_store,
        "LoadedModel",
        lambda path: types.SimpleNamespace(version=int(path.name)),
    )


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("setting", ["rest_port", "grpc_port"])
def test_start_on_a_taken_port_fails(saved, setting):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)):
            running.serve(saved.parent, **{setting: port}).__enter__()


@pytest.mark.usefixtures("no_model")
def test_second_server_on_the_same_grpc_port_is_refused(saved):
    """By default gRPC would share the port, and half of the calls would stray."""
    with (
        running.serve(saved.parent) as first,
        pytest.raises(OSError, match="grpc_port must be free"),
        running.serve(saved.parent, grpc_port=first.grpc_port),
    ):
        pass


@pytest.mark.parametrize(
    ("argument", "text"),
    [("--timeout_secs=0", "timeout_secs"), ("--rest_port=70000", "rest_port")],
)
def test_setting_out_of_range_is_refused_by_name(capsys, tmp_path, argument, text):
    assert server_lib.main([f"--model_dir={tmp_path}", argument]) == 1
    assert f"ServerConfig.{text}" in capsys.readouterr().err


def test_help_explains_every_setting_and_shows_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        server_lib.main(["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name, field in ServerConfig.model_fields.items():
        assert f"--{name}" in text
        assert field.description in text
    assert "curl localhost:8501/v1/models/ranker" in text


def test_server_listens_on_this_machine_only_by_default():
    assert ServerConfig(model_dir="x").host == "127.0.0.1"


def test_command_line_serves_until_sigterm(saved):
    command = [sys.executable, "-m", "serving.server", f"--model_dir={saved.parent}"]
    process = subprocess.Popen(
        [*command, "--rest_port=0", "--grpc_port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(
            r"serving ranker version 1: REST on 127\.0\.0\.1:(\d+), "
            r"gRPC on 127\.0\.0\.1:(\d+)\n",
            line,
        )
        assert found, line + process.stderr.read()
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=10):
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        errors = process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    for noise in ("Traceback", "FutureWarning", "WARNING"):
        assert noise not in errors
