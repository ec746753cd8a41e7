"""TF Serving's REST interface on aiohttp: paths, bodies and errors are its own."""

import asyncio
import base64
import binascii
import concurrent.futures
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import prometheus_client
from absl import logging
from aiohttp import web
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.model_store import (
    BadRequestError,
    LoadedModel,
    ModelStore,
    UnknownVersionError,
)
from serving.monitoring import Monitoring

METRICS_PATH = "/monitoring/prometheus/metrics"
_MODEL = "/v1/models/{name:[^/:]+}"


class RestApp:
    """Routes of one model store.

    Args:
      store: The loaded model.
      monitoring: Where requests are counted.
      pool: Threads that run the graph.
      max_request_bytes: Larger bodies are refused (413).
      timeout_secs: A request not answered by then is refused (504).
    """

    def __init__(
        self,
        store: ModelStore,
        monitoring: Monitoring,
        pool: concurrent.futures.Executor,
        *,
        max_request_bytes: int,
        timeout_secs: float,
    ):
        self._store = store
        self._monitoring = monitoring
        self._pool = pool
        self._timeout_secs = timeout_secs
        self.app = web.Application(
            client_max_size=max_request_bytes, middlewares=[self._answer]
        )
        self._max_request_bytes = max_request_bytes
        self.app.add_routes(
            [
                web.post(_MODEL + ":predict", self._predict),
                web.post(_MODEL + "/versions/{version}:predict", self._predict),
                web.get(_MODEL, self._status),
                web.get(_MODEL + "/versions/{version}", self._status),
                web.get(_MODEL + "/metadata", self._metadata),
                web.get(_MODEL + "/versions/{version}/metadata", self._metadata),
                web.get("/health", self._health),
                web.get(METRICS_PATH, self._metrics),
            ]
        )

    @web.middleware
    async def _answer(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        start = time.monotonic()
        try:
            response = await handler(request)
        except UnknownVersionError as error:
            response = _error(404, str(error))
        except BadRequestError as error:
            response = _error(400, str(error))
        except TimeoutError:
            response = _error(
                504,
                f"request must be answered within {self._timeout_secs:g} s; it was "
                "not. Send fewer rows, or start the server with a larger "
                "--timeout_secs.",
            )
        except web.HTTPRequestEntityTooLarge:
            response = _error(
                413,
                f"request must have at most {self._max_request_bytes} bytes; got more. "
                "Send fewer rows, or start the server with a larger "
                "--max_request_bytes.",
            )
        except web.HTTPException as error:
            text = f"{request.method} {request.path}: {error.reason}."
            response = _error(error.status, text, error.headers)
        except Exception:  # the caller must get an answer; the log gets the reason
            logging.exception("%s %s failed", request.method, request.path)
            response = _error(500, "the server failed; its log says why.")
        self._monitoring.requests.labels("rest", str(response.status)).inc()
        self._monitoring.latency.labels("rest").observe(time.monotonic() - start)
        return response

    async def _predict(self, request: web.Request) -> web.Response:
        model = self._store.get(request.match_info["name"], _version(request))
        body = parse_body(await request.read())
        future = asyncio.get_running_loop().run_in_executor(
            self._pool, _predict, model, body
        )
        answer, rows = await asyncio.wait_for(future, self._timeout_secs)
        self._monitoring.rows.inc(rows)
        return web.json_response(answer)

    async def _status(self, request: web.Request) -> web.Response:
        states = self._store.status(request.match_info["name"], _version(request))
        return web.json_response(
            {
                "model_version_status": [
                    {
                        "version": str(version),
                        "state": str(state),
                        "status": {
                            "error_code": "UNKNOWN" if error else "OK",
                            "error_message": error,
                        },
                    }
                    for version, (state, error) in sorted(states.items(), reverse=True)
                ]
            }
        )

    async def _metadata(self, request: web.Request) -> web.Response:
        model = self._store.get(request.match_info["name"], _version(request))
        name = request.match_info["name"]
        spec = {"name": name, "signature_name": "", "version": str(model.version)}
        signatures = {
            key: _signature_json(value) for key, value in model.signature_defs.items()
        }
        # Twice "signature_def": the name of the metadata field, then of its content.
        metadata = {"signature_def": {"signature_def": signatures}}
        return web.json_response({"model_spec": spec, "metadata": metadata})

    async def _health(self, _: web.Request) -> web.Response:
        ready = self._store.is_ready()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        headers = {"Content-Type": prometheus_client.CONTENT_TYPE_LATEST}
        return web.Response(body=self._monitoring.render(), headers=headers)


def _version(request: web.Request) -> int | None:
    text = request.match_info.get("version")
    if text is None:
        return None
    if not text.isdigit():
        raise BadRequestError(f"version must be an integer; got {text!r}.")
    return int(text)


def _error(
    status: int, text: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    allow = {k: v for k, v in (headers or {}).items() if k == "Allow"}
    return web.json_response({"error": text}, status=status, headers=allow)


def _predict(model: LoadedModel, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Returns the JSON answer and its number of rows; runs outside the event loop."""
    signature = body.get("signature_name", "")
    if not isinstance(signature, str):
        raise BadRequestError(
            f"request.signature_name must be a string; got {signature!r}."
        )
    inputs, is_row_format = parse_inputs(body, model.input_names(signature))
    outputs = model.predict(signature, inputs)
    rows = len(next(iter(outputs.values())))
    return format_outputs(outputs, is_row_format), rows


def _signature_json(signature: meta_graph_pb2.SignatureDef) -> dict[str, Any]:
    """Returns a SignatureDef as TF Serving prints it: int64 as text, no field left out.

    Spelt out because the option of `json_format` for it changed its name between
    versions of protobuf.
    """
    return {
        "inputs": {k: _tensor_json(v) for k, v in signature.inputs.items()},
        "outputs": {k: _tensor_json(v) for k, v in signature.outputs.items()},
        "method_name": signature.method_name,
        "defaults": {},
    }


def _tensor_json(info: meta_graph_pb2.TensorInfo) -> dict[str, Any]:
    shape = info.tensor_shape
    return {
        "dtype": types_pb2.DataType.Name(info.dtype),
        "tensor_shape": {
            "dim": [{"size": str(dim.size), "name": dim.name} for dim in shape.dim],
            "unknown_rank": shape.unknown_rank,
        },
        "name": info.name,
    }


def parse_body(data: bytes) -> dict[str, Any]:
    """Returns the JSON object of a request.

    Raises:
      BadRequestError: When it is not one.
    """
    try:
        body = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"request body must be JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError(
            f"request body must be a JSON object; got {type(body).__name__}."
        )
    return body


def parse_inputs(
    body: dict[str, Any], names: Sequence[str]
) -> tuple[dict[str, Any], bool]:
    """Returns (inputs by name, is row format) from `instances` or `inputs`.

    Args:
      body: The request.
      names: Inputs of the signature; the name of a single one may be left out.

    Raises:
      BadRequestError: When neither or both stand there, or they have no regular shape.
    """
    given = [key for key in ("instances", "inputs") if key in body]
    if len(given) != 1:
        raise BadRequestError(
            "request must have either 'instances' (rows) or 'inputs' (columns); got "
            f"{' and '.join(given) or 'neither'}."
        )
    if given == ["inputs"]:
        inputs = body["inputs"]
        if not isinstance(inputs, dict) or set(inputs) == {"b64"}:
            inputs = {_only(names): inputs}
        return {name: _array(name, value) for name, value in inputs.items()}, False
    instances = body["instances"]
    if not isinstance(instances, list) or not instances:
        raise BadRequestError(
            f"request.instances must be a non-empty list; got {_json_kind(instances)}."
        )
    if not _is_named(instances[0]):
        name = _only(names)
        return {name: _array(name, instances)}, True
    known = set(instances[0])
    for row, instance in enumerate(instances):
        if not _is_named(instance) or instance.keys() != known:
            got = ", ".join(instance) if _is_named(instance) else repr(instance)
            raise BadRequestError(
                f"request.instances[{row}] must have the inputs of the first one "
                f"({', '.join(sorted(known))}); got {got[:200]}."
            )
    columns = {name: [row[name] for row in instances] for name in known}
    return {n: _array(n, _padded(v)) for n, v in columns.items()}, True


def _is_named(instance: Any) -> bool:
    return isinstance(instance, dict) and set(instance) != {"b64"}


def _only(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise BadRequestError(
            "request.instances and request.inputs must name their inputs "
            f"({', '.join(names)}); got values without names."
        )
    return names[0]


def _json_kind(value: Any) -> str:
    return "[]" if value == [] else type(value).__name__


def _padded(values: list[Any]) -> list[Any]:
    """Lists of rows may have their own lengths: padded with "" as the model expects."""
    if not all(isinstance(value, list) for value in values):
        return values
    width = max(len(value) for value in values)
    return [value + [""] * (width - len(value)) for value in values]


def _array(name: str, value: Any) -> np.ndarray:
    try:
        decoded = _decode(value)
        array = np.array(decoded)
    except (ValueError, TypeError, binascii.Error) as error:
        raise BadRequestError(
            f"inputs.{name} must be a regular array of numbers or strings; {error}."
        ) from error
    if array.dtype.kind in "US":
        # NumPy turns a number among strings to text, and cuts trailing zero bytes.
        array = np.array(decoded, object)
    if array.dtype.kind not in "OSU":
        return array
    wrong = [v for v in array.reshape(-1) if not isinstance(v, str | bytes)]
    if wrong:
        raise BadRequestError(
            f"inputs.{name} must hold only numbers or only strings, no null; got "
            f'{wrong[0]!r}. Send NaN or "" for a missing value.'
        )
    return array


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) != {"b64"}:
            raise ValueError(f"got an object with {', '.join(sorted(value))}")
        return base64.b64decode(value["b64"], validate=True)
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value


def format_outputs(
    outputs: dict[str, np.ndarray], is_row_format: bool
) -> dict[str, Any]:
    """Returns the JSON answer, in the format that the request had.

    As in TF Serving, the name of a single output is left out.
    """
    columns = {name: value.tolist() for name, value in outputs.items()}
    is_single = len(columns) == 1
    if not is_row_format:
        return {"outputs": next(iter(columns.values())) if is_single else columns}
    if is_single:
        return {"predictions": next(iter(columns.values()))}
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    return {"predictions": [dict(zip(names, row, strict=True)) for row in rows]}
