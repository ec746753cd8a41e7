"""TF Serving's gRPC interface: PredictionService and ModelService."""

import concurrent.futures
import time

import grpc
import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.model_store import (
    BadRequestError,
    LoadedModel,
    ModelStore,
    UnknownVersionError,
)
from serving.monitoring import Monitoring

_METADATA_FIELD = "signature_def"
_OK, _UNKNOWN = error_codes_pb2.OK, error_codes_pb2.UNKNOWN
_STATES = get_model_status_pb2.ModelVersionStatus.State


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the other calls need signatures we do not export.

    Args:
      store: The loaded model.
      monitoring: Where requests are counted.
      pool: Threads that run the graph; gRPC's own threads wait for the deadline.
      timeout_secs: Longest answer, when the caller's deadline is not shorter.
    """

    def __init__(
        self,
        store: ModelStore,
        monitoring: Monitoring,
        pool: concurrent.futures.Executor,
        *,
        timeout_secs: float,
    ):
        self._store = store
        self._monitoring = monitoring
        self._pool = pool
        self._timeout_secs = timeout_secs

    def Predict(  # noqa: N802 - the name is the protocol's
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        """Scores rows."""
        start = time.monotonic()
        code, text, response = grpc.StatusCode.OK, "", None
        try:
            response = self._predict(request, context)
        except UnknownVersionError as error:
            code, text = grpc.StatusCode.NOT_FOUND, str(error)
        except BadRequestError as error:
            code, text = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except concurrent.futures.TimeoutError:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            text = (
                f"request must be answered within {self._timeout_secs:g} s or the "
                "caller's deadline; it was not. Send fewer rows, or start the server "
                "with a larger --timeout_secs."
            )
        except Exception:  # the caller must get an answer; the log gets the reason
            logging.exception("Predict failed")
            code, text = grpc.StatusCode.INTERNAL, "the server failed; see its log."
        self._monitoring.requests.labels("grpc", code.name).inc()
        self._monitoring.latency.labels("grpc").observe(time.monotonic() - start)
        if response is None:
            context.abort(code, text)
        return response

    def _predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        model = _model(self._store, request.model_spec)
        inputs = {k: _ndarray(k, v) for k, v in request.inputs.items()}
        signature = request.model_spec.signature_name
        remaining = context.time_remaining()
        limit = min(
            self._timeout_secs, self._timeout_secs if remaining is None else remaining
        )
        future = self._pool.submit(model.predict, signature, inputs)
        try:
            outputs = future.result(timeout=limit)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise
        self._monitoring.rows.inc(len(next(iter(outputs.values()))))
        response = predict_pb2.PredictResponse(
            outputs={k: tf.make_tensor_proto(v) for k, v in outputs.items()}
        )
        response.model_spec.CopyFrom(request.model_spec)
        response.model_spec.version.value = model.version
        return response

    def GetModelMetadata(  # noqa: N802
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Returns the signatures; the request must ask for `signature_def`."""
        fields = list(request.metadata_field)
        if fields != [_METADATA_FIELD]:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"request.metadata_field must be [{_METADATA_FIELD!r}]; got {fields}.",
            )
        try:
            model = _model(self._store, request.model_spec)
        except UnknownVersionError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = model.version
        defs = get_model_metadata_pb2.SignatureDefMap(
            signature_def=model.signature_defs
        )
        response.metadata[_METADATA_FIELD].Pack(defs)
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; the configuration is the command line's, so no reload by RPC.

    Args:
      store: The loaded model.
    """

    def __init__(self, store: ModelStore):
        self._store = store

    def GetModelStatus(  # noqa: N802
        self,
        request: get_model_status_pb2.GetModelStatusRequest,
        context: grpc.ServicerContext,
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Returns the state of every version, or of the one asked for."""
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        try:
            states = self._store.status(spec.name, version)
        except UnknownVersionError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, (state, text) in sorted(states.items(), reverse=True):
            status = response.model_version_status.add(
                version=number, state=_STATES.Value(state)
            )
            status.status.error_code = _UNKNOWN if text else _OK
            status.status.error_message = text
        return response


def _model(store: ModelStore, spec: model_pb2.ModelSpec) -> LoadedModel:
    version = spec.version.value if spec.HasField("version") else None
    return store.get(spec.name, version)


def _ndarray(name: str, proto: object) -> np.ndarray:
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise BadRequestError(f"inputs.{name} must be a tensor; {error}.") from error
