import numpy as np
import pytest

from models.training.evaluate import Scores
from serving import gate

DOMAINS, TASKS = ("home", "food"), ("click", "like")
ROWS = 4000


def make_scores(noise=0.0, seed=0, rows=ROWS, domains=DOMAINS):
    """Scores whose logits are the truth plus some noise; labels follow the truth."""
    rng = np.random.default_rng(7)
    truth = rng.normal(size=(rows, 2)).astype(np.float32)
    labels = (rng.random((rows, 2)) < 1 / (1 + np.exp(-2 * truth))).astype(np.float32)
    own = np.random.default_rng(100 + seed).normal(size=(rows, 2))
    return Scores(
        row_id=np.arange(rows),
        user_key=np.arange(rows),
        domain=(np.arange(rows) % 2).astype(np.int32),
        labels=labels,
        label_mask=np.ones((rows, 2), np.float32),
        weight=np.ones(rows, np.float32),
        logits=(truth + noise * own).astype(np.float32),
        domains=domains,
        tasks=TASKS,
        split="test",
    )


def replaced(scores, **changes):
    return Scores(**{**scores.__dict__, **changes})


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "3"
    folder.mkdir()
    gate.save_scores(folder, make_scores(noise=0.5))
    return folder


def test_first_version_is_published(tmp_path):
    decision = gate.decide(make_scores(), None, mode="noise")
    assert decision.compared_with is None
    assert "first version" in decision.text


def test_better_candidate_is_published_with_its_differences(published):
    decision = gate.decide(make_scores(noise=0.0), published, mode="noise")
    assert decision.compared_with == 3
    assert sorted(decision.differences) == [
        "food/click",
        "food/like",
        "home/click",
        "home/like",
    ]
    assert min(decision.differences.values()) > 0


def test_candidate_within_noise_is_published(published):
    """As noisy as the published one, with noise of its own: up here, down there."""
    decision = gate.decide(make_scores(noise=0.5, seed=1), published, mode="noise")
    assert min(decision.differences.values()) < 0


def test_candidate_that_fell_in_one_cell_is_refused_by_its_name(published):
    scores = make_scores(noise=0.0)
    worse = scores.logits.copy()
    food = scores.domain == 1
    worse[food, 1] = np.random.default_rng(3).normal(size=food.sum())
    with pytest.raises(gate.GateError) as caught:
        gate.decide(replaced(scores, logits=worse), published, mode="noise")
    text = str(caught.value)
    assert "food/like AUC 0." in text
    assert "against version 3" in text
    assert "--gate off" in text
    for other in ("home/click", "home/like", "food/click"):
        assert other not in text


def test_rows_are_matched_by_id_whatever_their_order(published):
    scores = make_scores(noise=0.5)
    order = np.random.default_rng(0).permutation(ROWS)
    columns = ("row_id", "user_key", "domain", "labels", "label_mask", "logits")
    mixed = replaced(scores, **{name: getattr(scores, name)[order] for name in columns})
    decision = gate.decide(mixed, published, mode="noise")
    assert decision.differences == dict.fromkeys(decision.differences, 0.0)


def test_one_class_domain_is_not_compared(tmp_path):
    scores = make_scores()
    labels = scores.labels.copy()
    labels[scores.domain == 1, 0] = 0
    scores = replaced(scores, labels=labels)
    folder = tmp_path / "1"
    folder.mkdir()
    gate.save_scores(folder, scores)
    decision = gate.decide(scores, folder, mode="noise")
    assert "food/click" not in decision.differences
    assert len(decision.differences) == 3


@pytest.mark.parametrize(
    "scores", [make_scores(rows=10), make_scores(domains=("a", "b"))]
)
def test_candidate_that_cannot_be_compared_is_refused_with_a_cure(published, scores):
    if scores.num_rows == 10:
        scores = replaced(scores, row_id=scores.row_id + ROWS)
    with pytest.raises(gate.GateError, match="version 3.*--gate off"):
        gate.decide(scores, published, mode="noise")


@pytest.mark.parametrize("content", [None, b"", b"not a zip file"])
def test_published_version_without_readable_scores_is_named(tmp_path, content):
    folder = tmp_path / "4"
    (folder / "assets.extra").mkdir(parents=True)
    if content is not None:
        (folder / "assets.extra" / gate.SCORES_FILE).write_bytes(content)
    with pytest.raises(gate.GateError, match="4.*--gate off"):
        gate.decide(make_scores(), folder, mode="noise")


def test_gate_off_compares_nothing(published):
    worse = replaced(make_scores(), logits=-make_scores().logits)
    assert gate.decide(worse, published, mode="off").text == "off"
