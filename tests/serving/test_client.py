import io
import json

import numpy as np
import pytest

from serving import client
from tests.serving import running
from tests.serving.tiny_raw import request_rows


@pytest.fixture(scope="module")
def server(saved):
    with running.serve(saved.parent) as server:
        yield server


@pytest.fixture
def rows_path(arrays, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(request_rows(arrays, 3)))
    return path


def test_rest_and_grpc_print_the_same_scores(server, rows_path, expected, capsys):
    printed = []
    for address in (
        f"--rest=127.0.0.1:{server.rest_port}",
        f"--grpc=127.0.0.1:{server.grpc_port}",
    ):
        assert client.main(["--model=ranker", f"--rows={rows_path}", address]) == 0
        lines = capsys.readouterr().out.strip().split("\n")
        printed.append([json.loads(line) for line in lines])
    for rows in printed:
        got = [row["task0"] for row in rows]
        np.testing.assert_allclose(got, expected["task0"][:3], atol=1e-6)
    assert printed[0] == printed[1]


def test_rows_may_come_from_standard_input(server, rows_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(rows_path.read_text()))
    address = f"--rest=127.0.0.1:{server.rest_port}"
    assert client.main(["--model=ranker", "--rows=-", address]) == 0
    assert capsys.readouterr().out.count("\n") == 3


@pytest.mark.parametrize("interface", ["rest", "grpc"])
def test_refusal_is_passed_on_in_the_servers_words(
    server, rows_path, capsys, interface
):
    port = getattr(server, f"{interface}_port")
    address = f"--{interface}=127.0.0.1:{port}"
    assert client.main(["--model=other", f"--rows={rows_path}", address]) == 1
    code = {"rest": "404", "grpc": "NOT_FOUND"}[interface]
    error = capsys.readouterr().err
    assert error.startswith(f"client failed: {code}: model must be 'ranker'")


@pytest.mark.parametrize("interface", ["rest", "grpc"])
def test_server_that_is_not_there_is_an_error(rows_path, capsys, interface):
    address = f"--{interface}=127.0.0.1:1"
    assert client.main(["--model=ranker", f"--rows={rows_path}", address]) == 1
    assert "client failed:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["not json", "[]", "{}", '[{"a": 1}, {"b": 1}]', "[1]", '["x"]']
)
def test_bad_rows_are_refused_before_anything_is_sent(tmp_path, capsys, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert client.main(["--model=m", f"--rows={path}", "--rest=127.0.0.1:1"]) == 1
    error = capsys.readouterr().err
    assert "client failed:" in error
    assert "refused" not in error, "nothing was sent"


def test_columns_pad_lists_and_keep_numbers():
    columns = client.columns(
        [{"a": "x", "b": 1, "c": ["p", "q"]}, {"a": "y", "b": 2.5, "c": []}]
    )
    assert columns["a"].tolist() == ["x", "y"]
    assert columns["b"].dtype == np.float32
    assert columns["b"].tolist() == [1.0, 2.5]
    assert columns["c"].tolist() == [["p", "q"], ["", ""]]


def test_columns_of_empty_lists_have_no_width():
    assert client.columns([{"c": []}])["c"].shape == (1, 0)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": "no such model"}', "no such model"),
        (b"<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
        (b"[]", "[]"),
    ],
)
def test_reason_is_the_servers_or_what_a_proxy_said(body, text):
    assert client._reason(body) == text
