import numpy as np
import pytest
import tensorflow as tf

from models.layers.pseudo_domains import ConfidenceWeights, DomainClasses
from models.layers.pseudo_labelling import Copies, PseudoLabelling, copies_loss
from tfrecords_tools.batch import Batch

CLASSES = DomainClasses(("home", "food", "drink", "night"), ("home",), "x")
DOMAIN = [0, 1, 2, 0, 3, 0, 1]
LABELS = [[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [1, 1], [0, 0]]
MASK = [[1, 1], [1, 0], [1, 1], [1, 1], [1, 1], [0, 1], [1, 1]]


def batch(weight=None, valid=None):
    rows = len(DOMAIN)
    return Batch(
        {"domain": tf.constant(DOMAIN)},
        tf.constant(LABELS, tf.float32),
        tf.constant(MASK, tf.float32),
        tf.constant([1.0] * rows if weight is None else weight, tf.float32),
        tf.constant([True] * rows if valid is None else valid),
        {},
    )


def logits(classes=3, seed=0):
    return np.random.default_rng(seed).normal(size=(len(DOMAIN), classes))


def made(**settings):
    settings = {"momentum": 0.9, "bias_correction": True} | settings
    return PseudoLabelling(CLASSES, ConfidenceWeights(3), **settings)


def focal(z, label, gamma=2.0):
    q = np.exp(z[label]) / np.exp(z).sum()
    return -((1 - q) ** gamma) * np.log(q)


def bce(z, y):
    return np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - z * y


def test_classifier_learns_from_rows_of_its_domains_alone():
    z, weight = logits(), [1, 2, 0.5, 7, 1, 7, 1]
    loss, metrics = made().classifier_loss(tf.constant(z, tf.float32), batch(weight))
    rows, labels = [1, 2, 4, 6], [0, 1, 2, 0]
    each = [focal(z[r], label) for r, label in zip(rows, labels, strict=True)]
    w = np.array(weight)[rows]
    assert float(loss) == pytest.approx(w @ each / w.sum(), rel=1e-5)
    right = z[rows].argmax(1) == labels
    accuracy = float(metrics["classifier_accuracy"])
    assert accuracy == pytest.approx(w @ right / w.sum(), rel=1e-6)


def test_classifier_loss_is_zero_without_such_rows():
    only_home = batch()._replace(features={"domain": tf.zeros([7], tf.int32)})
    loss, _ = made().classifier_loss(tf.constant(logits(), tf.float32), only_home)
    assert float(loss) == 0


def test_balanced_classes_weigh_the_same():
    z = logits()
    loss, _ = made(balance_classes=True).classifier_loss(
        tf.constant(z, tf.float32), batch()
    )
    food = (focal(z[1], 0) + focal(z[6], 0)) / 2
    expected = (food + focal(z[2], 1) + focal(z[4], 2)) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_copies_are_of_valid_dominant_rows_and_of_small_domains():
    valid, weight = [True] * 5 + [False] + [True], [1.0] * 3 + [0.0] + [1.0] * 3
    copies, _ = made().copies(
        tf.constant(logits(), tf.float32), batch(weight=weight, valid=valid)
    )
    np.testing.assert_array_equal(copies.weight.numpy() > 0, [True] + [False] * 6)
    assert set(copies.domain.numpy()) <= {1, 2, 3}


def test_metrics_are_means_over_dominant_rows():
    labelling, z = made(), logits()
    copies, metrics = labelling.copies(tf.constant(z, tf.float32), batch())
    rows = [0, 3, 5]
    probs = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    best, c = z.argmax(1)[rows], probs.max(1)[rows]
    weight = np.exp(-0.5 * np.minimum(c - c.mean(), 0) ** 2 / c.var(ddof=1))
    np.testing.assert_allclose(copies.weight.numpy()[rows], weight, rtol=1e-4)
    np.testing.assert_array_equal(copies.domain.numpy()[rows], best + 1)
    mean = float(metrics["pseudo_mean_weight"])
    assert mean == pytest.approx(weight.mean(), rel=1e-4)
    for k, name in enumerate(CLASSES.names):
        share = float(metrics[f"pseudo_share/{name}"])
        assert share == pytest.approx((best == k).mean(), rel=1e-5)
    assert set(metrics) < set(labelling.metric_names())
    expected = {"confidence_mean": c.mean(), "confidence_sigma": c.std(ddof=1)}
    assert labelling.scalars() == pytest.approx(expected, rel=1e-4)


def test_balanced_labels_use_the_shares_seen_in_training():
    labelling, z = made(balance_labels=True), tf.constant(logits(), tf.float32)
    labelling.classifier_loss(z, batch())
    shares = np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(labelling.shares.numpy(), shares, rtol=1e-5)
    copies, _ = labelling.copies(z, batch())
    expected = (logits() - np.log(shares)).argmax(1) + 1
    np.testing.assert_array_equal(copies.domain, expected)


@pytest.fixture
def parts():
    domain = np.array([1, 2, 3, 1, 2, 3, 1])
    factor = np.array([0.5, 0, 0, 0.7, 0, 0.2, 0])
    copies = Copies(tf.constant(domain, tf.int32), tf.constant(factor, tf.float32))
    return logits(2, 1), logits(2, 2), domain, factor, copies


def arguments(own, other, copies, weight):
    own, other = (tf.constant(z, tf.float32) for z in (own, other))
    return own, other, batch(weight), copies


def test_copies_count_per_real_row(parts):
    own, other, _, factor, copies = parts
    weight = np.array([1, 2, 1, 1, 1, 1, 0.5])
    loss = copies_loss(
        *arguments(own, other, copies, list(weight)), "row_mean", num_domains=4
    )
    w = weight[:, None] * np.array(MASK)
    each = w * factor[:, None] * bce(other, np.array(LABELS))
    assert float(loss) == pytest.approx((each.sum(0) / w.sum(0)).sum(), rel=1e-5)


def test_copies_join_the_cell_of_their_pseudo_domain(parts):
    own, other, domain, factor, copies = parts
    loss = copies_loss(*arguments(own, other, copies, None), "cell_mean", num_domains=4)
    labels, mask = np.array(LABELS), np.array(MASK, float)

    def cells(z, y, w, d):
        chosen = [(w[d == k], bce(z[d == k], y[d == k])) for k in range(4)]
        return sum((v * b).sum(0) / v.sum(0) for v, b in chosen).sum()

    alone = cells(own, labels, mask, np.array(DOMAIN))
    both = cells(
        np.concatenate([own, other]),
        np.concatenate([labels, labels]),
        np.concatenate([mask, mask * factor[:, None]]),
        np.concatenate([DOMAIN, domain]),
    )
    assert float(loss) == pytest.approx(both - alone, rel=1e-4)
