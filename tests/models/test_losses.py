import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models import losses
from tfrecords_tools.batch import Batch


def _batch(labels, domain, mask=None, weight=None):
    labels = np.asarray(labels, np.float32)
    rows = labels.shape[0]
    return Batch(
        features={"domain": tf.constant(domain, tf.int32)},
        labels=tf.constant(labels),
        label_mask=tf.constant(
            np.ones_like(labels) if mask is None else np.asarray(mask, np.float32)
        ),
        weight=tf.constant(
            np.ones(rows, np.float32) if weight is None else weight, tf.float32
        ),
        valid=tf.ones([rows], tf.bool),
        keys={},
    )


def _random(rows=37, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(size=(rows, 2)).astype("f"),
        "labels": rng.integers(0, 2, (rows, 2)),
        "domain": rng.integers(0, 3, rows),
        "mask": rng.integers(0, 2, (rows, 2)),
        "weight": rng.random(rows).astype("f"),
    }


def _twin_bce(logits, labels):
    z = np.asarray(logits, np.float64)
    p = 1 / (1 + np.exp(-z))
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p))


def _twin(data, kind, num_domains):
    """Plain loops in float64."""
    loss = _twin_bce(data["logits"], data["labels"])
    total = 0.0
    for t in range(2):
        groups = [np.ones(len(loss), bool)]
        if kind == "cell_mean":
            groups = [data["domain"] == d for d in range(num_domains)]
        for rows in groups:
            w = data["weight"][rows].astype(np.float64) * data["mask"][rows, t]
            if w.sum() > 0:
                total += (w * loss[rows, t]).sum() / w.sum()
    return total


def test_bce_equals_hand_arithmetic():
    values = losses.bce(tf.constant([0.0, np.log(3.0)]), tf.constant([1.0, 0.0]))
    np.testing.assert_allclose(values, [np.log(2), np.log(4)], rtol=1e-6)


@pytest.mark.parametrize("kind", ["row_mean", "cell_mean"])
def test_task_loss_equals_float64_loops(kind):
    data = _random()
    batch = _batch(data["labels"], data["domain"], data["mask"], data["weight"])
    # Domain 3 of 4 has no row: an empty cell.
    got = losses.task_loss(tf.constant(data["logits"]), batch, kind, num_domains=4)
    np.testing.assert_allclose(got, _twin(data, kind, 4), rtol=1e-6)


@pytest.mark.parametrize("kind", ["row_mean", "cell_mean"])
def test_task_loss_of_masked_rows_is_zero_with_finite_gradient(kind):
    batch = _batch([[1, 0]], [0], mask=[[0, 0]])
    logits = tf.Variable([[2.0, 3.0]])
    with tf.GradientTape() as tape:
        loss = losses.task_loss(logits, batch, kind, num_domains=2)
    assert loss.numpy() == 0
    np.testing.assert_array_equal(tape.gradient(loss, logits), [[0.0, 0.0]])


def test_task_loss_is_float32_for_half_logits():
    batch = _batch([[1, 0]], [0])
    logits = tf.constant([[2.0, 3.0]], tf.float16)
    loss = losses.task_loss(logits, batch, "row_mean", num_domains=1)
    assert loss.dtype == tf.float32


def test_task_loss_refuses_unknown_kind():
    with pytest.raises(ValueError, match="row_mean"):
        losses.task_loss(tf.zeros([1, 1]), _batch([[1]], [0]), "mean", num_domains=1)


@pytest.mark.parametrize("kind", ["row_mean", "cell_mean"])
def test_task_loss_shares_of_two_replicas_add_up(kind, two_replicas):
    data = _random(rows=20)
    whole = _batch(data["labels"], data["domain"], data["mask"], data["weight"])

    @tf.function
    def shares():
        def share():
            i = tf.distribute.get_replica_context().replica_id_in_sync_group
            cut = slice(7 * i, 7 + 13 * i)  # 7 and 13 rows: uneven on purpose
            part = tf.nest.map_structure(lambda x: x[cut], whole)
            logits = tf.constant(data["logits"])[cut]
            return losses.task_loss(logits, part, kind, num_domains=3)

        return two_replicas.reduce("SUM", two_replicas.run(share), axis=None)

    np.testing.assert_allclose(shares(), _twin(data, kind, 3), rtol=1e-6)


def test_global_sum_passes_gradients_of_all_replicas(two_replicas):
    @tf.function
    def gradients():
        def replica():
            i = tf.distribute.get_replica_context().replica_id_in_sync_group
            x = tf.cast(i + 1, tf.float32)  # 1 and 2
            with tf.GradientTape() as tape:
                tape.watch(x)
                share = x * losses.global_sum(x)  # shares add up to (1 + 2)^2
            return tape.gradient(share, x)

        return two_replicas.experimental_local_results(two_replicas.run(replica))

    assert [float(g) for g in gradients()] == [6.0, 6.0]


def test_global_sum_outside_replicas_is_the_value_itself():
    x = tf.constant([1.0, 2.0])
    assert losses.global_sum(x) is x


def test_focal_without_gamma_is_bce():
    z, y = tf.constant([-3.0, 0.5, 2.0]), tf.constant([1.0, 0.0, 1.0])
    np.testing.assert_allclose(
        losses.focal(z, y, gamma=0.0), losses.bce(z, y), rtol=1e-6
    )


def test_focal_equals_formula_in_probabilities():
    z, y = np.array([-3.0, 0.5, 2.0]), np.array([1.0, 0.0, 1.0])
    p = 1 / (1 + np.exp(-z))
    q, a = np.where(y == 1, p, 1 - p), np.where(y == 1, 0.25, 0.75)
    got = losses.focal(tf.constant(z), tf.constant(y), gamma=2.0, alpha=0.25)
    np.testing.assert_allclose(got, -a * (1 - q) ** 2 * np.log(q), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_softmax_focal_equals_formula_in_probabilities(gamma):
    z, labels = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]), [2, 0]
    q = (np.exp(z) / np.exp(z).sum(1, keepdims=True))[[0, 1], labels]
    got = losses.softmax_focal(tf.constant(z), tf.constant(labels), gamma=gamma)
    np.testing.assert_allclose(got, -((1 - q) ** gamma) * np.log(q), rtol=1e-5)


def test_softmax_focal_is_finite_for_extreme_logits_and_zero_without_a_class():
    z = tf.Variable([[-900.0, 900.0], [900.0, -900.0], [300.0, 0.0]])
    with tf.GradientTape() as tape:
        value = losses.softmax_focal(z, tf.constant([0, 0, -1]), gamma=0.5)
    assert np.isfinite(value).all()
    assert float(value[2]) == 0
    gradient = tape.gradient(value, z).numpy()
    assert np.isfinite(gradient).all()
    assert not gradient[2].any()


@pytest.mark.parametrize("loss", [losses.bce, losses.focal])
def test_loss_and_gradient_finite_for_extreme_logits(loss):
    z = tf.Variable([-1000.0, 1000.0, -1000.0, 1000.0])
    with tf.GradientTape() as tape:
        value = loss(z, tf.constant([0.0, 0.0, 1.0, 1.0]))
    assert np.isfinite(value).all()
    assert np.isfinite(tape.gradient(value, z)).all()


def test_weighted_bce_divides_by_the_given_denominator():
    got = losses.weighted_bce_from_logits(
        tf.constant([1.0, 0.0]), tf.zeros([2]), tf.constant([2.0, 3.0]), tf.constant(10)
    )
    np.testing.assert_allclose(got, 0.5 * np.log(2), rtol=1e-6)


def test_losses_are_float32_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        assert losses.bce(tf.zeros([2], tf.float16), tf.ones([2])).dtype == tf.float32
    finally:
        keras.mixed_precision.set_global_policy("float32")
