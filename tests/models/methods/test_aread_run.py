"""AREAD in the trainer: from files, with searches, stopped and resumed."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import collections  # isort: skip
import dataclasses  # isort: skip

import numpy as np  # isort: skip
import pyarrow as pa  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features import dataset as dataset_lib  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.aread import AREAD  # isort: skip
from models.training import streams, trainer  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.models.training import fakes  # isort: skip
from tfrecords_tools import encode  # isort: skip

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
    fakes.assert_resumes_exactly(config, tmp_path, monkeypatch, step=3)
    whole, state = (of(tmp_path / "whole") for of in (fakes.weights, fakes.state))
    (searches,) = (v for k, v in whole.items() if k.startswith("extra/searches"))
    assert searches == 2
    # In both searches two batches to train on and one to score by.
    drawn = {k: v for k, v in state["drawn"].items() if k != "main"}
    assert drawn == {"search/d0": 4, "search/d1": 4, "score/d0": 2, "score/d1": 2}
    (mask,) = (v for v in whole.values() if v.shape == (2, 2, 3))  # [D, N_1, N_2]
    assert set(mask.ravel()) == {0.0, 1.0}


COPIES_FROM = 10_000  # row ids of copies; those of the data set are below 200


def write_copies(dataset, path):
    """Writes a stream of copies of domain d1 only, as the job `augment` lays it out."""
    rows = tiny_dataset.make_rows(160, domains=2, tasks=1, seed=5)
    batch = pa.Table.from_batches([rows]).filter(pa.array(np.equal(rows["domain"], 1)))
    ids = pa.array(COPIES_FROM + np.arange(batch.num_rows))
    batch = batch.set_column(batch.schema.names.index("row_id"), "row_id", ids)
    name = "train/part-00000-of-00001.tfrecord"
    (dataset.data_dir / path / "train").mkdir(parents=True)
    encode.write_records(
        dataset.data_dir / path / name, batch, record_format="block", block_rows=32
    )
    counts = {"train": tiny_dataset.count_rows(batch, 2, 1)}
    info = dataclasses.replace(dataset.info, counts=counts, files={"train": (name,)})
    info.save(dataset.data_dir / path)
    (dataset.data_dir / path / dataset_lib.SUCCESS_FILE).touch()


@pytest.fixture
def rows_met(monkeypatch):
    """Row ids that came out of each stream's iterator: of steps, and of draws."""
    met = collections.defaultdict(list)
    read, draw = streams.read_domains, streams.TrainStreams.draw_one
    step = AREAD.train_step

    def note(ids, valid):
        met[MAIN] += ids[valid].tolist()

    def train_step(self, batches):
        batch = batches[MAIN]
        tf.numpy_function(note, [batch.keys["row_id"], batch.valid], [])
        return step(self, batches)

    def draw_one(self, name):
        batch = draw(self, name)
        if batch is not None:
            met[name] += batch.keys["row_id"].numpy()[batch.valid.numpy()].tolist()
        return batch

    def with_ids(dataset, **arguments):
        # Scoring asks for keys itself.
        return read(dataset, **arguments | {"keys": arguments["keys"] or ("row_id",)})

    monkeypatch.setattr(streams, "read_domains", with_ids)
    monkeypatch.setattr(streams.TrainStreams, "draw_one", draw_one)
    monkeypatch.setattr(AREAD, "train_step", train_step)
    return met


def test_no_step_meets_an_augmented_row_while_the_search_trains_on_them(
    tmp_path, rows_met
):
    """Property 11.  A search at step 2; three steps of 32 of the 160 training rows."""
    dataset = tiny_dataset.make_dataset(tmp_path / "data", rows=200, domains=2, tasks=1)
    write_copies(dataset, "streams/augmented")
    config = fakes.config(
        dataset.data_dir,
        method="aread",
        batch_size=32,
        max_steps=3,
        method_config=SMALL | {"augmented_path": "streams/augmented"},
    )
    trainer.train(config, tmp_path / "w")
    copies = set(rows_met.pop("search/d1"))
    assert len(copies) == 32  # two batches of 16
    assert min(copies) >= COPIES_FROM
    assert len(rows_met[MAIN]) == len(set(rows_met[MAIN])) == 3 * 32
    # d0 has no copies: its candidates train on rows of `score/d0`.
    assert rows_met.keys() == {MAIN, "score/d0", "score/d1"}
    for stream, ids in rows_met.items():
        assert max(ids) < 160, stream
