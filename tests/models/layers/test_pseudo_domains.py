import numpy as np
import pytest
import tensorflow as tf

from models.layers import pseudo_domains
from models.layers.pseudo_domains import (
    ConfidenceWeights,
    DomainClasses,
    MovingMean,
    truncated_gaussian,
)

NAMES = ("home", "food", "drink", "night")


def confidence(values, labels=None, counted=None):
    rows = len(values)
    return (
        tf.constant(values, tf.float32),
        tf.constant([0] * rows if labels is None else labels, tf.int32),
        tf.constant([True] * rows if counted is None else counted),
    )


def test_classes_are_the_other_domains_in_order():
    classes = DomainClasses(NAMES, ("drink", "home"), "x")
    assert classes.names == ("food", "night")
    assert classes.count == 2
    domains = tf.constant([0, 1, 2, 3])
    np.testing.assert_array_equal(classes.class_of(domains), [-1, 0, -1, 1])
    np.testing.assert_array_equal(classes.domain_of([1, 0, 1]), [3, 1, 3])


@pytest.mark.parametrize(
    ("dominant", "error", "match"),
    [
        ((), ValueError, "must name the domain"),
        (("home", "food", "drink"), ValueError, "at least two other domains"),
        (("homme",), LookupError, "Did you mean 'home'"),
    ],
)
def test_dominant_domains_that_leave_nothing_to_classify_are_refused(
    dominant, error, match
):
    with pytest.raises(error, match=match):
        DomainClasses(NAMES, dominant, "SSCTLConfig")


def test_weight_is_one_from_the_mean_on_and_strictly_rises_below():
    c = np.linspace(0.0, 1.0, 101, dtype="f")
    w = truncated_gaussian(tf.constant(c), 0.6, 0.04).numpy()
    assert (w[c >= 0.6] == 1).all()
    below = w[c < 0.599]
    assert (np.diff(below) > 0).all()
    assert (w > 0).all()
    assert (w <= 1).all()
    # One sigma below the mean; with width 2 two of its sigmas.
    at = tf.constant([0.4])
    for width, expected in ((1.0, np.exp(-0.5)), (2.0, np.exp(-2))):
        w = truncated_gaussian(at, 0.6, 0.04, width).numpy()
        assert w == pytest.approx([expected], rel=1e-5)


def test_weight_is_finite_without_variance():
    w = truncated_gaussian(tf.constant([0.0, 0.5999, 0.6, 1.0]), 0.6, 0.0).numpy()
    assert np.isfinite(w).all()
    assert w[0] == 0  # exp(-180,000) is no float32
    assert 0 < w[1] < 1
    np.testing.assert_array_equal(w[2:], 1.0)


def test_corrected_mean_of_identical_updates_is_their_value():
    mean = MovingMean(1, start=0.5, momentum=0.999, bias_correction=True, name="m")
    for _ in range(5):
        mean.update(tf.constant([0.2]), tf.constant([True]))
        assert mean.numpy()[0] == pytest.approx(0.2, rel=1e-6)


def test_plain_mean_of_identical_updates_equals_the_closed_form():
    mean = MovingMean(1, start=0.5, momentum=0.9, bias_correction=False, name="m")
    for _ in range(7):
        mean.update(tf.constant([0.2]), tf.constant([True]))
    expected = 0.9**7 * 0.5 + (1 - 0.9**7) * 0.2
    assert mean.numpy()[0] == pytest.approx(expected, rel=1e-6)


def test_corrected_mean_equals_the_weighted_sum_in_float64():
    rng = np.random.default_rng(0)
    seen = rng.uniform(size=50)
    mean = MovingMean(1, start=9.0, momentum=0.95, bias_correction=True, name="m")
    for value in seen:
        mean.update(tf.constant([value], tf.float32), tf.constant([True]))
    weights = 0.95 ** np.arange(49, -1, -1)
    assert mean.numpy()[0] == pytest.approx(weights @ seen / weights.sum(), rel=1e-5)


def test_means_move_only_where_seen():
    mean = MovingMean(2, start=0.5, momentum=0.9, bias_correction=True, name="m")
    mean.update(tf.constant([0.2, 0.3]), tf.constant([True, False]))
    np.testing.assert_array_equal(mean.updates, [1, 0])
    assert mean.numpy()[1] == 0.5


def test_first_batch_sets_mean_and_unbiased_variance_of_counted_rows():
    state = ConfidenceWeights(3)
    state.update(*confidence([0.4, 0.6, 0.8, 9.0], counted=[True, True, True, False]))
    assert state.mean.numpy() == pytest.approx([0.6], rel=1e-6)
    assert state.variance.numpy() == pytest.approx([0.04], rel=1e-5)


def test_batch_without_counted_rows_changes_no_bit():
    state = ConfidenceWeights(3)
    state.update(*confidence([0.4, 0.7, 0.8]))
    before = [v.numpy() for v in state.variables]
    state.update(*confidence([0.1, 0.2], counted=[False, False]))
    for old, variable in zip(before, state.variables, strict=True):
        np.testing.assert_array_equal(old, variable)


def test_single_row_moves_the_mean_and_not_the_variance():
    state = ConfidenceWeights(3)
    state.update(*confidence([0.7]))
    assert state.mean.numpy() == pytest.approx([0.7])
    np.testing.assert_array_equal(state.variance.numpy(), [1.0])


def test_per_class_statistics_are_those_of_their_pseudo_label():
    state = ConfidenceWeights(2, per_class=True)
    values, labels = [0.4, 0.6, 0.9, 0.8], [0, 0, 1, 1]
    state.update(*confidence(values, labels))
    assert state.mean.numpy() == pytest.approx([0.5, 0.85], rel=1e-6)
    assert state.variance.numpy() == pytest.approx([0.02, 0.005], rel=1e-4)
    c, label, _ = confidence([0.5, 0.5], [0, 1])
    weights = state.weights(c, label).numpy()
    assert weights == pytest.approx([1.0, np.exp(-0.5 * 0.35**2 / 0.005)], rel=1e-3)


def test_prior_brings_the_rare_class_up():
    classes = DomainClasses(NAMES[:3], ("home",), "x")
    logits = tf.constant([[2.0, 0.0], [6.0, 0.0]])  # odds 7.4 and 403
    plain = pseudo_domains.pseudo_labels(logits, classes)
    fair = pseudo_domains.pseudo_labels(logits, classes, tf.constant([0.98, 0.02]))
    np.testing.assert_array_equal(plain.domain, [1, 1])
    np.testing.assert_array_equal(fair.domain, [2, 1])  # 49 to 1 against the first
    odds = np.exp(2)
    for labels, expected in ((plain, odds / (1 + odds)), (fair, 49 / (49 + odds))):
        assert float(labels.confidence[0]) == pytest.approx(expected, rel=1e-5)


def test_state_survives_save_and_restore(tmp_path):
    state = ConfidenceWeights(3)
    state.update(*confidence([0.4, 0.7, 0.8]))
    path = tf.train.Checkpoint(state=state).write(str(tmp_path / "s"))
    other = ConfidenceWeights(3)
    tf.train.Checkpoint(state=other).read(path).assert_consumed()
    for a, b in zip(state.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a, b)
