import gc
import shutil
import weakref

import numpy as np
import pytest

from serving import model_store
from serving.model_store import BadRequestError, ModelStore, UnknownVersionError


class Fake:
    """Stands for a loaded model: the store's rules need no TensorFlow."""

    def __init__(self, path):
        self.version = int(path.name)
        text = (path / "saved_model.pb").read_text()
        if text != "good":
            raise OSError(f"cannot parse {text}\nsecond line")


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setattr(model_store, "LoadedModel", Fake)
    return tmp_path / "m"


def write(base, version, text="good"):
    folder = base / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_text(text)


def make(base, **settings):
    swaps = []
    store = ModelStore("m", base, on_swap=swaps.append, **settings)
    return store, swaps


def states(store):
    return {v: str(state) for v, (state, _) in store.status("m").items()}


def test_newest_version_is_served_and_the_old_one_unloaded(base):
    write(base, 1)
    store, swaps = make(base)
    store.refresh()
    old = weakref.ref(store.get("m"))
    write(base, 2)
    store.refresh()
    assert store.get("m").version == 2
    assert states(store) == {1: "END", 2: "AVAILABLE"}
    gc.collect()
    assert old() is None, "nothing holds the old version's memory"
    assert swaps == [1, 2]


def test_request_under_way_keeps_its_version(base):
    write(base, 1)
    store, _ = make(base)
    store.refresh()
    under_way = store.get("m")
    write(base, 2)
    store.refresh()
    assert under_way.version == 1


def test_broken_version_is_reported_and_the_good_one_stays(base):
    write(base, 1)
    store, swaps = make(base)
    store.refresh()
    write(base, 2, "garbage")
    store.refresh()
    assert store.get("m").version == 1
    assert store.status("m", 2) == {2: ("END", "cannot parse garbage")}
    assert store.status("m", 1) == {1: ("AVAILABLE", "")}
    assert swaps == [1]


def test_start_with_a_broken_newest_version_serves_the_one_before(base):
    write(base, 1)
    write(base, 2, "garbage")
    store, _ = make(base)
    store.refresh()
    assert store.get("m").version == 1


def test_broken_version_is_tried_again_only_when_its_files_change(base, monkeypatch):
    tries = []

    class Counted(Fake):
        def __init__(self, path):
            tries.append(path.name)
            super().__init__(path)

    monkeypatch.setattr(model_store, "LoadedModel", Counted)
    write(base, 1, "half a copy")
    store, _ = make(base)
    store.refresh()
    store.refresh()
    assert tries == ["1"]
    write(base, 1, "good")
    store.refresh()
    assert store.get("m").version == 1


def test_removing_the_newest_folder_rolls_back(base):
    write(base, 1)
    write(base, 2)
    store, swaps = make(base)
    store.refresh()
    shutil.rmtree(base / "2")
    store.refresh()
    assert store.get("m").version == 1
    assert states(store) == {1: "AVAILABLE", 2: "END"}
    assert swaps == [2, 1]


def test_vanished_folder_leaves_what_is_loaded(base):
    write(base, 1)
    store, _ = make(base)
    store.refresh()
    shutil.rmtree(base)
    store.refresh()
    assert store.get("m").version == 1


def test_several_versions_can_be_kept(base):
    for version in (1, 2, 3):
        write(base, version)
    store, _ = make(base, keep_versions=2)
    store.refresh()
    assert store.get("m", 2).version == 2
    assert store.get("m").version == 3
    with pytest.raises(UnknownVersionError, match=r"one of \[2, 3\]; got 1"):
        store.get("m", 1)


def test_empty_folder_is_not_ready(base):
    store, _ = make(base)
    store.refresh()
    assert not store.is_ready()
    with pytest.raises(UnknownVersionError, match=r"one of \[\]"):
        store.get("m")


def test_another_model_name_is_unknown(base):
    write(base, 1)
    store, _ = make(base)
    store.refresh()
    with pytest.raises(UnknownVersionError, match="must be 'm'.*got 'n'"):
        store.status("n")


@pytest.fixture(scope="module")
def model(saved):
    return model_store.LoadedModel(saved)


@pytest.mark.parametrize("empty", [[], [[]], np.zeros((1, 0), object)])
def test_empty_list_of_any_json_dtype_is_taken(model, arrays, empty):
    row = {name: value[:1] for name, value in arrays.items()}
    if np.shape(empty) == (0,):
        row = {name: value[:0] for name, value in arrays.items()}
    outputs = model.predict("predict", {**row, "genres": empty})
    assert outputs["task0"].shape == (np.shape(empty)[0],)


def test_integers_are_numbers_too(model, arrays):
    row = {name: value[:1] for name, value in arrays.items()}
    whole = model.predict("predict", {**row, "price": [3]})
    real = model.predict("predict", {**row, "price": [3.0]})
    assert whole["task0"] == real["task0"]


@pytest.mark.parametrize("value", [True, [[1.0]], "x", [1.0, 2.0]])
def test_wrong_value_for_a_number_is_refused(model, arrays, value):
    row = {name: array[:1] for name, array in arrays.items()}
    with pytest.raises(BadRequestError):
        model.predict("predict", {**row, "price": value})
