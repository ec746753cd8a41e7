"""The arrows between packages, and the registries."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MAY_IMPORT = {
    "features": set(),
    "tfrecords_tools": {"features"},
    "pipeline": {"features", "tfrecords_tools"},
    "models": {"features", "tfrecords_tools"},
    "serving": {"features", "tfrecords_tools", "models"},
}
FORBIDDEN = {
    "features": {"tensorflow", "tf_keras", "apache_beam", "tensorflow_data_validation"},
    "models": {"apache_beam", "tensorflow_data_validation", "tfx_bsl", "keras"},
    "serving": {"apache_beam", "tensorflow_data_validation", "tfx_bsl", "keras"},
    "tfrecords_tools": {"apache_beam", "tensorflow_data_validation", "keras"},
    "pipeline": {"keras"},
}
LAYERS_IN_MODELS = ("layers", "losses", "metrics", "optimizers")


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_between_packages_go_one_way(package):
    forbidden = (set(MAY_IMPORT) - MAY_IMPORT[package] - {package}) | FORBIDDEN[package]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imports(path)
        if name.split(".")[0] in forbidden
    ]
    assert not wrong


def test_methods_never_import_each_other():
    names = {path.stem for path in (ROOT / "models/methods").glob("*.py")}
    wrong = [
        f"{path.name} imports {name}"
        for path in (ROOT / "models/methods").glob("*.py")
        for name in imports(path)
        if name.startswith("models.methods.") and name.split(".")[2] in names
    ]
    assert not wrong


def test_building_blocks_know_nothing_of_methods_or_training():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for block in LAYERS_IN_MODELS
        for path in sources("models")
        if path.relative_to(ROOT / "models").parts[0].removesuffix(".py") == block
        for name in imports(path)
        if name.startswith(("models.methods", "models.training", "models.method."))
    ]
    assert not wrong


def test_setup_py_packages_are_the_top_level_packages():
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "registry"),
    [
        ("models.registry", "METHODS"),
        ("features.registry", "DATASETS"),
        ("pipeline.registry", "READERS"),
        ("pipeline.registry", "JOBS"),
    ],
)
def test_registry_lines_lead_to_what_they_name(module, registry):
    for target in getattr(importlib.import_module(module), registry).values():
        path, _, attribute = target.partition(":")
        assert hasattr(importlib.import_module(path), attribute)


def test_every_method_and_dataset_file_is_registered():
    for module, registry, folder in (
        ("models.registry", "METHODS", "models/methods"),
        ("features.registry", "DATASETS", "features/datasets"),
    ):
        targets = getattr(importlib.import_module(module), registry).values()
        registered = {target.partition(":")[0].split(".")[-1] for target in targets}
        files = {p.stem for p in (ROOT / folder).glob("*.py")} - {"__init__"}
        assert files == registered


def test_training_and_serving_import_without_beam_and_validation():
    code = (
        "import sys\n"
        "for name in ('apache_beam', 'tensorflow_data_validation', 'tfx_bsl'):\n"
        "    sys.modules[name] = None\n"
        "import models.train, models.compare, serving.export, serving.server\n"
        "import tfrecords_tools.read, features.registry\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
