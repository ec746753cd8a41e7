"""ECAT from files: a source run, and a run that learns from it, stopped and resumed."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip

from models.training import evaluate, restore, trainer  # isort: skip
from models.training.config import RunConfig  # isort: skip
from models.training.result import Result, scores_path  # isort: skip
from models.training.signals import Interrupted, StopRequest  # isort: skip
from serving.signatures import ServingModule  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.training import fakes  # isort: skip

SMALL = data.SMALL["eta"] | {"optimizer": data.FAST}


def run_config(dataset, method, **method_config):
    return RunConfig.parse(
        {
            "method": method,
            "method_config": SMALL | method_config,
            "data_dir": str(dataset.data_dir),
            "batch_size": 32,
            "max_steps": 6,
            "eval_every": 6,
            "steps_per_call": 2,
        }
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A data set, the config of ecat on it, its source run and its own run."""
    folder = tmp_path_factory.mktemp("ecat")
    dataset = tiny_dataset.make_dataset(folder / "tiny", rows=600)
    trainer.train(run_config(dataset, "eta"), folder / "source")
    settings = data.SMALL["ecat"] | {
        "target_domain": "d1",
        "use_distillation": True,
        "source_workdir": str(folder / "source"),
    }
    config = run_config(dataset, "ecat", **settings)
    trainer.train(config, folder / "whole")
    return dataset, config, folder


def stop_once(monkeypatch):
    """Interrupts the first process after its first call of the step."""
    asked = []
    plain = trainer.Trainer._after_step

    def enter(self):
        asked.append(self)
        self.received = None
        return self

    def after_step(self, progress):
        plain(self, progress)
        if len(asked) == 1 and self.state.step >= 2:
            asked[0].received = 15

    monkeypatch.setattr(StopRequest, "__enter__", enter)
    monkeypatch.setattr(trainer.Trainer, "_after_step", after_step)


def test_trains_from_files_with_a_source_run(runs):
    _, _, folder = runs
    result = Result.load(folder / "whole")
    assert result.steps == 6
    scores = evaluate.Scores.load(scores_path(folder / "whole", "test"))
    assert scores.domains == ("d1",)
    assert scores.num_rows > 0
    run = restore.load_method(folder / "whole")
    source = restore.load_method(folder / "source").method.model
    own = run.method._source.model
    for a, b in zip(source.variables, own.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert run.method.extra_state()["source_versions"].versions == [
        run.method._source.version
    ]


def test_stopped_run_that_goes_on_equals_the_whole_one(runs, monkeypatch):
    _, config, folder = runs
    stop_once(monkeypatch)
    with pytest.raises(Interrupted):
        trainer.train(config, folder / "stopped")
    trainer.train(config, folder / "stopped")
    whole, stopped = (fakes.weights(folder / n) for n in ("whole", "stopped"))
    tables = [folder / n / "audit_w_da.csv" for n in ("whole", "stopped")]
    assert tables[0].read_text() == tables[1].read_text()
    assert whole.keys() == stopped.keys()
    assert any("hash_matrix" in name for name in whole)
    assert any("accumulator" in name or "/m/" in name or "_m" in name for name in whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, stopped[name], err_msg=name)


def test_gate_that_reads_the_source_is_refused_by_the_export(runs):
    dataset, config, _ = runs
    offline = config.model_copy(
        update={"method_config": config.method_config | {"gate_uses_source": True}}
    )
    method = trainer.make_method(offline, dataset)
    with pytest.raises(ValueError, match="gate_uses_source must be false"):
        ServingModule(method, dataset)


def test_trained_run_scores_the_same_without_its_source(runs):
    dataset, _, folder = runs
    before = evaluate.score(
        restore.load_method(folder / "whole").method, dataset, "test"
    )
    (folder / "source").rename(folder / "away")
    try:
        method = restore.load_method(folder / "whole").method
    finally:
        (folder / "away").rename(folder / "source")
    assert method._source is None
    after = evaluate.score(method, dataset, "test")
    assert after.domains == ("d1",)
    np.testing.assert_array_equal(after.logits, before.logits)
