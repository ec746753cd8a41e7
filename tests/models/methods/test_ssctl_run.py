"""SSCTL trained from files: a run that is stopped half-way is the same run."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip

from models.training import trainer  # isort: skip
from models.training.config import RunConfig  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.models.methods import data  # isort: skip

SETTINGS = data.SMALL["ssctl"] | {
    "dropout": 0.3,
    "pseudo_ramp_steps": (1, 3),
    "pseudo_prior": "balanced",
    "expert_units": (8,),
    "tower_units": (),
    "gate_units": (),
}


class StopsAtTwo(trainer.Trainer):
    def _call(self, progress):
        if self.state.step == 2:
            self.checkpoints.save()
            raise KeyboardInterrupt
        super()._call(progress)


def run(cls, config, dataset, workdir):
    trainer.strategy_lib.seed_everything(config.seed)
    workdir.mkdir(exist_ok=True)
    one = cls(config, dataset, workdir)
    try:
        one.run()
    except KeyboardInterrupt:
        return None
    finally:
        one.close()
    assert one.loop.trace_count == 1
    return one.method


def test_stopped_run_equals_the_whole_one(tmp_path):
    dataset = tiny_dataset.make_dataset(tmp_path / "tiny")
    config = RunConfig(
        method="ssctl",
        method_config=SETTINGS,
        data_dir=str(dataset.data_dir),
        batch_size=64,
        max_steps=5,
        steps_per_call=1,
    )
    whole = run(trainer.Trainer, config, dataset, tmp_path / "whole")
    assert run(StopsAtTwo, config, dataset, tmp_path / "cut") is None
    again = run(trainer.Trainer, config, dataset, tmp_path / "cut")
    pairs = [(whole.model.variables, again.model.variables)]
    pairs.append((whole.labelling.variables, again.labelling.variables))
    for first, second in pairs:
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=a.name)
    tables = [tmp_path / n / "audit_pseudo_weight.csv" for n in ("whole", "cut")]
    assert tables[0].read_text() == tables[1].read_text()
    rows = whole.audit_tables()["pseudo_weight"].totals.numpy()[:, 0].sum()
    assert rows > 100  # about half of 5 batches of 64 are dominant
    assert float(whole.pseudo_strength()) == np.float32(0.7)
