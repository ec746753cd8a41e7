import numpy as np
import pytest

from features.dataset import DatasetError
from serving import parity, samples
from tests.serving import tiny_raw

TASKS = ("task0", "task1")


@pytest.fixture
def artefact(monkeypatch, expected):
    """Replaces the fresh process by given probabilities; `test_export` runs it."""

    def give(**changes):
        results = {
            f"{k}/{t}": expected[t].copy() for k in ("tf2", "tf1") for t in TASKS
        }
        results |= changes

        class Process:
            def __init__(self, *_):
                pass

            def __enter__(self):
                return lambda: results

            def __exit__(self, *_):
                return None

        monkeypatch.setattr(parity, "_artefact_process", Process)

    return give


def test_equal_scores_pass_with_their_difference(
    artefact, method, dataset, tmp_path, expected
):
    artefact(**{"tf1/task1": expected["task1"] + np.float32(4e-6)})
    result = parity.check_parity(tmp_path, method, dataset)
    assert result.rows == 100
    assert result.max_difference < 1e-6
    assert result.max_difference_tf1 == pytest.approx(4e-6, rel=0.2)


@pytest.mark.parametrize("loader", ["tf2", "tf1"])
def test_planted_difference_in_one_row_is_refused_and_stated(
    artefact, method, dataset, tmp_path, expected, loader
):
    wrong = expected["task1"].copy()
    wrong[57] += 0.0123
    artefact(**{f"{loader}/task1": wrong})
    with pytest.raises(parity.ParityError, match=r"difference of 0\.0123 on 100 rows"):
        parity.check_parity(tmp_path, method, dataset)


def test_score_that_is_not_a_number_is_refused(
    artefact, method, dataset, tmp_path, expected
):
    wrong = expected["task0"].copy()
    wrong[3] = np.nan
    artefact(**{"tf2/task0": wrong})
    with pytest.raises(parity.ParityError, match="difference of nan"):
        parity.check_parity(tmp_path, method, dataset)


def test_artefact_of_other_weights_is_refused(artefact, make_method, dataset, tmp_path):
    artefact()
    with pytest.raises(parity.ParityError, match="Not published"):
        parity.check_parity(tmp_path, make_method(seed=1), dataset)


def test_training_scores_are_those_of_the_rows_asked_for(method, dataset, expected):
    wanted = np.array([950, 903])  # row ids of the test split are 900 ... 999
    scores = parity.training_scores(method, dataset, "test", wanted)
    for row_id in wanted.tolist():
        both = [expected[task][row_id - 900] for task in TASKS]
        np.testing.assert_allclose(scores[row_id], both, atol=1e-6)


def test_sampled_row_that_is_not_encoded_is_named(method, dataset):
    with pytest.raises(parity.ParityError, match="1 of 2 that are not there"):
        parity.training_scores(method, dataset, "test", np.array([950, 5]))


def test_rows_of_domains_that_the_model_lacks_are_left_out(dataset, encoded):
    keep = samples.rows_of_domains(dataset, ("d2",), tiny_raw.raw_table(encoded))
    assert keep.tolist() == [d == 2 for d in encoded["domain"].to_pylist()]
    kept = samples.read_samples(dataset, "test", 3, ("d2",))
    assert kept.num_rows == 3
    assert samples.rows_of_domains(dataset, ("d2",), kept).all()


def test_no_sampled_row_of_the_models_domains_is_an_error(
    method, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(samples, "rows_of_domains", lambda *_: np.zeros(100, bool))
    with pytest.raises(parity.ParityError, match="parity.test must have sampled rows"):
        parity.check_parity(tmp_path, method, dataset)


def test_data_set_without_samples_is_named(method, dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"samples/train.parquet.*Prepare"):
        parity.check_parity(tmp_path, method, dataset, split="train")


def test_artefact_that_does_not_load_alone_is_refused(tmp_path, monkeypatch):
    """The script's own error is passed on; here one that costs no TensorFlow import."""
    script = tmp_path / "artefact_check.py"
    script.write_text("raise OSError('cannot parse saved_model.pb')")
    monkeypatch.setattr(parity, "SCRIPT", script)
    arrays = {"user_id": np.array(["u1"], object)}
    with (
        pytest.raises(parity.ParityError, match="cannot parse saved_model.pb"),
        parity._artefact_process(tmp_path / "1", arrays) as artefact,
    ):
        artefact()
