import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, prediction_log_pb2

from serving import warmup
from serving.inputs import raw_inputs
from serving.model_store import LoadedModel

SIGNATURES = {"serving_default", "predict", "predict_candidates"}


@pytest.fixture(scope="module")
def requests(saved):
    """What TF Serving would read: PredictionLog records of a plain TFRecord file."""
    path = saved / "assets.extra" / "tf_serving_warmup_requests"
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(path))
    ]
    assert {log.WhichOneof("log_type") for log in logs} == {"predict_log"}
    return [log.predict_log.request for log in logs]


def test_warmup_has_every_signature_for_one_row_and_for_a_page(requests):
    assert len(requests) == 6
    assert {r.model_spec.signature_name for r in requests} == SIGNATURES
    assert {r.model_spec.name for r in requests} == {"ranker"}
    for request in requests:
        if request.model_spec.signature_name == "predict_candidates":
            assert request.inputs["user_id"].tensor_shape.dim[0].size == 1
    items = [r.inputs["item_id"] for r in requests if "item_id" in r.inputs]
    assert {i.tensor_shape.dim[0].size for i in items} == {1, 32}


def test_warmup_requests_replay_to_the_scores_of_their_rows(requests, loaded, expected):
    for request in requests:
        signature = request.model_spec.signature_name
        outputs = loaded.signatures[signature](
            **{k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        )
        if signature != "predict_candidates":  # there, the rows share one user
            count = len(outputs["task0"])
            np.testing.assert_allclose(
                outputs["task0"], expected["task0"][:count], atol=1e-6
            )


def test_warmup_numbers_of_few_rows_are_what_there_is(tmp_path, dataset, arrays):
    inputs = raw_inputs(dataset.info.spec)
    few = {name: value[:3] for name, value in arrays.items()}
    assert warmup.write_warmup(tmp_path, "m", inputs, few) == 6
    sizes = {
        r.inputs["item_id"].tensor_shape.dim[0].size
        for r in warmup.read_warmup(tmp_path)
        if "item_id" in r.inputs
    }
    assert sizes == {1, 3}


def test_version_without_warmup_file_has_no_requests(tmp_path):
    assert list(warmup.read_warmup(tmp_path)) == []


def test_warmup_record_of_another_kind_is_named(tmp_path):
    path = tmp_path / "assets.extra" / warmup.WARMUP_FILE
    path.parent.mkdir()
    log = prediction_log_pb2.PredictionLog(
        classify_log=prediction_log_pb2.ClassifyLog(
            request=classification_pb2.ClassificationRequest()
        )
    )
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(log.SerializeToString())
    with pytest.raises(ValueError, match="record 0 is classify_log"):
        list(warmup.read_warmup(tmp_path))


def test_loading_replays_the_warmup_requests(saved, monkeypatch):
    seen = []
    predict = LoadedModel.predict

    def spy(self, signature, inputs):
        seen.append((signature, len(next(iter(inputs.values())))))
        return predict(self, signature, inputs)

    monkeypatch.setattr(LoadedModel, "predict", spy)
    LoadedModel(saved)
    assert {signature for signature, _ in seen} == SIGNATURES
