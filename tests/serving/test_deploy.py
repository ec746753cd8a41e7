"""Files for real TF Serving: they parse, and agree with each other and the README."""

import pathlib
import re

import pytest
import yaml
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.rest import METRICS_PATH
from serving.server import ServerConfig

ROOT = pathlib.Path(__file__).parents[2]
DEPLOY = ROOT / "serving" / "deploy"


def parsed(name, message):
    return text_format.Parse((DEPLOY / name).read_text(), message)


@pytest.fixture(scope="module")
def compose():
    (service,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())[
        "services"
    ].values()
    return service


@pytest.fixture(scope="module")
def models():
    config = parsed("models.config", model_server_config_pb2.ModelServerConfig())
    return config.model_config_list.config


BOOL, STRING, INT64 = 8, 9, 3  # FieldDescriptorProto.Type
INT64_VALUE = ".google.protobuf.Int64Value"


@pytest.fixture(scope="module")
def messages():
    """TF Serving's messages that its Python package does not bring along.

    Fields as in session_bundle_config.proto and monitoring_config.proto.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="deploy_test.proto",
        package="deploy_test",
        dependency=["google/protobuf/wrappers.proto"],
        syntax="proto3",
    )
    fields = {
        "BatchingParameters": {
            "max_batch_size": (1, INT64_VALUE),
            "batch_timeout_micros": (2, INT64_VALUE),
            "max_enqueued_batches": (3, INT64_VALUE),
            "num_batch_threads": (4, INT64_VALUE),
            "allowed_batch_sizes": (6, INT64),
            "pad_variable_length_inputs": (7, BOOL),
        },
        "PrometheusConfig": {"enable": (1, BOOL), "path": (2, STRING)},
        "MonitoringConfig": {"prometheus_config": (1, ".deploy_test.PrometheusConfig")},
    }
    for message, members in fields.items():
        made = file.message_type.add(name=message)
        for name, (number, kind) in members.items():
            label = 3 if name == "allowed_batch_sizes" else 1
            field = made.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = 11, kind
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"deploy_test.{name}")
        )
        for name in fields
    }


def test_models_config_serves_the_newest_version_from_the_mounted_folder(
    models, compose
):
    (model,) = models
    assert model.model_platform == "tensorflow"
    assert model.model_version_policy.latest.num_versions == 1
    mounts = [volume.rsplit(":", 2) for volume in compose["volumes"]]
    (folder,) = [m[1] for m in mounts if "EXPORT_DIR" in m[0]]
    assert model.base_path == f"{folder}/{model.name}"


def test_batching_pads_lists_so_that_requests_can_be_joined(messages):
    batching = parsed("batching.config", messages["BatchingParameters"]())
    assert batching.pad_variable_length_inputs
    assert batching.max_batch_size.value >= 1
    assert batching.num_batch_threads.value >= 1
    assert batching.batch_timeout_micros.value <= 5_000


def test_monitoring_is_on_at_the_path_of_the_embedded_server(messages):
    monitoring = parsed("monitoring.config", messages["MonitoringConfig"]())
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path == METRICS_PATH


def test_compose_mounts_every_config_that_its_command_names(compose):
    mounted = {
        volume.split(":")[1]: volume.split(":")[0]
        for volume in compose["volumes"]
        if volume.startswith("./")
    }
    named = re.findall(r"=(/config/\S+)", " ".join(compose["command"]))
    assert sorted(named) == sorted(mounted)
    for source in mounted.values():
        assert (DEPLOY / source).is_file()
    assert all(volume.endswith(":ro") for volume in compose["volumes"])


def test_compose_uses_the_ports_of_the_embedded_server(compose):
    config = ServerConfig(model_dir="x")
    wanted = {f"{p}:{p}" for p in (config.rest_port, config.grpc_port)}
    assert set(compose["ports"]) == wanted


def test_readme_names_the_file_the_port_and_the_model(models):
    readme = (ROOT / "README.md").read_text()
    assert "docker compose -f serving/deploy/compose.yaml up" in readme
    port = ServerConfig(model_dir="x").rest_port
    assert f"localhost:{port}/v1/models/{models[0].name}" in readme
    assert "EXPORT_DIR=" in readme
