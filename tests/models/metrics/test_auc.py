import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from models.metrics import auc as auc_lib


def _rows(n=500, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    scores = np.round(rng.normal(size=n) + labels, 1)  # many ties
    return labels, scores, rng.random(n), rng.integers(0, 60, n)


def test_auc_equals_sklearn_with_ties_and_weights():
    labels, scores, weights, _ = _rows()
    np.testing.assert_allclose(
        auc_lib.auc(labels, scores),
        sklearn_metrics.roc_auc_score(labels, scores),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        auc_lib.auc(labels, scores, weights),
        sklearn_metrics.roc_auc_score(labels, scores, sample_weight=weights),
        rtol=1e-12,
    )


def test_auc_by_hand_counts_a_tie_one_half():
    # Pairs: (.4, .1) 1, (.4, .4) 1/2, (.8, .1) 1, (.8, .4) 1 of 4.
    assert auc_lib.auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]) == 3.5 / 4


def test_auc_zero_weight_row_changes_nothing():
    assert auc_lib.auc([0, 1, 1], [0.5, 0.6, 0.1], [1, 1, 0]) == 1.0


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], []])
def test_auc_of_one_class_is_undefined(labels):
    assert auc_lib.auc(labels, [0.1, 0.2][: len(labels)]) is None


def test_auc_refuses_nan_scores_naming_the_row():
    with pytest.raises(ValueError, match="row 1"):
        auc_lib.auc([0, 1], [0.1, float("nan")])


def test_auc_refuses_other_labels():
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        auc_lib.auc([0, -1], [0.1, 0.2])


def test_logloss_equals_sklearn_from_logits_and_probs():
    labels, logits, weights, _ = _rows()
    probs = auc_lib.probs_of(logits)
    expected = sklearn_metrics.log_loss(labels, probs, sample_weight=weights)
    for given in ({"logits": logits}, {"probs": probs}):
        got = auc_lib.logloss(labels, weights=weights, **given)
        np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_logloss_from_extreme_logits_is_exact():
    assert auc_lib.logloss([1, 0], logits=[-1000.0, -1000.0]) == 500.0


def test_logloss_wants_exactly_one_input():
    with pytest.raises(ValueError, match="exactly one"):
        auc_lib.logloss([1], logits=[0.0], probs=[0.5])


def test_pcoc_is_predicted_over_observed():
    assert auc_lib.pcoc([1, 0, 0, 0], [0.5, 0.5, 0.25, 0.25]) == 1.5
    assert auc_lib.pcoc([0], [0.5]) is None


@pytest.mark.parametrize("weight", ["impressions", "clicks", "uniform"])
def test_gauc_equals_loop_over_groups(weight):
    labels, scores, _, groups = _rows(n=200)
    values, counts, skipped = [], [], 0
    for group in np.unique(groups):
        y, s = labels[groups == group], scores[groups == group]
        if 0 < y.sum() < len(y):
            values.append(sklearn_metrics.roc_auc_score(y, s))
            counts.append({"impressions": len(y), "clicks": y.sum()}.get(weight, 1))
        else:
            skipped += 1
    got = auc_lib.gauc(labels, scores, groups, weight)
    np.testing.assert_allclose(got.value, np.average(values, weights=counts))
    assert (got.num_groups, got.num_skipped) == (len(values), skipped)
    assert skipped > 0


def test_gauc_takes_text_groups_and_empty_input():
    assert auc_lib.gauc([0, 1, 1], [1, 2, 3], ["a", "a", "b"]).value == 1.0
    assert auc_lib.gauc([], [], []).value is None


def test_calibration_bins_hold_every_row_once():
    labels, logits, _, _ = _rows()
    probs = auc_lib.probs_of(logits)
    bins = auc_lib.calibration_bins(labels, probs, num_bins=7)
    rows = np.array([b.rows for b in bins])
    assert rows.sum() == 500
    assert rows.max() - rows.min() <= 1
    np.testing.assert_allclose(rows @ [b.mean_prob for b in bins], probs.sum())
    np.testing.assert_allclose(rows @ [b.mean_label for b in bins], labels.sum())


@pytest.mark.parametrize(
    ("value", "reference", "percent"),
    [(76.61, 76.07, 2.07), (65.89, 64.30, 11.12), (66.37, 65.52, 5.48)],
)
def test_relaimpr_gives_the_m3oe_papers_numbers(value, reference, percent):
    got = auc_lib.relaimpr(value / 100, reference / 100)
    assert round(100 * got, 2) == percent


def test_rimp_is_the_plain_ratio():
    assert auc_lib.rimp(0.75, 0.5) == 0.5
    assert auc_lib.rimp(None, 0.5) is None
