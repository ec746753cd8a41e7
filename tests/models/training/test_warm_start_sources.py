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
from models.audit import WeightAudit  # isort: skip
from models.layers.grown_tables import GrownTables, GrowthError  # isort: skip
from models.layers.tokens import TokenEmbeddings  # isort: skip
from models.training import trainer, warm_start, workdir  # isort: skip
from models.training.checkpoint import Checkpoints, RunState  # isort: skip
from models.training.config import RunConfig  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.models.methods import data  # isort: skip

USERS, ITEMS = 42, 62  # ids of the tiny data set, two reserved
MORE = {"user_id": 5, "item_id": 7}  # ids of the day after
SETTINGS = {
    "cctl": {
        "target_domain": "d0",  # d1 and d2 are the sources
        "hidden_units": [8],
        "selector_units": [4],
        "audit_feature": "item_id",
        "optimizer": {"embedding": {"kind": "lazy_adam"}},
    },
    "ecat": data.SMALL["ecat"] | {"audit_feature": "item_id"},
}


def make(name, dataset, *, seed=0, **settings):
    keras.utils.set_random_seed(seed)
    config = RunConfig.parse(
        {
            "method": name,
            "method_config": SETTINGS[name] | settings,
            "data_dir": str(dataset.data_dir),
        }
    )
    return config, trainer.make_method(config, dataset)


def stopped(folder, method, config):
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
    for part in method.extra_state().values():
        own += getattr(part, "variables", ())
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


def go_on(name, days, folder):
    """Returns a filled method of the first day, and one that goes on from it."""
    config, old = make(name, days[0])
    fill(old)
    _, new = make(name, days[1], seed=1)
    report = warm_start.warm_start(new, days[1], stopped(folder, old, config))
    return old, new, report


@pytest.fixture(scope="module")
def taken(days, tmp_path_factory):
    """Of `go_on`; and the second method as it was before."""
    old, new, report = go_on("cctl", days, tmp_path_factory.mktemp("runs") / "run")
    return old, new, make("cctl", days[1], seed=1)[1], report


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
    assert taken[3].grown == {
        "user_id": (42, 47),
        "item_id": (62, 69),
        "audited feature": (62, 69),
    }


def test_marks_of_ids_met_in_a_source_stay_with_them(taken):
    before, now = (m.ren.seen["user_id"].numpy().reshape(2, -1) for m in taken[:2])
    np.testing.assert_array_equal(now[:, :42], before)
    assert now.shape == (2, 47)
    assert not np.any(now[:, 42:])


def check_audits(old, new):
    """Counts of old values stay; new values have none."""
    assert old.audit_tables()
    for name, kept in old.audit_tables().items():
        other = new.audit_tables()[name]
        before, now = kept.by_value.numpy(), other.by_value.numpy()
        np.testing.assert_array_equal(now[:, :62], before, err_msg=name)
        assert now.shape[1] == 69
        assert not np.any(now[:, 62:])
        np.testing.assert_array_equal(other.totals, kept.totals)


def test_audit_goes_on_counting_by_value(taken, days, tmp_path):
    check_audits(*taken[:2])
    check_audits(*go_on("ecat", days, tmp_path / "run")[:2])


def test_state_of_two_replicas_grows(two_replicas):
    with two_replicas.scope():
        old, new = (WeightAudit(["d1", "d2"], size) for size in (3, 4))
    old.by_value.assign(tf.reshape(tf.range(12.0, dtype=tf.float64), [2, 3, 2]))
    grown = GrownTables(old, new, owner="init_from")
    grown.copy(old.by_value, new.by_value)
    expected = [[0, 1, 2, 3, 4, 5, 0, 0], [6, 7, 8, 9, 10, 11, 0, 0]]
    for values in two_replicas.experimental_local_results(new.by_value):
        np.testing.assert_array_equal(values.numpy().reshape(2, 8), expected)


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


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ("d1", "d2", r"'source' has \('d2',\), before \('d1',\)"),
        ("d1", "d1", ""),
    ],
)
def test_other_sources_of_the_same_number_are_refused(
    days, tmp_path, before, now, expected
):
    """Every table has the same shape then, and would go to the wrong source."""
    config, old = make("cctl", days[0], source_domains=[before])
    folder = stopped(tmp_path / "run", old, config)
    _, new = make("cctl", days[1], source_domains=[now])
    if not expected:
        warm_start.warm_start(new, days[1], folder)
        return
    with pytest.raises(warm_start.WarmStartError, match=expected):
        warm_start.warm_start(new, days[1], folder)
