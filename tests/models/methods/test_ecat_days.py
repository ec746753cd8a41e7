"""ECAT day by day: a chain of real training runs, in this process (11 of our notes)."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import csv  # isort: skip
import json  # isort: skip
import logging  # isort: skip
import shutil  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip
import yaml  # isort: skip

from features import processes  # isort: skip
from features.dataset import Dataset  # isort: skip
from models.training import checkpoint, restore, trainer, warm_start  # isort: skip
from models.training.config import RunConfig  # isort: skip
from pipeline import continual  # isort: skip
from pipeline.chain import Chain, Walk  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.training import fakes  # isort: skip

OLD, NEW = "20231231", "20240101"  # versions of S
DAY_1, DAY_2 = 20240101, 20240102


def train(command):
    """Stands in for the process of a stage: the same, in this one."""
    options = dict(part.split("=", 1) for part in command[3:])
    with open(options["--config"]) as file:
        trainer.train(RunConfig.parse(yaml.safe_load(file)), options["--workdir"])
    return 0


def make_source(folder, dataset):
    """Trains a version of S and makes a newer one of it, with other weights."""
    run = {"method": "eta", "method_config": data.SMALL["eta"], "batch_size": 64}
    run |= {"data_dir": str(dataset.data_dir), "max_steps": 1}
    trainer.train(RunConfig.parse(run), folder / OLD / "run")
    newer = folder / NEW / "run"
    shutil.copytree(folder / OLD / "run", newer)
    method = restore.load_method(newer).method
    for variable in method.model.trainable_variables:
        variable.assign(1.5 * variable)
    values = tf.train.Checkpoint(**checkpoint.scoring_trackables(method))
    values.write(str(newer / "best" / "step-1"))


@pytest.fixture(scope="module")
def make_walk(tmp_path_factory):
    """Returns `make_walk(name, mode)`: a chain whose days have their data already."""
    folder = tmp_path_factory.mktemp("days")
    dataset = tiny_dataset.make_dataset(folder / "tiny", rows=600)
    make_source(folder / "source", dataset)
    small = {**data.SMALL["ecat"], "target_domain": "d1", "use_distillation": True}
    small["gst_share"] = "auto"

    def make(name, mode):
        for day in (DAY_1, DAY_2):
            (folder / name / str(day)).mkdir(parents=True, exist_ok=True)
            (folder / name / str(day) / "data").symlink_to(dataset.data_dir)
        values = {
            "dataset": "planted_ecat",  # whose split is by time
            "raw_dir": "raw",
            "run": {"method": "ecat", "method_config": small, "batch_size": 8},
            "source": {"chain": str(folder / "source"), "mode": mode},
        }
        return Walk(Chain.parse(values), folder / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "run", train)
        yield make


@pytest.fixture(scope="module")
def whole(make_walk):
    """Both days in one go, each with the newest source model of before it."""
    walk = make_walk("whole", "continual")
    continual.walk_days(walk, DAY_1, DAY_2)
    return walk


def stopped_after_day_1(whole, walk):
    """Puts the first day of the whole chain into another one."""
    day = walk.folder(DAY_1)
    shutil.copytree(whole.folder(DAY_1) / "run", day / "run")
    (day / "_DONE").touch()
    return walk


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for part in ("hash_matrix", "embedding_table", "discriminator", "optimizers/dense"):
        assert any(part in name for name in ours), part
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def source_versions(run):
    reader = tf.train.load_checkpoint(str(run / "checkpoints"))
    (name,) = [n for n in reader.get_variable_to_shape_map() if "source_ver" in n]
    return json.loads(reader.get_tensor(name))


def test_a_day_starts_from_all_that_the_day_before_ended_with(whole):
    first, second = (whole.folder(day) / "run" for day in (DAY_1, DAY_2))
    ended = fakes.weights(first)
    assert_same(fakes.weights(second, step=0), ended)
    # Not for want of training: both days moved the weights.
    for run, start in ((first, fakes.weights(first, step=0)), (second, ended)):
        after = fakes.weights(run)
        assert any(not np.array_equal(after[name], start[name]) for name in start)


def test_a_pass_over_the_target_is_a_pass_over_the_source_rows(whole):
    rows = tiny_dataset.make_rows(600).slice(0, 480)  # 80 % are training rows
    domain, day = (np.asarray(rows[name]) for name in ("domain", "day"))
    expected = {f"d{d}": int(np.sum((domain == d) & (day == DAY_1))) for d in range(3)}
    assert expected["d0"] + expected["d2"] > 2 * expected["d1"]
    run = whole.folder(DAY_1) / "run"
    with (run / "audit_w_da.csv").open() as file:
        read = {line["source"]: float(line["rows"]) for line in csv.DictReader(file)}
    assert read == {**expected, "d1": 0}  # of rows that w_da weighs
    assert fakes.state(run)["rows"] == expected["d1"]


def test_first_day_starts_from_the_weights_of_the_source(whole):
    run = whole.folder(DAY_1) / "run"
    started = trainer.make_method(restore.run_config(run), restore.open_dataset(run))
    source = restore.load_method(whole.source_run(DAY_1, DAY_1)).method.model
    target = started.model.served.target
    for theirs, ours in zip(source.variables, target.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.name)


def test_a_chain_stopped_after_a_day_comes_to_the_same_bits(whole, make_walk, caplog):
    """The second day is done again, from what the first one left on disk only."""
    walk = stopped_after_day_1(whole, make_walk("stopped", "continual"))
    with caplog.at_level(logging.WARNING):
        continual.walk_days(walk, DAY_1, DAY_2)
    runs = [chain.folder(DAY_2) / "run" for chain in (walk, whole)]
    assert_same(*map(fakes.weights, runs))
    assert fakes.state(runs[0]) == fakes.state(runs[1])
    versions = source_versions(runs[0])
    text = f"changed: {versions[0]} until now, {versions[1]} from here on"
    assert text in caplog.text


def test_checkpoint_of_a_day_knows_all_versions_of_its_source(whole):
    first, second = (whole.folder(day) / "run" for day in (DAY_1, DAY_2))
    versions = [
        restore.load_method(run).method._source.version for run in (first, second)
    ]
    assert versions[0] != versions[1]
    assert source_versions(first) == versions[:1]
    assert source_versions(second) == versions
    (note,) = json.loads((second / "warm_start.json").read_text())["notes"]
    assert f"changed: {versions[0]} until now, {versions[1]} from" in note


def test_one_time_transfer_never_reads_a_newer_source(whole, make_walk):
    walk = stopped_after_day_1(whole, make_walk("one_time", "one_time"))
    newer = whole.source_run(DAY_2, DAY_1)
    assert newer.parent.name == NEW
    kept = newer.rename(newer.with_name("kept"))
    newer.mkdir()
    (newer / "result.json").write_text("must not be read")
    try:
        config = RunConfig.parse(walk.run_config(DAY_2, DAY_1))
        dataset = Dataset.open(config.data_dir)
        method = trainer.make_method(config, dataset)  # which reads S
        taken = warm_start.warm_start(method, dataset, config.init_from)
    finally:
        shutil.rmtree(newer)
        kept.rename(newer)
    pinned = source_versions(whole.folder(DAY_1) / "run")
    assert [method._source.version] == pinned
    assert method.extra_state()["source_versions"].versions == pinned
    assert taken.notes == []
