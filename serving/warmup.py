"""The warm-up file: real requests that TF Serving replays before it takes traffic."""

import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from serving.inputs import RawInput
from serving.signatures import CANDIDATES, EXAMPLES, PREDICT

WARMUP_FILE = "tf_serving_warmup_requests"
BATCH_SIZES = (1, 32)  # one request, one page of candidates


def write_warmup(
    export_dir: pathlib.Path,
    model_name: str,
    inputs: tuple[RawInput, ...],
    arrays: dict[str, np.ndarray],
) -> int:
    """Writes `assets.extra/tf_serving_warmup_requests`; returns the request count.

    Every signature gets one request of each of `BATCH_SIZES` (as far as there are
    rows), so that no first real request pays for its tracing.
    """
    available = len(next(iter(arrays.values())))
    path = export_dir / "assets.extra" / WARMUP_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for rows in sorted({min(size, available) for size in BATCH_SIZES}):
            for request in _requests(model_name, inputs, arrays, rows):
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString())
                count += 1
    return count


def read_warmup(export_dir: pathlib.Path) -> Iterator[predict_pb2.PredictRequest]:
    """Yields the requests of a version's warm-up file; none when there is no file.

    Raises:
      ValueError: For a record that is no predict request.
    """
    path = export_dir / "assets.extra" / WARMUP_FILE
    if not path.exists():
        return
    for number, record in enumerate(tf.data.TFRecordDataset(str(path))):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        if not log.HasField("predict_log"):
            raise ValueError(
                f"{path} must hold predict requests; record {number} is "
                f"{log.WhichOneof('log_type')}. Export again."
            )
        yield log.predict_log.request


def _requests(
    model_name: str,
    inputs: tuple[RawInput, ...],
    arrays: dict[str, np.ndarray],
    rows: int,
) -> list[predict_pb2.PredictRequest]:
    head = {name: value[:rows] for name, value in arrays.items()}
    shared = {
        item.name: head[item.name] if item.per_item else head[item.name][:1]
        for item in inputs
    }
    return [
        predict_request(model_name, PREDICT, head),
        predict_request(model_name, CANDIDATES, shared),
        predict_request(
            model_name, EXAMPLES, {"examples": serialized_examples(inputs, head)}
        ),
    ]


def predict_request(
    model_name: str, signature: str, arrays: dict[str, np.ndarray]
) -> predict_pb2.PredictRequest:
    """Returns a PredictRequest with these input arrays."""
    return predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(name=model_name, signature_name=signature),
        inputs={
            name: tf.make_tensor_proto(
                value, dtype=tf.string if value.dtype == object else None
            )
            for name, value in arrays.items()
        },
    )


def serialized_examples(
    inputs: tuple[RawInput, ...], arrays: dict[str, np.ndarray]
) -> np.ndarray:
    """Returns one serialized tf.Example a row (object array of bytes)."""
    rows = len(next(iter(arrays.values())))
    examples = []
    for row in range(rows):
        feature = {}
        for item in inputs:
            value = arrays[item.name][row]
            if item.kind == "number":
                number = tf.train.FloatList(value=[float(value)])
                feature[item.name] = tf.train.Feature(float_list=number)
                continue
            texts = [value] if item.kind == "id" else [v for v in value if v]
            data = [t if isinstance(t, bytes) else str(t).encode() for t in texts]
            feature[item.name] = tf.train.Feature(
                bytes_list=tf.train.BytesList(value=data)
            )
        features = tf.train.Features(feature=feature)
        examples.append(tf.train.Example(features=features).SerializeToString())
    return np.array(examples, object)
