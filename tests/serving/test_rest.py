"""TF Serving's REST interface, over real sockets."""

import base64
import contextlib
import http.client
import time

import numpy as np
import pytest
from prometheus_client import parser

from serving import model_store
from serving.inputs import raw_inputs
from serving.warmup import serialized_examples
from tests.serving import running
from tests.serving.tiny_raw import request_rows

MODEL = "/v1/models/ranker"
INPUTS = "age, channel, genres, history, item_id, price, user_id"


@pytest.fixture(scope="module")
def server(saved):
    with running.serve(saved.parent, max_request_bytes=50_000) as server:
        yield server


@pytest.fixture(scope="module")
def rows(arrays):
    return request_rows(arrays, 5)


@pytest.fixture
def columns(arrays):
    return {name: value[:5].tolist() for name, value in arrays.items()}


def post(server, body, path=MODEL + ":predict"):
    return running.call(server, "POST", path, body)


def assert_error(answer, status, *texts):
    assert answer[0] == status, answer
    assert list(answer[1]) == ["error"]
    for text in texts:
        assert text in answer[1]["error"]


def test_rows_in_give_rows_out(server, rows, expected, encoded):
    status, answer = post(server, {"signature_name": "predict", "instances": rows})
    assert status == 200
    assert list(answer) == ["predictions"]
    assert [sorted(row) for row in answer["predictions"]] == [
        ["domain", "task0", "task1"]
    ] * 5
    for task in ("task0", "task1"):
        got = [row[task] for row in answer["predictions"]]
        np.testing.assert_allclose(got, expected[task][:5], atol=1e-6)
    domains = [row["domain"] for row in answer["predictions"]]
    assert domains == encoded["domain"].to_pylist()[:5]


def test_columns_in_give_columns_out(server, columns, expected):
    status, answer = post(server, {"signature_name": "predict", "inputs": columns})
    assert status == 200
    assert list(answer) == ["outputs"]
    assert sorted(answer["outputs"]) == ["domain", "task0", "task1"]
    got = answer["outputs"]["task1"]
    np.testing.assert_allclose(got, expected["task1"][:5], atol=1e-6)


@pytest.mark.parametrize("is_named", [True, False])
def test_examples_travel_in_base64_named_or_not(
    server, arrays, dataset, expected, is_named
):
    inputs = raw_inputs(dataset.info.spec)
    examples = serialized_examples(inputs, {k: v[:3] for k, v in arrays.items()})
    values = [{"b64": base64.b64encode(e).decode()} for e in examples]
    instances = [{"examples": v} for v in values] if is_named else values
    status, answer = post(server, {"instances": instances})
    assert status == 200
    got = [row["task0"] for row in answer["predictions"]]
    np.testing.assert_allclose(got, expected["task0"][:3], atol=1e-6)


def test_candidates_take_one_user_and_many_items(server, arrays, columns):
    items = {"item_id", "genres", "price"}
    inputs = {k: v if k in items else v[:1] for k, v in columns.items()}
    body = {"signature_name": "predict_candidates", "inputs": inputs}
    status, answer = post(server, body)
    assert status == 200
    assert len(answer["outputs"]["task0"]) == 5


def test_candidates_without_items_give_no_scores(server, columns):
    items = {"item_id", "genres", "price"}
    inputs = {k: [] if k in items else v[:1] for k, v in columns.items()}
    body = {"signature_name": "predict_candidates", "inputs": inputs}
    assert post(server, body) == (
        200,
        {"outputs": {"task0": [], "task1": [], "domain": []}},
    )


def test_row_whose_lists_are_empty_is_scored(server, rows):
    row = {**rows[0], "genres": [], "history": []}
    status, answer = post(server, {"signature_name": "predict", "instances": [row]})
    assert status == 200, answer


def test_missing_number_travels_as_nan(server, rows):
    body = {"signature_name": "predict", "instances": [{**rows[0], "price": np.nan}]}
    assert post(server, body)[0] == 200


def test_version_in_the_path_is_the_version_asked(server, rows):
    body = {"signature_name": "predict", "instances": rows}
    path = MODEL + "/versions/1:predict"
    assert post(server, body, path) == post(server, body)


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("/v1/models/other:predict", ["'ranker'", "'other'"]),
        (MODEL + "/versions/9:predict", ["version of ranker", "[1]", "9"]),
    ],
)
def test_predict_of_an_unknown_model_or_version_is_not_found(server, path, texts):
    assert_error(post(server, {"instances": [1]}, path), 404, *texts)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/other",
        "/v1/models/other/metadata",
        MODEL + "/versions/9",
        MODEL + "/versions/9/metadata",
        "/v2/models/ranker",
    ],
)
def test_get_of_an_unknown_thing_is_not_found(server, path):
    assert_error(running.call(server, "GET", path), 404)


def test_version_must_be_a_number(server):
    answer = running.call(server, "GET", MODEL + "/versions/new")
    assert_error(answer, 400, "version must be an integer; got 'new'")


def test_wrong_http_method_is_refused_with_the_right_one(server):
    assert_error(running.call(server, "GET", MODEL + ":predict"), 405, "GET")


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (b"{not json", ["must be JSON"]),
        (b"\xff\xfe", ["must be JSON"]),
        (b"", ["must be JSON"]),
        ([1, 2], ["must be a JSON object; got list"]),
        ({}, ["either 'instances'", "got neither"]),
        ({"instances": [], "inputs": {}}, ["got instances and inputs"]),
        ({"instances": []}, ["non-empty list; got []"]),
        ({"instances": {"a": 1}}, ["non-empty list; got dict"]),
        ({"instances": [1], "signature_name": 3}, ["must be a string; got 3"]),
        ({"instances": ["no base64 but text", {"b64": "*"}]}, ["inputs.examples"]),
        ({"instances": [{"b64": "!"}]}, ["inputs.examples"]),
    ],
)
def test_malformed_body_is_refused_with_its_fault(server, body, texts):
    assert_error(post(server, body), 400, *texts)


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"price": "cheap"}, ["inputs.price must be float32 of shape [?]; got string"]),
        ({"user_id": 7}, ["inputs.user_id must be string of shape [?]; got int64"]),
        ({"user_id": ["7"]}, ["inputs.user_id must be string", "got shape [1, 1]"]),
        ({"genres": "g0"}, ["inputs.genres must be string of shape [?, ?]"]),
        ({"price": None}, ["inputs.price must hold only", "got None", "NaN"]),
        ({"genres": ["g0", 3]}, ["inputs.genres must hold only", "got 3"]),
        ({"user_id": {"b46": "x"}}, ["inputs.user_id", "b46"]),
        ({"channel": "nowhere"}, ["request.channel must lead to a domain", "d0"]),
        ({"colour": "red"}, [f"({INPUTS}); got unknown colour"]),
    ],
)
def test_row_with_a_wrong_input_is_refused_with_its_name(server, rows, change, texts):
    row = {**rows[0], **change}
    answer = post(server, {"signature_name": "predict", "instances": [row]})
    assert_error(answer, 400, *texts)


def test_missing_input_is_named(server, rows):
    row = {k: v for k, v in rows[0].items() if k != "age"}
    answer = post(server, {"signature_name": "predict", "instances": [row]})
    assert_error(answer, 400, f"({INPUTS}); got none for age.")


def test_misspelt_input_gets_the_nearest_name(server, rows):
    row = {k: v for k, v in rows[0].items() if k != "item_id"} | {"item": "i1"}
    answer = post(server, {"signature_name": "predict", "instances": [row]})
    assert_error(answer, 400, "none for item_id and unknown item", "mean 'item_id'?")


def test_row_with_other_inputs_than_the_first_is_named(server, rows):
    body = {"signature_name": "predict", "instances": [rows[0], {"age": 1}]}
    assert_error(post(server, body), 400, "request.instances[1] must have", "got age")


def test_unknown_signature_is_named_with_the_known_ones(server, rows):
    body = {"signature_name": "predikt", "instances": rows}
    known = "predict, predict_candidates, serving_default"
    assert_error(post(server, body), 400, known, "'predikt'", "mean 'predict'?")


def test_values_without_names_need_a_signature_of_one_input(server):
    body = {"signature_name": "predict", "instances": ["a"]}
    assert_error(post(server, body), 400, f"({INPUTS}); got values without names")


def test_columns_of_different_lengths_are_refused(server, columns):
    inputs = {**columns, "user_id": columns["user_id"][:2]}
    answer = post(server, {"signature_name": "predict", "inputs": inputs})
    assert_error(answer, 400)


def test_request_over_the_limit_is_refused(server):
    answer = post(server, b'{"instances": [' + b" " * 60_000 + b"]}")
    assert_error(answer, 413, "at most 50000 bytes", "--max_request_bytes")


def test_status_has_the_shape_of_tf_serving(server):
    wanted = {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    assert running.call(server, "GET", MODEL) == (200, wanted)
    assert running.call(server, "GET", MODEL + "/versions/1") == (200, wanted)


def test_metadata_has_the_shape_of_tf_serving(server):
    status, answer = running.call(server, "GET", MODEL + "/metadata")
    assert status == 200
    assert answer["model_spec"] == {
        "name": "ranker",
        "signature_name": "",
        "version": "1",
    }
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert sorted(signatures) == ["predict", "predict_candidates", "serving_default"]
    predict = signatures["predict"]
    assert predict["method_name"] == "tensorflow/serving/predict"
    assert ", ".join(sorted(predict["inputs"])) == INPUTS
    assert predict["inputs"]["genres"] == {
        "dtype": "DT_STRING",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "-1", "name": ""}],
            "unknown_rank": False,
        },
        "name": "predict_genres:0",
    }
    candidates = signatures["predict_candidates"]["inputs"]
    assert candidates["user_id"]["tensor_shape"]["dim"][0]["size"] == "1"
    assert candidates["item_id"]["tensor_shape"]["dim"][0]["size"] == "-1"


def test_health_says_ready(server):
    assert running.call(server, "GET", "/health") == (200, {"ready": True})


def samples(server):
    status, text = running.call(server, "GET", "/monitoring/prometheus/metrics")
    assert status == 200
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in parser.text_string_to_metric_families(text)
        for s in family.samples
    }


def test_metrics_count_requests_rows_and_time(server, rows):
    before = samples(server)
    post(server, {"signature_name": "predict", "instances": rows})
    post(server, {"instances": []})
    after = samples(server)

    def grown(*key):
        return after[key] - before.get(key, 0)

    assert grown("isthmus_scored_rows_total") == 5
    assert grown("isthmus_requests_total", "400", "rest") == 1
    # The good request and the first look at the metrics.
    assert grown("isthmus_requests_total", "200", "rest") == 2
    assert grown("isthmus_request_latency_seconds_count", "rest") == 3
    assert grown("isthmus_request_latency_seconds_sum", "rest") > 0
    assert after["isthmus_model_version",] == 1


def test_metrics_answer_is_prometheus_text(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/monitoring/prometheus/metrics")
        kind = connection.getresponse().headers["Content-Type"]
    assert kind.startswith("text/plain; version=")


def test_request_past_the_deadline_gets_504(saved, monkeypatch, rows):
    with running.serve(saved.parent, timeout_secs=0.2) as server:
        monkeypatch.setattr(
            model_store.LoadedModel, "predict", lambda *_: time.sleep(1)
        )
        answer = post(server, {"signature_name": "predict", "instances": rows})
        assert_error(answer, 504, "within 0.2 s", "--timeout_secs")
        assert samples(server)["isthmus_requests_total", "504", "rest"] == 1


def test_fault_of_the_server_is_a_json_500_and_it_goes_on(server, monkeypatch, rows):
    def fail(*_):
        raise RuntimeError("secret detail")

    body = {"signature_name": "predict", "instances": rows}
    with monkeypatch.context() as patch:
        patch.setattr(model_store.LoadedModel, "predict", fail)
        answer = post(server, body)
    assert_error(answer, 500, "its log says why")
    assert "secret" not in answer[1]["error"]
    assert post(server, body)[0] == 200
