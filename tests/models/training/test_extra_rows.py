"""Rows of another folder in every step, beside those of some domains."""

import collections
import shutil

import numpy as np
import pytest
import tensorflow as tf

from features.dataset import Dataset
from models.training import streams, trainer
from models.training.checkpoint import RunState
from models.training.result import Result
from tests.helpers import tiny_dataset
from tests.models.training import fakes
from tfrecords_tools import read

EXTRA = "streams/more"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data set, and a stream that holds all of its training rows once more."""
    folder = tmp_path_factory.mktemp("extra")
    dataset = tiny_dataset.make_dataset(folder / "tiny", rows=300)
    shutil.copytree(dataset.data_dir, folder / "more")
    shutil.move(folder / "more", dataset.data_dir / EXTRA)
    return str(dataset.data_dir)


def open_streams(data_dir, drawn=None, **changes):
    """Streams of a run of 8 rows of d1 and 20 of the stream a step, and their plans."""
    settings = {"train_domains": ["d1"], "extra_rows": {EXTRA: 2.5}} | changes
    config = fakes.config(data_dir, batch_size=8, **settings)
    dataset = Dataset.open(data_dir)
    method = trainer.make_method(config, dataset)
    plans = streams.plan_streams(method, dataset, config)
    state = RunState()
    state.drawn.update(drawn or {})
    strategy = tf.distribute.get_strategy()
    return streams.TrainStreams(plans, method, config, strategy, state), state


def take(opened, steps):
    """Batches of the only stream that the method sees, drawn call by call."""
    found = []
    while steps:
        count = min(steps, opened.remaining())
        (iterator,) = opened.iterators().values()
        found += [next(iterator) for _ in range(count)]
        opened.advance(count)
        steps -= count
    return found


def rows_of(batch, most):
    """Its first rows, padding left out: all features but the domain index."""
    names = sorted(batch.features.keys() - {"domain"})
    columns = [np.asarray(batch.features[name])[:most] for name in names]
    valid = np.asarray(batch.valid)[:most]
    return [
        tuple(column[i].tobytes() for column in columns) for i in np.flatnonzero(valid)
    ]


def test_a_batch_holds_rows_of_both_and_an_epoch_each_own_row_once(data_dir):
    opened, _ = open_streams(data_dir)
    own = opened.plans["main"]
    batches = take(opened, own.steps_per_epoch)
    assert {len(b.valid) for b in batches} == {28}
    domains = np.concatenate([b.domain[:8][b.valid[:8]] for b in batches])
    assert set(domains) == {1}
    seen = [row for b in batches for row in rows_of(b, 8)]
    there = rows_of(read.cached_arrays(Dataset.open(data_dir), domains=("d1",)), None)
    assert collections.Counter(seen) == collections.Counter(there)
    others = np.concatenate([b.domain[8:][b.valid[8:]] for b in batches])
    assert set(others) == {0, 1, 2}


def test_every_extra_row_comes_once_before_any_comes_again(data_dir):
    opened, _ = open_streams(data_dir)
    name = streams.EXTRA + EXTRA
    plan = opened.plans[name]
    assert plan.rows == Dataset.open(data_dir).info.num_rows("train")
    batches = take(opened, plan.steps_per_epoch)  # several epochs of the main rows
    valid = np.concatenate([b.valid[8:] for b in batches])
    assert valid.sum() == plan.rows
    counts = np.bincount(
        np.concatenate([b.domain[8:] for b in batches])[valid], minlength=3
    )
    info = Dataset.open(data_dir).info
    assert counts.tolist() == [info.num_rows("train", f"d{i}") for i in range(3)]


def test_streams_opened_in_the_middle_go_on_where_they_were(data_dir):
    whole, _ = open_streams(data_dir)
    batches = take(whole, 12)
    first, state = open_streams(data_dir)
    take(first, 7)
    assert len(state.drawn) == 2
    again, _ = open_streams(data_dir, state.drawn)
    for one, other in zip(batches[7:], take(again, 5), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def test_run_trains_on_them_and_scores_all_domains(data_dir, tmp_path):
    config = fakes.config(
        data_dir, max_epochs=1, train_domains=["d1"], extra_rows={EXTRA: 1.0}
    )
    trainer.train(config, tmp_path)
    cells = Result.load(tmp_path).metrics["test"]["cells"]
    assert {cell["domain"] for cell in cells} == {"d0", "d1", "d2"}


def test_rows_held_out_for_fusion_are_of_the_same_domains(data_dir):
    settings = {"fusion_update": "alternate", "fusion_holdout": 0.3}
    opened, _ = open_streams(
        data_dir, method="m3oe", method_config=settings, extra_rows={}
    )
    domains = {name: plan.domains for name, plan in opened.plans.items()}
    assert domains == {"main": ("d1",), "held_out": ("d1",)}


def test_methods_of_several_streams_and_unknown_domains_are_refused(data_dir):
    with pytest.raises(ValueError, match="extra_rows are for methods .* main, other"):
        open_streams(data_dir, method_config={"two_streams": True})
    with pytest.raises(LookupError, match="train_domains.*d7"):
        open_streams(data_dir, train_domains=["d7"])
    with pytest.raises(ValueError, match="finished folder streams/none .*missing"):
        open_streams(data_dir, extra_rows={"streams/none": 1.0})
