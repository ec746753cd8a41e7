"""TF Serving's REST interface on aiohttp."""

import asyncio
import base64
import binascii
import concurrent.futures
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from aiohttp import web
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from serving.model_store import BadRequestError, ModelStore, UnknownVersionError
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
            client_max_size=max_request_bytes, middlewares=[self._errors]
        )
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
    async def _errors(
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
                504, f"request was not answered within {self._timeout_secs} s."
            )
        except web.HTTPException as error:
            response = _error(error.status, error.reason)
        self._monitoring.requests.labels("rest", str(response.status)).inc()
        self._monitoring.latency.labels("rest").observe(time.monotonic() - start)
        return response

    async def _predict(self, request: web.Request) -> web.Response:
        model = self._store.get(request.match_info["name"], _version(request))
        body = parse_body(await request.read())
        inputs, is_row_format = parse_inputs(body)
        future = asyncio.get_running_loop().run_in_executor(
            self._pool, model.predict, body.get("signature_name", ""), inputs
        )
        outputs = await asyncio.wait_for(future, self._timeout_secs)
        self._monitoring.rows.inc(len(next(iter(outputs.values()))))
        return web.json_response(format_outputs(outputs, is_row_format))

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
        defs = get_model_metadata_pb2.SignatureDefMap(
            signature_def=model.signature_defs
        )
        name = request.match_info["name"]
        spec = {"name": name, "signature_name": "", "version": str(model.version)}
        signatures = json_format.MessageToDict(defs, preserving_proto_field_name=True)
        return web.json_response(
            {"model_spec": spec, "metadata": {"signature_def": signatures}}
        )

    async def _health(self, _: web.Request) -> web.Response:
        ready = self._store.is_ready()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._monitoring.render(), content_type="text/plain")


def _version(request: web.Request) -> int | None:
    text = request.match_info.get("version")
    if text is None:
        return None
    if not text.isdigit():
        raise BadRequestError(f"version must be an integer; got {text!r}.")
    return int(text)


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)


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


def parse_inputs(body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Returns (inputs by name, is row format) from `instances` or `inputs`.

    Raises:
      BadRequestError: When neither or both stand there, or they have no regular shape.
    """
    if ("instances" in body) == ("inputs" in body):
        raise BadRequestError("request must have either 'instances' or 'inputs'.")
    if "inputs" in body:
        inputs = body["inputs"]
        if not isinstance(inputs, dict):
            inputs = {"examples": inputs}
        return {name: _array(name, value) for name, value in inputs.items()}, False
    instances = body["instances"]
    if not isinstance(instances, list) or not instances:
        raise BadRequestError("request.instances must be a non-empty list.")
    first = instances[0]
    if not isinstance(first, dict) or set(first) == {"b64"}:
        return {"examples": _array("examples", instances)}, True
    names = set(first)
    for row, instance in enumerate(instances):
        if not isinstance(instance, dict) or set(instance) != names:
            raise BadRequestError(
                f"request.instances[{row}] must have the inputs of the first one "
                f"({', '.join(sorted(names))})."
            )
    columns = {name: [row[name] for row in instances] for name in names}
    return {n: _array(n, _padded(v)) for n, v in columns.items()}, True


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
        if array.dtype.kind in "US":
            array = np.array(decoded, object)
    except (ValueError, TypeError, binascii.Error) as error:
        raise BadRequestError(
            f"inputs.{name} must be a regular array of numbers or strings: {error}"
        ) from error
    if array.dtype == object and any(
        not isinstance(v, str | bytes) for v in array.reshape(-1)
    ):
        raise BadRequestError(
            f"inputs.{name} must hold only numbers or only strings, without null."
        )
    return array


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) != {"b64"}:
            raise ValueError("an object must be {'b64': ...}")
        return base64.b64decode(value["b64"], validate=True)
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value


def format_outputs(
    outputs: dict[str, np.ndarray], is_row_format: bool
) -> dict[str, Any]:
    """Returns the JSON answer, in the format that the request had."""
    columns = {name: value.tolist() for name, value in outputs.items()}
    if not is_row_format:
        return {"outputs": columns}
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    return {"predictions": [dict(zip(names, row, strict=True)) for row in rows]}
