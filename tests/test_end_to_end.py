"""The main job on a small log: raw rows to scores over REST and gRPC."""

import asyncio
import json
import threading
import urllib.request

import numpy as np
import pytest

from features.dataset import Dataset
from features.registry import dataset_spec
from features.synthetic import main as synthetic_main
from models.training.config import RunConfig
from models.training.evaluate import Scores
from models.training.restore import load_method
from models.training.trainer import train
from pipeline.jobs import preprocess
from pipeline.options import PreprocessOptions
from serving import client
from serving.export import export
from serving.gate import GateError, decide
from serving.inputs import raw_inputs
from serving.publish import versions
from serving.samples import raw_arrays, read_samples
from serving.server import Server, ServerConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("end_to_end")


@pytest.fixture(scope="module")
def dataset(folder):
    raw = str(folder / "raw")
    assert synthetic_main(["--out", raw, "--rows", "6000", "--seed", "1"]) == 0
    options = PreprocessOptions(
        spec=dataset_spec("synthetic"),
        raw_dir=raw,
        data_dir=str(folder / "data"),
        statistics=False,
        user_buckets=3,
    )
    return preprocess.run(options)


@pytest.fixture(scope="module")
def run(dataset, folder):
    config = RunConfig(
        method="mlp",
        method_config={"hidden_units": [16]},
        data_dir=str(dataset.data_dir),
        batch_size=512,
        max_epochs=1,
    )
    train(config, folder / "run")
    return load_method(folder / "run")


@pytest.fixture(scope="module")
def exported(run, folder):
    return export(run.method, run.dataset, folder / "export" / "ranker", version=1)


@pytest.fixture(scope="module")
def server(exported, folder):
    started, stop = threading.Event(), threading.Event()
    holder = {}

    def serve():
        async def body():
            holder["server"] = server = Server(
                ServerConfig(
                    model_dir=str(folder / "export" / "ranker"),
                    rest_port=0,
                    grpc_port=0,
                    poll_secs=0.2,
                    max_request_bytes=100_000,
                )
            )
            await server.start()
            started.set()
            while not stop.is_set():
                await asyncio.sleep(0.05)
            await server.stop()

        asyncio.run(body())

    thread = threading.Thread(target=serve)
    thread.start()
    assert started.wait(60)
    yield holder["server"]
    stop.set()
    thread.join(30)


@pytest.fixture(scope="module")
def rows(dataset):
    spec = dataset.info.spec
    table = read_samples(dataset, "test", 5)
    arrays = raw_arrays(spec, raw_inputs(spec), table)
    names = list(arrays)
    listed = [arrays[name].tolist() for name in names]
    return arrays, [dict(zip(names, r, strict=True)) for r in zip(*listed, strict=True)]


def test_every_raw_row_is_prepared_or_rejected(dataset):
    kept = sum(dataset.info.num_rows(split) for split in dataset.info.counts)
    assert kept + sum(dataset.info.rejected.values()) == 6000


def test_prepared_bytes_do_not_depend_on_buckets(dataset, folder):
    options = PreprocessOptions(
        spec=dataset_spec("synthetic"),
        raw_dir=str(folder / "raw"),
        data_dir=str(folder / "data_again"),
        statistics=False,
        user_buckets=7,
    )
    again = preprocess.run(options)
    for path in sorted(p for p in dataset.data_dir.rglob("*") if p.is_file()):
        if "samples" not in path.parts:
            other = again.data_dir / path.relative_to(dataset.data_dir)
            assert path.read_bytes() == other.read_bytes(), path.name


def test_export_agrees_with_the_training_graph(exported):
    assert exported.parity.rows > 0
    assert exported.parity.max_difference < 1e-5
    assert exported.parity.max_difference_tf1 < 1e-5


def test_a_failed_export_leaves_the_published_versions(exported, run, folder):
    base = folder / "export" / "ranker"
    with pytest.raises(ValueError, match="above the newest"):
        export(run.method, run.dataset, base, version=1)
    assert versions(base) == [1]
    assert not list(base.glob(".writing*"))


def test_gate_refuses_a_candidate_that_fell_in_a_domain(exported):
    path = exported.path / "assets.extra" / "gate_scores.npz"
    published = Scores.load(path)
    worse = published.logits.copy()
    chosen = published.domain == 0
    worse[chosen] = -10 * published.labels[chosen]
    with pytest.raises(GateError, match=published.domains[0]):
        decide(
            Scores(**{**published.__dict__, "logits": worse}),
            exported.path,
            mode="noise",
        )
    assert decide(published, exported.path, mode="noise").compared_with == 1


def test_rest_grpc_and_artefact_give_one_score(server, rows, run):
    arrays, listed = rows
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/ranker"
    rest = client.predict_rest(url, listed)
    grpc = client.predict_grpc(f"127.0.0.1:{server.grpc_port}", "ranker", arrays)
    for task in run.method.schema.tasks:
        over_rest = np.array([row[task] for row in rest])
        np.testing.assert_allclose(over_rest, grpc[task], rtol=1e-6)
        assert ((over_rest > 0) & (over_rest < 1)).all()


def test_unknown_item_scores_and_unknown_domain_is_refused(server, rows, dataset):
    _, listed = rows
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/ranker"
    assert client.predict_rest(url, [{**listed[0], "item_id": "never seen"}])
    column = dataset.info.spec.domain.column
    with pytest.raises(client.RequestError, match=f"400.*request.{column}"):
        client.predict_rest(url, [{**listed[0], column: "nowhere"}])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{not json", 400),
        (b'{"instances": []}', 400),
        (b'{"instances": [{"user_id": "1"}], "signature_name": "predict"}', 400),
        (b'{"instances": [{"user_id": "1"}], "signature_name": "x"}', 400),
        (b" " * 200_000, 413),
    ],
)
def test_bad_requests_get_a_clear_status(server, body, status):
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/ranker:predict"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=10)
    assert caught.value.code == status
    assert json.load(caught.value)["error"]
    caught.value.close()


def test_status_metadata_health_and_metrics_answer(server):
    base = f"http://127.0.0.1:{server.rest_port}"

    def get(path):
        with urllib.request.urlopen(base + path, timeout=10) as response:
            return response.read().decode()

    status = json.loads(get("/v1/models/ranker"))
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    signatures = json.loads(get("/v1/models/ranker/metadata"))
    assert "predict_candidates" in json.dumps(signatures)
    assert json.loads(get("/health")) == {"ready": True}
    assert "isthmus_requests_total" in get("/monitoring/prometheus/metrics")


def test_dataset_opens_with_the_fingerprint_it_was_written_with(dataset):
    assert Dataset.open(dataset.data_dir).info.fingerprint == dataset.info.fingerprint
