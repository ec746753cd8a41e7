"""Latency of the embedded server, over real sockets; one JSON line.

One row a request over REST and gRPC, and 200 items of one user: in one
`predict_candidates` request against 200 requests of one row, both over gRPC.  The
model is an MLP with random weights on the tests' tiny data set, so that the figures
are those of the server rather than of matrix products.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # run as a file, `tests` is not on the path

import serving  # noqa: E402, F401 - chooses Keras 2, so it comes first

import grpc  # noqa: E402  # isort: skip
import numpy as np  # noqa: E402  # isort: skip
import tensorflow as tf  # noqa: E402  # isort: skip
from tensorflow_serving.apis import prediction_service_pb2_grpc  # noqa: E402  # isort: skip

from models import registry  # noqa: E402  # isort: skip
from serving import warmup  # noqa: E402  # isort: skip
from serving.inputs import raw_inputs  # noqa: E402  # isort: skip
from serving.samples import raw_arrays  # noqa: E402  # isort: skip
from serving.signatures import ServingModule  # noqa: E402  # isort: skip
from tests.helpers import tiny_dataset  # noqa: E402  # isort: skip
from tests.serving import tiny_raw  # noqa: E402  # isort: skip

ITEMS = 200
WARMUP_REQUESTS = 30


def export(folder):
    """Saves a version; returns (raw arrays of 200 rows, names of item inputs)."""
    dataset = tiny_dataset.make_dataset(folder / "data")
    cls = registry.method_class("mlp")
    method = cls(cls.Config(), dataset.info.model_schema)
    spec = dataset.info.spec
    inputs = raw_inputs(spec)
    table = tiny_raw.raw_table(tiny_dataset.make_rows(ITEMS))
    arrays = raw_arrays(spec, inputs, table)
    path = folder / "ranker" / "1"
    module = ServingModule(method, dataset)
    tf.saved_model.save(module, str(path), signatures=module.signatures())
    warmup.write_warmup(path, "ranker", inputs, arrays)
    return arrays, {item.name for item in inputs if item.per_item}


@contextlib.contextmanager
def server(folder):
    """Gives (REST port, gRPC port) of the server in a process of its own."""
    command = [sys.executable, "-m", "serving.server", f"--model_dir={folder}"]
    process = subprocess.Popen(
        [*command, "--rest_port=0", "--grpc_port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    try:
        line = process.stdout.readline()
        yield tuple(map(int, re.findall(r"127\.0\.0\.1:(\d+)", line)))
    finally:
        process.terminate()
        process.communicate()


def latencies_ms(call, requests):
    for _ in range(WARMUP_REQUESTS):
        call()
    times = []
    for _ in range(requests):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def percentiles(name, times):
    p50, p99 = np.percentile(times, [50, 99])
    return {f"{name}_p50_ms": round(p50, 2), f"{name}_p99_ms": round(p99, 2)}


def rest_caller(port, row):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = json.dumps({"signature_name": "predict", "instances": [row]})

    def call():
        connection.request("POST", "/v1/models/ranker:predict", body)
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise RuntimeError(data.decode())

    return call


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=500)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        arrays, item_inputs = export(folder)
        line = {"benchmark": "serving", "requests": args.requests, "items": ITEMS}
        one = {k: v[:1] for k, v in arrays.items()}
        many = {k: v if k in item_inputs else v[:1] for k, v in arrays.items()}
        (row,) = tiny_raw.request_rows(arrays, 1)
        with (
            server(folder / "ranker") as (rest_port, grpc_port),
            grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
        ):
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            single = warmup.predict_request("ranker", "predict", one)
            candidates = warmup.predict_request("ranker", "predict_candidates", many)
            rest = latencies_ms(rest_caller(rest_port, row), args.requests)
            line |= percentiles("rest", rest)
            alone = latencies_ms(lambda: stub.Predict(single), args.requests)
            line |= percentiles("grpc", alone)
            together = latencies_ms(lambda: stub.Predict(candidates), args.requests)
            line |= percentiles("candidates", together)
        separate = ITEMS * float(np.median(alone))
        line["separate_ms"] = round(separate, 1)
        line["ratio"] = round(separate / float(np.median(together)), 1)
        line["hardware"] = f"{os.cpu_count()} x {platform.machine()}"
        print(json.dumps(line))


if __name__ == "__main__":
    main()
