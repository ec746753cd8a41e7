import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers import tiny_dataset
from tests.models.training import fakes

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return tiny_dataset.make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(autouse=True)
def _fake_method(monkeypatch):
    monkeypatch.setitem(
        fakes.registry.METHODS, "fake", "tests.models.training.fakes:Fake"
    )


@pytest.fixture
def run_process(tmp_path):
    """Runs run_fake.py with a config; returns the finished process."""

    def run(config, workdir, *, signal_number=0, at_call=0):
        path = tmp_path / "config.yaml"
        path.write_text(config.to_json())
        script = pathlib.Path(__file__).with_name("run_fake.py")
        return subprocess.run(
            [
                sys.executable,
                str(script),
                str(signal_number),
                str(at_call),
                *("--config", str(path), "--workdir", str(workdir)),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run
