"""ECAT with its source's representations kept beside the rows."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models.layers.frozen_source import FrozenSource  # isort: skip
from models.represent import main, represent  # isort: skip
from models.training import restore, streams, trainer  # isort: skip
from models.training.result import Result  # isort: skip
from models.training.signals import Interrupted  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.methods.test_ecat_run import run_config, stop_once  # isort: skip
from tests.models.training import fakes  # isort: skip
from tfrecords_tools import read  # isort: skip
from tfrecords_tools.vectors import RowVectors, VectorsError, write_part  # isort: skip

SETTINGS = data.SMALL["ecat"] | {"target_domain": "d1", "use_distillation": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A data set; folders of a source run, its vectors, and a run that reads them."""
    folder = tmp_path_factory.mktemp("vectors")
    dataset = tiny_dataset.make_dataset(folder / "tiny", rows=600)
    trainer.train(run_config(dataset, "eta"), folder / "source")
    represent(folder / "source", dataset.data_dir, folder / "eta")
    trainer.train(cached((dataset, folder)), folder / "whole")
    return dataset, folder


def cached(runs, **method_config):
    dataset, folder = runs
    settings = SETTINGS | {"source_vectors": str(folder / "eta")} | method_config
    return run_config(dataset, "ecat", **settings)


def test_vectors_are_the_sources_representations_of_every_training_row(runs):
    dataset, folder = runs
    vectors = RowVectors.open(folder / "eta")
    assert vectors.num_rows == dataset.info.num_rows("train")
    assert vectors.info.fingerprint == dataset.info.fingerprint
    model = restore.load_method(folder / "source").method.model
    source = FrozenSource(model, dataset.info.model_schema)
    assert vectors.info.version == source.version
    rows = read.cached_arrays(dataset, keys=("row_id",))
    expected = source.represent(rows.features)
    found = vectors.lookup(rows.keys["row_id"])
    assert found.keys() == {"sequence", "has_items"}
    np.testing.assert_allclose(found["sequence"], expected.sequence, atol=1e-6)
    np.testing.assert_array_equal(found["has_items"][:, 0] > 0, expected.has_items)
    assert 0 < found["has_items"].mean() <= 1


def test_loss_and_gradients_are_those_with_the_source_in_the_step(runs):
    dataset, folder = runs
    kept = trainer.make_method(cached(runs), dataset)
    in_step = {"source_vectors": "", "source_workdir": str(folder / "source")}
    plain = trainer.make_method(cached(runs, **in_step), dataset)
    for own, other in zip(kept.model.variables, plain.model.variables, strict=True):
        own.assign(other)
    vectors = RowVectors.open(folder / "eta")
    batches, joined = {}, {}
    for name, stream in kept.streams().items():
        rows = read.read_stream(
            dataset, domains=stream.domains, batch_size=128, keys=("row_id",)
        )
        batches[name] = next(iter(rows))
        joined[name] = next(iter(streams.join_vectors(rows, vectors)))
    assert not batches["main"].valid.numpy().all()  # padding rows have no vectors

    def gradients(method, fed):
        with tf.GradientTape() as tape:
            loss, metrics = method.loss(fed)
        return tape.gradient(loss, method.model.trainable_variables), metrics

    (ours, values), (theirs, expected) = (
        gradients(kept, joined),
        gradients(plain, batches),
    )
    assert float(expected["distillation_loss"]) > 0.01
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, atol=1e-6, err_msg=name)
    for own, other in zip(ours, theirs, strict=True):
        own, other = (tf.convert_to_tensor(g) for g in (own, other))
        np.testing.assert_allclose(own, other, atol=1e-6)


def test_trains_from_files_and_notes_the_version_of_its_source(runs):
    _, folder = runs
    assert Result.load(folder / "whole").steps == 6
    state = restore.load_method(folder / "whole").method.extra_state()
    assert state["source_versions"].versions == [
        RowVectors.open(folder / "eta").info.version
    ]


def test_stopped_run_that_goes_on_equals_the_whole_one(runs, tmp_path, monkeypatch):
    stop_once(monkeypatch)
    with pytest.raises(Interrupted):
        trainer.train(cached(runs), tmp_path)
    trainer.train(cached(runs), tmp_path)
    whole, stopped = fakes.weights(runs[1] / "whole"), fakes.weights(tmp_path)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, stopped[name], err_msg=name)


def test_neither_source_nor_vectors_are_needed_to_score(runs, tmp_path):
    _, folder = runs
    (folder / "eta").rename(folder / "away")
    try:
        assert restore.load_method(folder / "whole").method._source is None
        with pytest.raises(ValueError, match="no vectors in .*eta'. Write them"):
            trainer.train(cached(runs), tmp_path / "new")
    finally:
        (folder / "away").rename(folder / "eta")


def test_workers_write_parts_that_hold_the_same_together(runs, tmp_path):
    dataset, folder = runs
    rows = [
        represent(
            folder / "source",
            dataset.data_dir,
            tmp_path,
            num_workers=3,
            worker_index=index,
            batch_size=64,
        )
        for index in range(3)
    ]
    assert sum(rows) == dataset.info.num_rows("train")
    assert min(rows) > 0
    ids = read.cached_arrays(dataset, keys=("row_id",)).keys["row_id"]
    expected = RowVectors.open(folder / "eta").lookup(ids)
    for name, value in RowVectors.open(tmp_path).lookup(ids).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)


def test_a_part_that_is_there_is_left_or_refused(runs, tmp_path):
    dataset, folder = runs
    part = folder / "eta" / "part-00000-of-00001"
    before = part.stat().st_ino
    rows = represent(folder / "source", dataset.data_dir, folder / "eta")
    assert rows == dataset.info.num_rows("train")
    assert part.stat().st_ino == before
    both = ("sequence", "fields")
    with pytest.raises(VectorsError, match="represent.out must be a new folder"):
        represent(folder / "source", dataset.data_dir, folder / "eta", layers=both)
    with pytest.raises(VectorsError, match="'split': 'train'.*asked for are .*'test'"):
        represent(folder / "source", dataset.data_dir, folder / "eta", split="test")


def test_a_tapped_layer_must_have_been_kept(runs, tmp_path):
    dataset, folder = runs
    taps = ["sequence", "fields"]
    with pytest.raises(ValueError, match="'fields' must be as wide .* --layers=fields"):
        trainer.train(cached(runs, taps=taps), tmp_path / "run")
    represent(folder / "source", dataset.data_dir, tmp_path / "v", layers=taps)
    kept = {"source_vectors": str(tmp_path / "v")}
    method = trainer.make_method(cached(runs, taps=taps, **kept), dataset)
    assert method._source.inputs.keys() == {
        "vectors/sequence",
        "vectors/fields",
        "vectors/has_items",
    }


def test_warm_start_takes_the_weights_of_the_model_the_vectors_are_of(runs, tmp_path):
    dataset, folder = runs
    source = {"source_workdir": str(folder / "source"), "warm_start_from_source": True}
    method = trainer.make_method(cached(runs, **source), dataset)
    model = restore.load_method(folder / "source").method.model
    target = method.model.served.target
    for own, theirs in zip(target.variables, model.variables, strict=True):
        np.testing.assert_array_equal(own, theirs)
    trainer.train(run_config(dataset, "eta", embedding_stddev=0.02), tmp_path)
    other = source | {"source_workdir": str(tmp_path)}
    with pytest.raises(ValueError, match="source_vectors must be of the source model"):
        trainer.make_method(cached(runs, **other), dataset)
    gone = source | {"source_workdir": str(tmp_path / "gone")}
    with pytest.raises(ValueError, match="there is none in .*gone"):
        trainer.train(cached(runs, **gone), tmp_path / "run")


def test_vectors_of_other_rows_are_refused_before_the_run(runs, tmp_path):
    dataset, folder = runs
    represent(folder / "source", dataset.data_dir, tmp_path / "v", split="test")
    changes = {"source_vectors": str(tmp_path / "v")}
    with pytest.raises(VectorsError, match="must have every row that is asked for"):
        trainer.train(cached(runs, **changes), tmp_path / "run")


def test_a_later_row_without_vectors_ends_the_run_in_our_words(runs, tmp_path):
    """It is met inside a stream, where TensorFlow hides what was raised."""
    dataset, folder = runs
    whole = RowVectors.open(folder / "eta")
    ids = np.asarray(read.cached_arrays(dataset, keys=("row_id",)).keys["row_id"])[:-1]
    assert len(ids) > 256  # the first ones are looked up before the run
    write_part(tmp_path / "v", whole.info, [(ids, whole.lookup(ids))])
    config = cached(runs, source_vectors=str(tmp_path / "v"))
    with pytest.raises(VectorsError, match="1 of .* are not there"):
        trainer.train(config, tmp_path / "run")


def test_vectors_of_another_data_set_are_refused(runs, tmp_path):
    _, folder = runs
    other = tiny_dataset.make_dataset(tmp_path / "other", domains=2)
    config = cached(runs).model_copy(update={"data_dir": str(other.data_dir)})
    with pytest.raises(ValueError, match="must have vectors of the fingerprint"):
        trainer.train(config, tmp_path / "run")


@pytest.mark.parametrize(
    "changes", [{"gate_uses_source": True}, {"use_distillation": False}]
)
def test_vectors_that_nothing_could_read_are_refused(runs, changes):
    config = cached(runs, **changes)
    with pytest.raises(ConfigError, match="source_vectors are for use_distillation"):
        config.parsed_method_config()


@pytest.mark.parametrize("layers", [(), ("hidden",)])
def test_unknown_layers_are_refused(runs, tmp_path, layers):
    dataset, folder = runs
    with pytest.raises(ValueError, match="represent.layers must be some of sequence"):
        represent(folder / "source", dataset.data_dir, tmp_path, layers=layers)


def test_command_writes_tells_and_fails_with_a_status(runs, tmp_path, capsys):
    dataset, folder = runs
    flags = [f"--data_dir={dataset.data_dir}", f"--out={tmp_path / 'v'}"]
    assert main([f"--workdir={folder / 'gone'}", *flags]) == 1
    assert "models.represent: " in capsys.readouterr().err
    assert not (tmp_path / "v").exists()
    assert main([f"--workdir={folder / 'source'}", *flags]) == 0
    rows = dataset.info.num_rows("train")
    assert f"v: {rows:,} rows" in capsys.readouterr().out
