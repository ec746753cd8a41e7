"""A tiny model with random weights, its data set with raw rows, and a saved version."""

import serving  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pyarrow.parquet as pq  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models import registry  # isort: skip
from serving import warmup  # isort: skip
from serving.inputs import raw_inputs  # isort: skip
from serving.samples import raw_arrays  # isort: skip
from serving.signatures import ServingModule  # isort: skip
from tests.helpers import tiny_dataset  # isort: skip
from tests.serving import tiny_raw  # isort: skip

ROWS = 1000
TEST_ROWS = 100


@pytest.fixture(scope="session")
def encoded():
    """The encoded rows of the test split, as the helper wrote them."""
    return tiny_dataset.make_rows(ROWS).slice(ROWS - TEST_ROWS)


@pytest.fixture(scope="session")
def raw_table(encoded):
    """The same rows before encoding."""
    return tiny_raw.raw_table(encoded)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, raw_table):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    made = tiny_dataset.make_dataset(folder, rows=ROWS)
    (folder / "samples").mkdir()
    pq.write_table(raw_table, folder / "samples" / "test.parquet")
    return made


@pytest.fixture(scope="session")
def make_method(dataset):
    """Makes a method with random weights that do not depend on the test order."""

    def make(name="mlp", seed=0, **config):
        cls = registry.method_class(name)
        if name == "mlp":
            config = {"hidden_units": [8], "embedding_stddev": 1.0, **config}
        tf.random.set_seed(seed)
        method = cls(cls.Config.parse(config), dataset.info.model_schema)
        rng = np.random.default_rng(seed)
        for variable in method.model.trainable_variables:
            noise = rng.normal(0, 0.5, variable.shape)
            variable.assign(variable + tf.cast(noise, variable.dtype))
        return method

    return make


@pytest.fixture(scope="session")
def method(make_method):
    return make_method()


@pytest.fixture(scope="session")
def arrays(dataset, raw_table):
    """Raw inputs of the test rows by name."""
    spec = dataset.info.spec
    return raw_arrays(spec, raw_inputs(spec), raw_table)


@pytest.fixture(scope="session")
def expected(method, encoded):
    """Probabilities by task that the training graph gives for the test rows."""
    logits = method.model(tiny_raw.model_features(encoded), training=False)
    return {task: tf.sigmoid(value).numpy() for task, value in logits.items()}


@pytest.fixture(scope="session")
def saved(tmp_path_factory, method, dataset, arrays):
    """A version folder `1` with a warm-up file: an export without parity and gate."""
    folder = tmp_path_factory.mktemp("export") / "ranker" / "1"
    module = ServingModule(method, dataset)
    tf.saved_model.save(module, str(folder), signatures=module.signatures())
    warmup.write_warmup(folder, "ranker", module.inputs, arrays)
    return folder


@pytest.fixture(scope="session")
def loaded(saved):
    return tf.saved_model.load(str(saved))
