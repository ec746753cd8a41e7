"""The search: equal budgets, validation only, resumed without a run done twice."""

import types

import pytest

from models.comparison import experiment, runner, search
from models.training.nonfinite import NonFiniteLossError
from models.training.result import Result

SPACE = {
    "method_config.optimizer.dense.learning_rate": {
        "low": 1e-4,
        "high": 1e-1,
        "log": 1,
    },
    "batch_size": [64, 128],
}


def make(**changes):
    values = {
        "name": "tiny",
        "title": "Two",
        "data": {"tiny": {"dataset": "tiny"}},
        "base": {"batch_size": 32},
        "entries": {"a": {"method": "mlp"}, "b": {"method": "mmoe"}},
        "main": "a",
        "search": SPACE,
    }
    return experiment.Experiment.parse({**values, **changes}, where="test")


@pytest.fixture
def runs(monkeypatch):
    """Runs that take no time: the best batch is 64, the best learning rate 0.01."""
    done = {}

    def train(config, folder):
        rate = config.parsed_method_config().optimizer.dense.learning_rate
        value = 0.8 - abs(rate - 0.01) - 0.1 * (config.batch_size != 64)
        done[folder] = (config, value)

    monkeypatch.setattr(runner, "train", train)
    monkeypatch.setattr(search, "is_finished", lambda folder: folder in done)
    monkeypatch.setattr(runner, "_is_done", lambda _, folder: folder in done)
    result = lambda folder: types.SimpleNamespace(best_metric=done[folder][1])  # noqa: E731
    monkeypatch.setattr(Result, "load", staticmethod(result))
    return done


def test_every_entry_gets_the_same_number_of_trials_the_first_as_written(
    runs, tmp_path
):
    found = search.search(make(), "data", tmp_path, trials=6)
    assert {k: v["trials"] for k, v in found.items()} == {"a": 6, "b": 6}
    for label in ("a", "b"):
        folders = [f for f in runs if label in f.parts]
        assert len(folders) == 6
        assert runs[tmp_path / label / "seed0"][0].batch_size == 32
        assert all(runs[f][0].seed == search.SEED for f in folders)


def test_best_settings_are_those_of_the_best_validation_value(runs, tmp_path):
    found = search.search(make(), "data", tmp_path, trials=8)["a"]
    best = max(v for f, (_, v) in runs.items() if "a" in f.parts)
    assert found["value"] == best
    assert found["settings"]["batch_size"] == 64
    config = make().with_settings({"a": found["settings"]}).run_config("a", "x", 1)
    key = "method_config.optimizer.dense.learning_rate"
    dense = config.parsed_method_config().optimizer.dense
    assert dense.learning_rate == found["settings"][key]
    assert config.batch_size == 64
    assert make().run_config("b", "x", 1).batch_size == 32


def test_first_proposals_are_spread_evenly_and_the_same_for_all_entries(runs, tmp_path):
    rate = "method_config.optimizer.dense.learning_rate"
    space = {"batch_size": [64, 128, 256], rate: SPACE[rate]}
    search.search(make(search=space), "data", tmp_path, trials=6)
    proposed = {
        label: [
            (config.batch_size, config.parsed_method_config().optimizer.dense)
            for folder, (config, _) in runs.items()
            if folder.parts[-3] == label
        ]
        for label in ("a", "b")
    }
    # By hand: halves, quarters, eighths of the first key; thirds, ninths of the second.
    shares = [1 / 3, 2 / 3, 1 / 9, 4 / 9, 7 / 9]
    for found in proposed.values():
        assert [size for size, _ in found] == [128, 64, 256, 64, 128]
        rates = [dense.learning_rate for _, dense in found]
        assert rates == pytest.approx([1e-4 * 1000**u for u in shares], rel=1e-9)


def test_search_started_again_does_no_run_twice(runs, tmp_path):
    first = search.search(make(), "data", tmp_path, trials=6)
    folders = set(runs)
    assert search.search(make(), "data", tmp_path, trials=6) == first
    assert set(runs) == folders
    search.search(make(), "data", tmp_path, trials=8)
    assert folders < set(runs)


def test_lower_is_better_for_a_loss(runs, tmp_path):
    made = make(base={"metric": "mean_logloss", "batch_size": 32})
    found = search.search(made, "data", tmp_path, trials=8)["a"]
    worst = min(v for f, (_, v) in runs.items() if "a" in f.parts)
    assert found["value"] == worst


def test_settings_of_an_entry_have_keys_of_their_own(runs, tmp_path):
    entries = {
        "a": {"method": "mlp", "search": {"method_config.hidden_units": [[8], [4, 2]]}},
        "b": {"method": "mlp"},
    }
    search.search(make(entries=entries), "data", tmp_path, trials=4)
    shapes = {
        runs[f][0].parsed_method_config().hidden_units
        for f in runs
        if "a" in f.parts and f.parent.name != "a"
    }
    assert shapes <= {(8,), (4, 2)}
    assert shapes


def test_a_source_is_run_as_written_for_the_search_of_its_readers(runs, tmp_path):
    entries = {
        "a": {"method": "ecat", "source": "b"},
        "b": {"method": "eta"},
    }
    search.search(make(entries=entries), "data", tmp_path, trials=3, labels=("a",))
    written = tmp_path / "b" / "seed0"
    assert next(iter(runs)) == written
    readers = [config for f, (config, _) in runs.items() if "a" in f.parts]
    assert len(readers) == 3
    for config in readers:
        assert config.method_config["source_workdir"] == str(written)


def test_seeds_after_a_search_begin_with_its_best_run(runs, tmp_path):
    entries = {"a": {"method": "ecat", "source": "b"}, "b": {"method": "eta"}}
    made = make(entries=entries)
    found = search.search(made, "data", tmp_path, trials=3, labels=("b",))
    found = made.with_settings({"b": found["b"]["settings"]})
    config = found.run_config("b", "data", search.SEED, tmp_path)
    folder = found.run_folder(tmp_path, "b", search.SEED)
    assert runs[folder][0] == config
    assert found.run_folder(tmp_path, "b", 1).parent == folder.parent
    # A reader of that source is another run than one that read it as written.
    reader = found.run_config("a", "data", 1, tmp_path)
    assert reader.method_config["source_workdir"] == str(folder.parent / "seed1")
    written = make(entries=entries).run_folder(tmp_path, "a", 1)
    assert found.run_folder(tmp_path, "a", 1) != written == tmp_path / "a" / "seed1"


@pytest.fixture
def diverge(runs, monkeypatch):
    """Makes runs diverge for which `is_bad(config, folder)`; returns their folders."""
    train, folders = runner.train, []

    def patch(is_bad):
        def one(config, folder):
            if not is_bad(config, folder):
                return train(config, folder)
            folders.append(folder)
            raise NonFiniteLossError("loss must be finite; it was not.\nSecond line.")

        monkeypatch.setattr(runner, "train", one)
        return folders

    return patch


def test_a_trial_that_diverges_is_logged_as_failed_and_the_search_goes_on(
    runs, diverge, tmp_path, caplog
):
    folders = diverge(lambda config, _: config.batch_size == 128)
    found = search.search(make(), "data", tmp_path, trials=8)
    assert {k: v["trials"] for k, v in found.items()} == {"a": 8, "b": 8}
    assert found["a"]["settings"]["batch_size"] == 64
    bad = [f for f in folders if "a" in f.parts]
    assert 0 < len(bad) == found["a"]["failed"]
    lines = [m for m in caplog.messages if m.startswith("search of a: trial ")]
    assert len(lines) == len(bad)
    assert '"batch_size": 128' in lines[0]
    assert lines[0].endswith(": loss must be finite; it was not.")
    assert search.search(make(), "data", tmp_path, trials=8) == found


def test_a_search_outlives_the_settings_as_written(diverge, tmp_path):
    diverge(lambda _, folder: folder.parent.name in ("a", "b"))
    found = search.search(make(), "data", tmp_path, trials=3)["a"]
    assert (found["trials"], found["failed"]) == (3, 1)
    assert found["settings"]


def test_an_entry_all_of_whose_trials_diverge_is_an_error(runs, diverge, tmp_path):
    diverge(lambda _, folder: "b" in folder.parts)
    expected = (
        r"entry 'b' must .* 7 of 7 that diverged.*as written: loss must be finite; "
        r"it was not\. Narrow .*batch_size: 64, 128; .*learning_rate: 0\.0001 to 0\.1"
    )
    with pytest.raises(RuntimeError, match=expected):
        search.search(make(), "data", tmp_path, trials=7)
    assert sum("a" in f.parts for f in runs) == 7


def test_a_source_that_diverges_ends_the_search_of_its_readers(diverge, tmp_path):
    diverge(lambda _, folder: folder.parent.name == "b")
    entries = {"a": {"method": "ecat", "source": "b"}, "b": {"method": "eta"}}
    with pytest.raises(NonFiniteLossError):
        search.search(make(entries=entries), "data", tmp_path, trials=2, labels=("a",))


def test_an_experiment_without_a_space_is_refused(tmp_path):
    with pytest.raises(ValueError, match="search. space for every entry"):
        search.search(make(search={}), "data", tmp_path, trials=2)


@pytest.mark.parametrize(
    "bad", [{"low": 2, "high": 1}, {"low": 0, "high": 1, "log": 1}]
)
def test_impossible_range_is_an_error(bad):
    with pytest.raises(ValueError, match="low must be below high"):
        make(search={"batch_size": bad})
