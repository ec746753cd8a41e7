"""ECAT with an export of its source in place of the source's run."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import dataclasses  # isort: skip
import shutil  # isort: skip

import numpy as np  # isort: skip
import pyarrow.parquet as pq  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.schema import ModelSchema  # isort: skip
from models.layers.frozen_source import FrozenSource  # isort: skip
from models.layers.saved_source import SavedSource  # isort: skip
from models.represent import represent  # isort: skip
from models.training import restore, source, trainer  # isort: skip
from serving import parity  # isort: skip
from serving.export import export  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.methods.test_ecat_run import run_config  # isort: skip
from tests.serving import tiny_raw  # isort: skip
from tfrecords_tools import read  # isort: skip
from tfrecords_tools.vectors import RowVectors  # isort: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A data set, the run of a source, and its export as version 7."""
    folder = tmp_path_factory.mktemp("saved")
    dataset = tiny_dataset.make_dataset(folder / "tiny", rows=600)
    samples = folder / "tiny" / "samples"
    samples.mkdir()
    table = tiny_raw.raw_table(tiny_dataset.make_rows(600).slice(540))
    pq.write_table(table, samples / "test.parquet")
    trainer.train(run_config(dataset, "eta"), folder / "run")
    method = restore.load_method(folder / "run").method
    with pytest.MonkeyPatch.context() as patch:  # its fresh process has tests elsewhere
        same = parity.Parity(1, 0.0, 0.0)
        patch.setattr(parity, "check_parity", lambda *_, **__: same)
        export(method, dataset, folder / "export", version=7, gate_mode="off")
    return dataset, method.model, folder


def config(exported, **method_config):
    dataset, _, folder = exported
    settings = data.SMALL["ecat"] | {
        "target_domain": "d1",
        "use_distillation": True,
        "source_workdir": str(folder / "export"),
    }
    return run_config(dataset, "ecat", **settings | method_config)


def test_export_gives_the_representations_of_the_run(exported):
    dataset, model, folder = exported
    schema = dataset.info.model_schema
    rows = read.cached_arrays(dataset)
    features = {name: tf.constant(v) for name, v in rows.features.items()}
    expected = FrozenSource(model, schema).represent(features)
    saved = SavedSource(folder / "export" / "7", schema)
    # Inside a graph, as in a step; with a feature that only the other model has.
    found = tf.function(saved.represent)(features | {"valid": rows.valid})
    np.testing.assert_allclose(found.fields, expected.fields, atol=1e-6)
    np.testing.assert_allclose(found.sequence, expected.sequence, atol=1e-6)
    np.testing.assert_array_equal(found.has_items, expected.has_items)
    turned = ModelSchema(schema.features, ("d2", "d0"), schema.tasks)
    moved = {**features, "domain": tf.zeros_like(features["domain"])}  # d2 there
    in_d2 = {**features, "domain": tf.fill(features["domain"].shape, 2)}
    np.testing.assert_allclose(
        SavedSource(folder / "export" / "7", turned).represent(moved).fields,
        FrozenSource(model, schema).represent(in_d2).fields,
        atol=1e-6,
    )


def test_trains_from_the_newest_version_and_scores_without_it(exported, tmp_path):
    _, _, folder = exported
    (folder / "export" / "6").mkdir()
    try:
        trainer.train(config(exported), tmp_path)
        run = restore.load_method(tmp_path)
        saved = SavedSource(folder / "export" / "7", run.method.schema)
        versions = run.method.extra_state()["source_versions"].versions
        assert versions == [saved.version]
        (folder / "export").rename(folder / "away")
        try:
            assert restore.load_method(tmp_path).method._source is None
        finally:
            (folder / "away").rename(folder / "export")
    finally:
        (folder / "export" / "6").rmdir()


def test_vectors_can_be_written_from_an_export(exported, tmp_path):
    dataset, model, folder = exported
    represent(folder / "export", dataset.data_dir, tmp_path)
    rows = read.cached_arrays(dataset, keys=("row_id",))
    source = FrozenSource(model, dataset.info.model_schema)
    expected = source.represent(rows.features).sequence
    found = RowVectors.open(tmp_path).lookup(rows.keys["row_id"])["sequence"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_version_changes_with_the_weights_only(exported, tmp_path):
    dataset, model, folder = exported
    schema = dataset.info.model_schema
    shutil.copytree(folder / "export" / "7", tmp_path / "8")
    first = SavedSource(tmp_path / "8", schema).version
    assert first == SavedSource(folder / "export" / "7", schema).version
    (values,) = (tmp_path / "8" / "variables").glob("variables.data-*")
    changed = bytearray(values.read_bytes())
    changed[-1] ^= 1
    values.write_bytes(changed)
    assert SavedSource.version_of(tmp_path / "8") != first


def test_an_export_cannot_start_a_model(exported):
    dataset, _, _ = exported
    with pytest.raises(ValueError, match="needs the run of the source model"):
        trainer.make_method(config(exported, warm_start_from_source=True), dataset)


def test_other_inputs_and_domains_are_refused(exported):
    dataset, _, folder = exported
    schema = dataset.info.model_schema
    longer = tuple(
        dataclasses.replace(f, length=f.length + 1) if f.kind == "sequence" else f
        for f in schema.features
    )
    with pytest.raises(ValueError, match="exported source model reads .*this data set"):
        SavedSource(
            folder / "export" / "7", dataclasses.replace(schema, features=longer)
        )
    more = dataclasses.replace(schema, domains=(*schema.domains, "new"))
    with pytest.raises(ValueError, match="it has not seen new"):
        SavedSource(folder / "export" / "7", more)


def test_an_export_of_another_kind_is_refused(exported, tmp_path):
    dataset, _, _ = exported
    tf.saved_model.save(tf.Module(), str(tmp_path / "1"))
    assert source.exists(tmp_path)
    assert not source.exists(tmp_path / "nothing")
    with pytest.raises(TypeError, match="must be an export of eta or din"):
        source.open_source(tmp_path, dataset.info.model_schema)
