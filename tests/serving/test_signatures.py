import numpy as np
import pytest
import tensorflow as tf

from serving.signatures import ServingModule, VariableError
from serving.warmup import serialized_examples
from tests.serving.tiny_raw import STRANGER

TASKS = ("task0", "task1")


def call(loaded, signature, arrays):
    tensors = {
        name: tf.constant(value, tf.string if value.dtype == object else tf.float32)
        for name, value in arrays.items()
    }
    outputs = loaded.signatures[signature](**tensors)
    return {name: value.numpy() for name, value in outputs.items()}


def per_item(dataset_module, arrays):
    return {i.name for i in dataset_module.inputs if i.per_item} & set(arrays)


@pytest.fixture(scope="module")
def module(method, dataset):
    return ServingModule(method, dataset)


@pytest.fixture(scope="module")
def functions(module):
    return module.signatures()


@pytest.fixture(scope="module")
def candidates(module, arrays):
    """Makes a request of the first `count` items for the user of the first row."""
    items = per_item(module, arrays)

    def make(count):
        return {k: v[:count] if k in items else v[:1] for k, v in arrays.items()}

    return make


def test_predict_gives_the_training_graphs_probabilities(loaded, arrays, expected):
    outputs = call(loaded, "predict", arrays)
    for task in TASKS:
        np.testing.assert_allclose(outputs[task], expected[task], atol=1e-6)
        assert np.ptp(expected[task]) > 0.2, "the rows must differ to show anything"


def test_predict_gives_the_domain_of_each_row(loaded, arrays, encoded):
    outputs = call(loaded, "predict", arrays)
    assert outputs["domain"].tolist() == encoded["domain"].to_pylist()


def test_serving_default_scores_serialized_examples_alike(loaded, arrays, module):
    examples = serialized_examples(module.inputs, arrays)
    outputs = call(loaded, "serving_default", {"examples": examples})
    again = call(loaded, "predict", arrays)
    for name, value in outputs.items():
        np.testing.assert_array_equal(value, again[name])


def test_example_without_a_feature_scores_as_one_with_it_missing(
    loaded, arrays, module
):
    row = {name: value[:1] for name, value in arrays.items()}
    missing = {
        "user_id": np.array([""], object),
        "price": np.array([np.nan], np.float32),
        "genres": np.array([[""]], object),
    }
    example = tf.train.Example.FromString(serialized_examples(module.inputs, row)[0])
    for name in missing:
        del example.features.feature[name]
    examples = np.array([example.SerializeToString()], object)
    short = call(loaded, "serving_default", {"examples": examples})
    full = call(loaded, "predict", {**row, **missing})
    np.testing.assert_array_equal(short["task0"], full["task0"])


@pytest.mark.parametrize("count", [1, 7])
def test_predict_candidates_scores_as_rows_that_repeat_the_user(
    loaded, arrays, candidates, module, count
):
    outputs = call(loaded, "predict_candidates", candidates(count))
    items = per_item(module, arrays)
    rows = {
        k: v[:count] if k in items else np.repeat(v[:1], count, axis=0)
        for k, v in arrays.items()
    }
    separate = call(loaded, "predict", rows)
    for name, value in outputs.items():
        assert value.shape == (count,)
        np.testing.assert_allclose(value, separate[name], atol=1e-6)


def test_predict_candidates_without_items_gives_no_scores(loaded, candidates):
    outputs = call(loaded, "predict_candidates", candidates(0))
    assert {name: value.shape for name, value in outputs.items()} == {
        "task0": (0,),
        "task1": (0,),
        "domain": (0,),
    }


def test_method_with_domain_parts_scores_candidates_as_rows(
    make_method, dataset, arrays, candidates
):
    """M3oE groups rows by domain: no row, one row, rows of one domain only."""
    functions = ServingModule(make_method("m3oe"), dataset).signatures()
    for count in (0, 1, 3):
        request = candidates(count)
        rows = {
            k: np.repeat(v, count, axis=0) if len(v) == 1 else v
            for k, v in request.items()
        }
        got = functions["predict_candidates"](**as_tensors(request))
        wanted = functions["predict"](**as_tensors(rows))
        for task in TASKS:
            np.testing.assert_allclose(got[task], wanted[task], atol=1e-6)


def as_tensors(arrays):
    return {
        k: tf.constant(v, tf.string if v.dtype == object else tf.float32)
        for k, v in arrays.items()
    }


def test_predict_candidates_looks_up_the_user_once(functions):
    """What is looked up for the user is the [1] input itself, not repeated strings."""
    function = functions["predict_candidates"]
    for name in ("user_id", "channel"):
        (placeholder,) = [t for t in function.inputs if t.op.name.startswith(name)]
        assert placeholder.shape == [1]
        readers = [op.type for op in placeholder.consumers()]
        assert readers == ["LookupTableFindV2"], name


def test_unknown_ids_score_as_unknown(loaded, arrays):
    row = {name: value[:1] for name, value in arrays.items()}
    never = call(loaded, "predict", {**row, "item_id": np.array([STRANGER], object)})
    empty = call(loaded, "predict", {**row, "item_id": np.array([""], object)})
    known = call(loaded, "predict", row)
    np.testing.assert_array_equal(never["task0"], empty["task0"])
    assert never["task0"] != known["task0"]


def test_unknown_domain_is_refused_by_default(loaded, arrays):
    row = {**{k: v[:2] for k, v in arrays.items()}}
    row["channel"] = np.array(["c0", "nowhere"], object)
    with pytest.raises(tf.errors.InvalidArgumentError, match="request.channel must"):
        call(loaded, "predict", row)


def test_unknown_domain_goes_to_the_domain_chosen_at_export(method, dataset, arrays):
    functions = ServingModule(method, dataset, "d2").signatures()
    row = {k: v[:1] for k, v in arrays.items()}
    lost = functions["predict"](
        **as_tensors({**row, "channel": np.array(["nowhere"], object)})
    )
    chosen = functions["predict"](
        **as_tensors({**row, "channel": np.array(["c2"], object)})
    )
    assert lost["domain"].numpy() == [2]
    assert lost["task0"] == chosen["task0"]


def test_unknown_domain_policy_must_name_a_domain_of_the_model(method, dataset):
    with pytest.raises(LookupError, match=r"unknown_domain must be .*d0, d1, d2.*'x'"):
        ServingModule(method, dataset, "x")


def test_variable_outside_the_allow_list_is_refused_by_name(
    make_method, dataset, monkeypatch
):
    method = make_method()
    listed = method.serving_variables()
    monkeypatch.setattr(method, "serving_variables", lambda: listed[1:])
    with pytest.raises(VariableError, match=listed[0].name):
        ServingModule(method, dataset).signatures()


def test_saved_model_holds_no_keras_description(saved):
    """A Keras model hanging on the module doubles the time of an export."""
    assert not (saved / "keras_metadata.pb").exists()
