"""The smallest caller: one JSON file of rows in, one line a row out, REST or gRPC.

The same requests work against the embedded server and against TF Serving.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc

from serving.signatures import PREDICT
from serving.warmup import predict_request

EPILOG = """examples:
  python -m serving.client --model ranker --rows rows.json
  python -m serving.client --model ranker --rows rows.json --grpc localhost:8500

rows.json is a list of objects, one a row: {"user_id": "7", "price": 3.5, ...}; every
export has one to try in assets.extra.
"""


class RequestError(RuntimeError):
    """The server refused the request; the text is its reason."""


def predict_rest(
    url: str, rows: list[dict[str, Any]], timeout_secs: float = 10
) -> list[dict[str, float]]:
    """Returns one object of outputs a row.

    Args:
      url: `http://host:8501/v1/models/NAME`.
      rows: Raw inputs by name.
      timeout_secs: Longest wait.

    Raises:
      RequestError: With the server's own words.
    """
    body = json.dumps({"signature_name": PREDICT, "instances": rows}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}:predict", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_secs) as response:
            return json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        raise RequestError(f"{error.code}: {_reason(error.read())}") from error


def _reason(body: bytes) -> str:
    """The text of TF Serving's error object; whatever it is from a proxy before it."""
    try:
        return json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return body[:500].decode(errors="replace")


def predict_grpc(
    address: str, model: str, arrays: dict[str, np.ndarray], timeout_secs: float = 10
) -> dict[str, np.ndarray]:
    """Returns outputs by name for raw input arrays, over gRPC.

    Raises:
      RequestError: With the server's own words.
    """
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_request(model, PREDICT, arrays)
        try:
            response = stub.Predict(request, timeout=timeout_secs)
        except grpc.RpcError as error:
            raise RequestError(f"{error.code().name}: {error.details()}") from error
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Returns input arrays by name from rows; lists are padded with "".

    Raises:
      ValueError: When there is no row, or one has other inputs than the first.
    """
    is_list = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not is_list or not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError(
            "client.rows must be a non-empty list of objects with the same keys; got "
            f'{len(rows)} rows. Give a missing value as "" or NaN.'
        )
    return {name: _column([row[name] for row in rows]) for name in rows[0]}


def _column(values: list[Any]) -> np.ndarray:
    if isinstance(values[0], list):
        width = max(map(len, values))
        padded = [value + [""] * (width - len(value)) for value in values]
        return np.array(padded, object).reshape(len(values), width)
    is_number = isinstance(values[0], int | float)
    return np.array(values, np.float32 if is_number else object)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description=__doc__.split("\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="model name")
    parser.add_argument("--rows", required=True, help="JSON file, - for stdin")
    parser.add_argument("--rest", default="localhost:8501", help="REST host:port")
    parser.add_argument("--grpc", help="gRPC host:port; then REST is not used")
    args = parser.parse_args(argv)
    try:
        if args.rows == "-":
            rows = json.load(sys.stdin)
        else:
            with open(args.rows, encoding="utf-8") as file:
                rows = json.load(file)
        arrays = columns(rows)  # also checks them
        if args.grpc:
            outputs = predict_grpc(args.grpc, args.model, arrays)
            names = list(outputs)
            scored = [
                dict(zip(names, map(float, row), strict=True))
                for row in zip(*outputs.values(), strict=True)
            ]
        else:
            scored = predict_rest(f"http://{args.rest}/v1/models/{args.model}", rows)
    except (RequestError, OSError, ValueError) as error:
        print(f"client failed: {error}", file=sys.stderr)
        return 1
    for row in scored:
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
