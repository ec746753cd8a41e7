"""TF Serving's gRPC interface, over real sockets."""

import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import model_store
from serving.warmup import predict_request
from tests.serving import running
from tests.serving.test_rest import samples

CODES = grpc.StatusCode


@pytest.fixture(scope="module")
def server(saved):
    settings = {"max_request_bytes": 50_000, "timeout_secs": 5}
    with running.serve(saved.parent, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def predict(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def call(request, timeout=60):
        return stub.Predict(request, timeout=timeout)

    return call


@pytest.fixture(scope="module")
def metadata(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata


@pytest.fixture(scope="module")
def status(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus


@pytest.fixture
def request_(arrays):
    return predict_request("ranker", "predict", {k: v[:4] for k, v in arrays.items()})


def assert_refused(code, call, *texts):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code, caught.value.details()
    for text in texts:
        assert text in caught.value.details()


def test_predict_gives_scores_and_the_version_that_made_them(
    predict, request_, expected
):
    response = predict(request_)
    assert response.model_spec.name == "ranker"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "predict"
    assert sorted(response.outputs) == ["domain", "task0", "task1"]
    got = tf.make_ndarray(response.outputs["task0"])
    np.testing.assert_allclose(got, expected["task0"][:4], atol=1e-6)


@pytest.mark.parametrize(("name", "version"), [("other", 0), ("ranker", 9)])
def test_unknown_model_or_version_is_not_found(
    predict, metadata, status, request_, name, version
):
    request_.model_spec.name = name
    if version:
        request_.model_spec.version.value = version
    spec = request_.model_spec
    asked = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=spec, metadata_field=["signature_def"]
    )
    state = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
    for call in (
        lambda: predict(request_),
        lambda: metadata(asked),
        lambda: status(state),
    ):
        assert_refused(CODES.NOT_FOUND, call, name)


def test_missing_input_is_an_invalid_argument(predict, request_):
    del request_.inputs["age"]
    assert_refused(CODES.INVALID_ARGUMENT, lambda: predict(request_), "none for age")


def test_wrong_dtype_is_an_invalid_argument(predict, request_):
    request_.inputs["price"].CopyFrom(tf.make_tensor_proto([b"x"] * 4))
    assert_refused(
        CODES.INVALID_ARGUMENT,
        lambda: predict(request_),
        "inputs.price must be float32 of shape [?]; got string",
    )


def test_tensor_that_contradicts_its_shape_is_an_invalid_argument(predict, request_):
    request_.inputs["price"].tensor_content = b"abc"
    assert_refused(
        CODES.INVALID_ARGUMENT,
        lambda: predict(request_),
        "inputs.price must be a tensor",
    )


def test_unknown_signature_is_an_invalid_argument(predict, request_):
    request_.model_spec.signature_name = "x"
    assert_refused(CODES.INVALID_ARGUMENT, lambda: predict(request_), "'x'")


def test_unknown_domain_is_an_invalid_argument(predict, request_):
    request_.inputs["channel"].CopyFrom(tf.make_tensor_proto(["nowhere"] * 4))
    assert_refused(
        CODES.INVALID_ARGUMENT, lambda: predict(request_), "request.channel must lead"
    )


def test_request_over_the_limit_exhausts_resources(predict, request_):
    request_.inputs["user_id"].CopyFrom(tf.make_tensor_proto(["u" * 60_000]))
    assert_refused(CODES.RESOURCE_EXHAUSTED, lambda: predict(request_))


def test_callers_deadline_is_kept(server, predict, request_, monkeypatch):
    monkeypatch.setattr(model_store.LoadedModel, "predict", lambda *_: time.sleep(1))
    assert_refused(CODES.DEADLINE_EXCEEDED, lambda: predict(request_, timeout=0.1))


def test_servers_deadline_ends_a_request_without_one(
    predict, request_, monkeypatch, saved
):
    with (
        running.serve(saved.parent, timeout_secs=0.2) as slow,
        grpc.insecure_channel(f"127.0.0.1:{slow.grpc_port}") as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        patched = lambda *_: time.sleep(1)  # noqa: E731
        monkeypatch.setattr(model_store.LoadedModel, "predict", patched)
        assert_refused(
            CODES.DEADLINE_EXCEEDED, lambda: stub.Predict(request_), "within 0.2 s"
        )
        assert samples(slow)["isthmus_requests_total", "DEADLINE_EXCEEDED", "grpc"] == 1


def test_fault_of_the_server_is_internal_and_it_goes_on(predict, request_, monkeypatch):
    def fail(*_):
        raise RuntimeError("secret detail")

    with monkeypatch.context() as patch:
        patch.setattr(model_store.LoadedModel, "predict", fail)
        assert_refused(CODES.INTERNAL, lambda: predict(request_), "see its log")
    assert predict(request_).model_spec.version.value == 1


def test_metrics_count_grpc_requests_and_rows(server, predict, request_):
    before = samples(server)
    predict(request_)
    after = samples(server)
    ok = ("isthmus_requests_total", "OK", "grpc")
    assert after[ok] - before.get(ok, 0) == 1
    rows = ("isthmus_scored_rows_total",)
    assert after[rows] - before[rows] == 4


def test_metadata_packs_the_signatures(metadata):
    response = metadata(
        get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=model_pb2.ModelSpec(name="ranker"),
            metadata_field=["signature_def"],
        )
    )
    assert response.model_spec.version.value == 1
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    names = ["predict", "predict_candidates", "serving_default"]
    assert sorted(signatures.signature_def) == names


@pytest.mark.parametrize("fields", [[], ["weights"]])
def test_metadata_must_be_asked_for_by_its_name(metadata, fields):
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=model_pb2.ModelSpec(name="ranker"), metadata_field=fields
    )
    assert_refused(
        CODES.INVALID_ARGUMENT,
        lambda: metadata(request),
        f"metadata_field must be ['signature_def']; got {fields}",
    )


def test_status_says_available(status):
    spec = model_pb2.ModelSpec(name="ranker")
    response = status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec))
    (version,) = response.model_version_status
    assert version.version == 1
    assert version.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert version.status.error_code == 0
    assert version.status.error_message == ""


def test_request_without_inputs_is_an_invalid_argument(predict):
    request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(name="ranker"))
    assert_refused(
        CODES.INVALID_ARGUMENT, lambda: predict(request), "none for examples"
    )
