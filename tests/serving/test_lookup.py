"""The serving graph's encoder against its NumPy twin, `features/encode.py`."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from features import encode
from features.dataset import Dataset
from features.fitted import Fitted, NumericParams
from features.vocab import Vocab
from serving.inputs import raw_inputs
from serving.lookup import RawEncoder
from serving.samples import raw_arrays
from tests.helpers import feature_rows

ROWS = 300
FITTED = Fitted(
    domains=("x", "y"),
    domain_values={"x": 0, "y": 1},
    domain_default=-1,
    vocabs={"item_id": Vocab(["0", "ä", "2"]), "tags": Vocab(["t1", "t2"])},
    numeric={
        "price": NumericParams(1.0, 2.0),
        "level": NumericParams(boundaries=(1.0, 2.5)),
        "pop": NumericParams(0.5, 2.0),
    },
    popularity={"pop": np.array([0, 0, 1.5, 2.5, 0.5], np.float32)},
)


@dataclasses.dataclass
class Info:
    """The part of DatasetInfo that the encoder reads."""

    spec: object
    fitted: Fitted


@pytest.fixture(params=["none", "log"])
def data(request, tmp_path):
    values = feature_rows.spec_values()
    values["features"][3]["transform"] = (
        "standardise" if request.param == "none" else "log"
    )
    spec = feature_rows.make_spec(features=values["features"])
    FITTED.save(tmp_path)
    return Dataset(tmp_path, Info(spec, FITTED))


def random_rows():
    rng = np.random.default_rng(5)

    def ids(count):
        return rng.choice(["0", "ä", "2", "other", "日本", " 2"], count).tolist()

    def lists(longest):
        return [ids(n) for n in rng.integers(0, longest + 1, ROWS)]

    some = rng.choice([1.0, 2.5, -3.25, 0.0, 1e6, np.nan], ROWS)
    prices = [None if np.isnan(p) else p for p in some]
    domain = rng.integers(0, 2, ROWS)
    return pa.RecordBatch.from_pydict(
        {
            "user": ids(ROWS),
            "item": [None if i == "other" else i for i in ids(ROWS)],
            "ts": [0] * ROWS,
            "raw/domain/id": [FITTED.domains[d] for d in domain],
            "cat": ids(ROWS),
            "tags": pa.array(
                [["t1", "t9", "t2"][:n] for n in rng.integers(0, 4, ROWS)],
                pa.list_(pa.string()),
            ),
            "price": pa.array(prices, pa.float64()),
            "label/click": pa.array([0] * ROWS, pa.int8()),
            "label/like": pa.array([0] * ROWS, pa.int8()),
            "weight": pa.array([1.0] * ROWS, pa.float32()),
            "row_id": pa.array(range(ROWS)),
            "user_key": pa.array(range(ROWS)),
            "day": pa.array([20220425] * ROWS, pa.int32()),
            "domain": pa.array(domain, pa.int32()),
            "history": pa.array(lists(6), pa.list_(pa.string())),
        }
    )


def as_tensors(arrays):
    return {
        k: tf.constant(v, tf.string if v.dtype == object else tf.float32)
        for k, v in arrays.items()
    }


def test_graph_encodes_raw_rows_as_preprocessing_does(data):
    spec, batch = data.info.spec, random_rows()
    wanted, _ = encode.encode(spec, FITTED, batch)
    arrays = raw_arrays(spec, raw_inputs(spec), pa.Table.from_batches([batch]))
    got = RawEncoder(data, FITTED.domains)(as_tensors(arrays))
    names = [f.name for f in spec.features if f.kind != "domain"]
    assert sorted(got) == sorted([*names, "domain"])
    for name, value in got.items():
        column = wanted.column(wanted.schema.get_field_index(name))
        np.testing.assert_array_equal(value, np.array(column.to_pylist()), name)


def test_model_of_some_domains_counts_them_in_its_own_order(data):
    encoder = RawEncoder(data, ("y",))
    raw = {"domain": tf.constant(["y"])}
    assert encoder(raw)["domain"].numpy().tolist() == [0]
    with pytest.raises(tf.errors.InvalidArgumentError, match="of this model.*y"):
        encoder({"domain": tf.constant(["x"])})


def test_domain_check_can_be_left_out(data):
    encoder = RawEncoder(data, ("y",))
    got = encoder({"domain": tf.constant(["x", "y"])}, check_domain=False)
    assert got["domain"].numpy().tolist() == [-1, 0]


def test_lists_longer_than_the_model_keep_first_tags_and_last_history(data):
    encoder = RawEncoder(data, FITTED.domains)
    got = encoder(
        {
            "tags": tf.constant([["t1", "t2", "t1", "t1"]]),
            "history": tf.constant([["0", "0", "ä", "2", "0"]]),
        }
    )
    assert got["tags"].numpy().tolist() == [[2, 3]]
    assert got["history"].numpy().tolist() == [[3, 4, 2]]


def test_lists_without_any_element_are_padding(data):
    got = RawEncoder(data, FITTED.domains)({"tags": tf.zeros([2, 0], tf.string)})
    assert got["tags"].numpy().tolist() == [[0, 0], [0, 0]]


def test_empty_text_inside_a_list_is_unknown_and_after_its_end_padding(data):
    raw = {"history": tf.constant([["0", "", "2", "", ""], ["", "", "", "", ""]])}
    got = RawEncoder(data, FITTED.domains)(raw)
    assert got["history"].numpy().tolist() == [[2, 1, 4], [0, 0, 0]]
