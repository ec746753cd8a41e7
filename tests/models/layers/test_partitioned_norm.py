import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models.layers.partitioned_norm import PartitionedNorm
from tests.models.layers import twins

D, H = 4, 3
LONG = 200  # updates after which the momentum is what it was set to
DOMAIN = [0, 2, 0, 2, 2, 0, 3, 0]  # none of 1, a single row of 3


def make(num_domains=D, seed=0, **settings):
    layer = PartitionedNorm(num_domains, **settings)
    layer(tf.zeros([1, H]), tf.zeros([1], tf.int32))
    twins.randomise(layer, seed)
    rng = np.random.default_rng(seed + 1)
    layer.moving_mean.assign(rng.normal(size=layer.moving_mean.shape))
    layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
    layer.num_updates.assign(np.full(layer.num_updates.shape, LONG))
    return layer


def values(seed=5):
    shape = (len(DOMAIN), H)
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype("f")


def twin(layer, x, domain, training):
    """One domain after the other, in float64; output, new mean, new variance."""
    x, domain = twins.array(x), np.asarray(domain)
    mean, variance = twins.array(layer.moving_mean), twins.array(layer.moving_variance)
    new_mean, new_variance = mean.copy(), variance.copy()
    for d in range(layer.num_domains) if training else ():
        own = x[domain == d]
        if len(own) >= 2:
            mean[d], variance[d] = own.mean(0), own.var(0)
            new_mean[d] = 0.99 * new_mean[d] + 0.01 * mean[d]
            new_variance[d] = 0.99 * new_variance[d] + 0.01 * variance[d]
    out = (x - mean[domain]) / np.sqrt(variance[domain] + 1e-3)
    gamma, beta = twins.array(layer.gamma), twins.array(layer.beta)
    if layer.num_domains > 1:
        gamma = gamma * twins.array(layer.own_gamma)[domain]
        beta = beta + twins.array(layer.own_beta)[domain]
    return out * gamma + beta, new_mean, new_variance


@pytest.mark.parametrize("training", [False, True])
def test_output_and_moving_statistics_equal_a_loop_over_domains(training):
    layer, x = make(), values()
    out, mean, variance = twin(layer, x, DOMAIN, training)
    got = layer(tf.constant(x), tf.constant(DOMAIN), training=training)
    np.testing.assert_allclose(got, out, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)


def test_moving_averages_start_as_plain_means_of_the_batches_of_a_domain():
    layer, batches = PartitionedNorm(D), [values(seed) for seed in range(3)]
    for x in batches:
        layer(tf.constant(x), tf.constant(DOMAIN), training=True)
    own = [x[np.array(DOMAIN) == 2].astype(np.float64) for x in batches]
    expected = np.mean([x.mean(0) for x in own], 0), np.mean([x.var(0) for x in own], 0)
    np.testing.assert_allclose(layer.moving_mean[2], expected[0], rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance[2], expected[1], rtol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean[1], np.zeros(H))
    np.testing.assert_array_equal(layer.moving_variance[1], np.ones(H))
    np.testing.assert_array_equal(layer.num_updates[:, 0], [3, 0, 3, 0])


def test_plain_means_end_where_the_momentum_begins():
    layer, x = PartitionedNorm(1, momentum=0.5), values()
    for shift in (0.0, 10.0, 20.0):  # plain: 0, 5; then half of 5 and 20
        layer(tf.constant(x + shift), training=True)
    np.testing.assert_allclose(layer.moving_mean[0], x.mean(0) + 12.5, rtol=1e-5)


def test_domains_of_no_or_one_row_keep_their_moving_statistics_to_the_bit():
    layer = make()
    before = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    layer(tf.constant(values()), tf.constant(DOMAIN), training=True)
    for old, new in zip(
        before, (layer.moving_mean, layer.moving_variance), strict=True
    ):
        np.testing.assert_array_equal(new.numpy()[[1, 3]], old[[1, 3]])
        assert (new.numpy()[[0, 2]] != old[[0, 2]]).all()


def test_single_row_of_a_domain_is_finite_and_uses_moving_statistics():
    layer, x = make(), values()
    out = layer(tf.constant(x), tf.constant(DOMAIN), training=True).numpy()
    assert np.isfinite(out).all()
    alone = layer(tf.constant(x[6:7]), tf.constant(DOMAIN[6:7])).numpy()
    np.testing.assert_allclose(out[6], alone[0], rtol=1e-5)


def test_inference_depends_on_no_other_row_and_changes_nothing():
    layer, x = make(), tf.constant(values())
    before = [w.numpy() for w in layer.weights]
    together = layer(x, tf.constant(DOMAIN)).numpy()
    for row, domain in enumerate(DOMAIN):
        alone = layer(x[row : row + 1], tf.constant([domain]))
        np.testing.assert_array_equal(alone[0], together[row])
    for old, new in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(new, old)


def test_invalid_rows_count_for_nothing_whatever_they_hold():
    layer, clean = make(), make()
    valid = np.array([1, 1, 1, 0, 1, 0, 0, 1], bool)
    x = values()
    x[~valid] = np.nan
    domain = np.array(DOMAIN)
    got = layer(tf.constant(x), tf.constant(domain), training=True, valid=valid)
    expected = clean(tf.constant(x[valid]), tf.constant(domain[valid]), training=True)
    np.testing.assert_allclose(got[valid], expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(layer.weights, clean.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_batch_without_a_valid_row_moves_nothing():
    layer = make()
    before = [w.numpy() for w in layer.weights]
    x = tf.zeros([3, H])
    out = layer(x, tf.zeros([3], tf.int32), training=True, valid=tf.zeros([3], tf.bool))
    assert np.isfinite(out).all()
    for old, new in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(new, old)


def test_gradients_equal_those_of_the_plain_formula_in_float64():
    layer, domain = make(), [0, 2, 0, 2, 2, 0, 2, 0]
    x = tf.constant(values())
    up = np.random.default_rng(8).normal(size=(8, H))
    own = [layer.gamma, layer.beta, layer.own_gamma, layer.own_beta]
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = layer(x, tf.constant(domain), training=True)
        value = tf.reduce_sum(out * tf.constant(up, tf.float32))
    got = tape.gradient(value, [x, *own])
    wide = [tf.constant(twins.array(v)) for v in (x, *own)]
    with tf.GradientTape() as tape:
        tape.watch(wide)
        z, gamma, beta, own_gamma, own_beta = wide
        value = 0.0
        for d in (0, 2):
            at = np.flatnonzero(np.array(domain) == d)
            part = tf.gather(z, at)
            part -= tf.reduce_mean(part, 0)
            part /= tf.sqrt(tf.reduce_mean(part * part, 0) + 1e-3)
            part = part * gamma * own_gamma[d] + beta + own_beta[d]
            value += tf.reduce_sum(part * up[at])
    for a, b in zip(got, tape.gradient(value, wide), strict=True):
        np.testing.assert_allclose(
            tf.convert_to_tensor(a), tf.convert_to_tensor(b), rtol=1e-3, atol=1e-4
        )


def test_one_domain_is_keras_batch_normalisation():
    ours, keras_layer = PartitionedNorm(1), keras.layers.BatchNormalization()
    ours.build([None, H])
    ours.num_updates.assign([[LONG]])
    for seed in range(3):
        x = tf.constant(values(seed=seed))
        got = ours(x, training=True)
        expected = keras_layer(x, training=True)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    x = tf.constant(values(seed=9))
    np.testing.assert_allclose(ours(x), keras_layer(x), rtol=1e-4, atol=1e-5)


def test_statistics_of_two_replicas_are_those_of_the_whole_batch(two_replicas):
    x, domain = tf.constant(values()), tf.constant(DOMAIN)
    one = make()
    expected = one(x, domain, training=True).numpy()
    with two_replicas.scope():
        layer = make()

    @tf.function(autograph=False)
    def run():
        def replica():
            i = tf.distribute.get_replica_context().replica_id_in_sync_group
            cut = slice(3 * i, 3 + 5 * i)  # 3 and 5 rows
            return layer(x[cut], domain[cut], training=True)

        return two_replicas.experimental_local_results(two_replicas.run(replica))

    np.testing.assert_allclose(tf.concat(run(), 0), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, one.moving_mean, rtol=1e-5)


def test_bfloat16_input_keeps_its_type_and_statistics_stay_float32():
    layer = PartitionedNorm(2, dtype="mixed_bfloat16")
    x = tf.cast(values(), tf.bfloat16)
    out = layer(x, tf.constant([0, 1] * 4), training=True)
    assert out.dtype == tf.bfloat16
    assert layer.moving_mean.dtype == tf.float32


def test_weights_and_config():
    layer = PartitionedNorm(D, momentum=0.9, epsilon=1e-4)
    assert layer.weights == []
    layer(tf.zeros([1, H]), tf.zeros([1], tf.int32))
    own = dict.fromkeys(("own_gamma", "own_beta"), (D, H))
    moving = dict.fromkeys(("moving_mean", "moving_variance"), (D, H))
    moving |= {"num_updates": (D, 1)}
    assert twins.shapes(layer) == {"gamma": (H,), "beta": (H,)} | own | moving
    assert len(layer.trainable_weights) == 4
    twins.check_config(layer)
