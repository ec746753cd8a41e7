"""AREAD in the trainer: from files, with searches, stopped and resumed."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip

from models.training import trainer  # isort: skip
from models.training.loop import Loop  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.models.training import fakes  # isort: skip

SMALL = {
    "num_base_experts": 2,
    "base_units": (4,),
    "num_experts": (2, 3),
    "expert_units": ((4,), (4,)),
    "gate_width": 2,
    "num_candidates": 2,
    "candidate_steps": 2,
    "score_batches": 1,
    "warmup_steps": 2,
    "search_every": 4,
    "search_batch_share": 0.5,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    dataset = tiny_dataset.make_dataset(
        tmp_path_factory.mktemp("data"), rows=200, domains=2, tasks=1
    )
    return fakes.config(
        dataset.data_dir,
        method="aread",
        batch_size=32,
        max_steps=5,
        eval_every="5 steps",
        checkpoint_every="3 steps",
        method_config=SMALL,
    )


@pytest.mark.slow
def test_resumed_run_equals_the_uninterrupted_one_with_its_searches(
    config, tmp_path, monkeypatch
):
    """Searches at steps 2 and 4; the second run dies at step 3 and goes on."""
    trainer.train(config, tmp_path / "whole")
    plain = Loop.run

    def dies(self, iterators, steps):
        if int(self.method.optimizers["dense"].iterations) >= 3:
            raise KeyboardInterrupt
        return plain(self, iterators, steps)

    monkeypatch.setattr(Loop, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, tmp_path / "stopped")
    monkeypatch.setattr(Loop, "run", plain)
    trainer.train(config, tmp_path / "stopped")
    whole, resumed = (fakes.weights(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name], err_msg=name)
    state = fakes.state(tmp_path / "whole")
    assert state == fakes.state(tmp_path / "stopped")
    (searches,) = (v for k, v in whole.items() if k.startswith("extra/searches"))
    assert searches == 2
    # In both searches two batches to train on and one to score by.
    drawn = {k: v for k, v in state["drawn"].items() if k != "main"}
    assert drawn == {"search/d0": 4, "search/d1": 4, "score/d0": 2, "score/d1": 2}
    (mask,) = (v for v in whole.values() if v.shape == (2, 2, 3))  # [D, N_1, N_2]
    assert set(mask.ravel()) == {0.0, 1.0}
