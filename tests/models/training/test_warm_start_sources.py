"""Going on with tables and counts that lie source by source, after ids were added."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import dataclasses  # isort: skip
import shutil  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip
import tf_keras as keras  # isort: skip

from features.dataset import Dataset  # isort: skip
from features.schema import FeatureInfo  # isort: skip
from features.vocab import Vocab  # isort: skip
from models.layers.grown_tables import GrownTables, GrowthError  # isort: skip
from models.layers.tokens import TokenEmbeddings  # isort: skip
from models.training import trainer, warm_start, workdir  # isort: skip
from models.training.checkpoint import Checkpoints, RunState  # isort: skip
from models.training.config import RunConfig  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip

USERS, ITEMS = 42, 62  # ids of the tiny data set, two reserved
MORE = {"user_id": 5, "item_id": 7}  # ids of the day after
METHOD = {
    "target_domain": "d0",  # d1 and d2 are the sources
    "hidden_units": [8],
    "selector_units": [4],
    "ren_weight": 0.0,
    "optimizer": {"embedding": {"kind": "lazy_adam"}},
}


def make(dataset, *, seed=0):
    keras.utils.set_random_seed(seed)
    config = RunConfig.parse(
        {
            "method": "cctl",
            "method_config": METHOD,
            "data_dir": str(dataset.data_dir),
        }
    )
    return config, trainer.make_method(config, dataset)


def stopped(dataset, folder, method, config):
    """The workdir of a run that ended with the values `method` has."""
    folder.mkdir()
    run = config.model_dump(mode="json")
    workdir.write_json(folder / workdir.CONFIG_FILE, {"run": run})
    Checkpoints(folder, method, RunState(), keep=1).save()
    return folder


def fill(method):
    """Gives every value a number of its own, so that a misplaced one shows."""
    rng = np.random.default_rng(0)
    own = [*method.model.variables]
    own += [v for optimizer in method.optimizers.values() for v in optimizer.variables]
    for variable in own:
        if variable.dtype.is_floating:
            variable.assign(rng.normal(size=variable.shape))


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """The tiny data set, and the same rows with longer vocabularies."""
    folder = tmp_path_factory.mktemp("days")
    first = tiny_dataset.make_dataset(folder / "first")
    shutil.copytree(first.data_dir, folder / "second")
    fitted = first.info.fitted
    vocabs = {
        name: Vocab(
            [*fitted.vocabs[name].array.to_pylist(), *(f"new{i}" for i in range(more))],
            version=2,
        )
        for name, more in MORE.items()
    }
    popularity = np.append(
        fitted.popularity["item_popularity"], np.zeros(MORE["item_id"], np.float32)
    )
    fitted = dataclasses.replace(
        fitted,
        vocabs=fitted.vocabs | vocabs,
        popularity={"item_popularity": popularity},
    )
    dataclasses.replace(first.info, fitted=fitted).save(folder / "second")
    return first, Dataset.open(folder / "second")


@pytest.fixture(scope="module")
def taken(days, tmp_path_factory):
    """A method of the first day, one of the second that goes on from it, and that
    before it did.
    """
    config, old = make(days[0])
    fill(old)
    folder = stopped(days[0], tmp_path_factory.mktemp("runs") / "run", old, config)
    new, fresh = (make(days[1], seed=1)[1] for _ in range(2))
    report = warm_start.warm_start(new, days[1], folder)
    return old, new, fresh, report


def test_old_ids_of_every_source_are_read_as_before(taken):
    """By the layer itself, whatever the layout."""
    old, new, *_ = taken
    for source in range(2):
        for name, size in (("item_id", ITEMS), ("user_id", USERS)):
            ids, sources = tf.range(size), tf.fill([size], source)
            before, now = (
                tables.fields.lookup(name, tables.place(name, ids, sources)[None])
                for tables in (old.model.source, new.model.source)
            )
            np.testing.assert_array_equal(now, before, err_msg=f"{name} {source}")


@pytest.mark.parametrize("slot", [None, "m", "v"])
def test_tables_grow_source_by_source(taken, slot):
    """2 x 42 users and 2 x 62 items before, 2 x 47 and 2 x 69 now."""
    values = []
    for method in taken[:3]:
        (variable,) = (v for v in method.model.source.variables if v.shape[1] == 8)
        if slot:
            variable = method.optimizers["embedding"].slots(variable)[slot]
        values.append(variable.numpy())
    before, now, start = values
    assert (len(before), len(now)) == (2 * 42 + 2 * 62, 2 * 47 + 2 * 69)
    for here, there, size, more in (
        (0, 0, 42, 5),  # users of d1
        (42, 47, 42, 5),  # users of d2
        (84, 94, 62, 7),  # items of d1
        (146, 163, 62, 7),  # items of d2
    ):
        end = there + size
        np.testing.assert_array_equal(now[there:end], before[here : here + size])
        np.testing.assert_array_equal(now[end : end + more], start[end : end + more])
        assert np.any(now[end : end + more]) == (slot is None)


def test_report_has_the_ids_of_one_table(taken):
    assert taken[3].grown == {"user_id": (42, 47), "item_id": (62, 69)}


def tables(num_ids, num_sources):
    field = FeatureInfo("item", "item", "id", "item", num_ids, 2)
    layer = TokenEmbeddings([field], num_sources=num_sources)
    layer.build(None)
    return layer


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # 12 rows each: the variable's shape says nothing.
        ((6, 2), (4, 3), "for as many sources as this model, 3; got 2"),
        ((6, 2), (5, 2), "must not shrink; got 5 rows, before 6"),
    ],
)
def test_tables_of_other_sources_and_shorter_ones_are_refused(old, new, expected):
    old, new = tables(*old), tables(*new)
    grown = GrownTables(old, new, owner="init_from")
    with pytest.raises(GrowthError, match=expected):
        grown.copy(old.variables[0], new.variables[0])
