import numpy as np
import pytest
import tensorflow as tf

from models.layers.selector import Selector, score
from tests.models.layers import twins


def make(num_sources=3, hidden=(6, 4)):
    layer = Selector(num_sources, hidden)
    layer(tf.zeros([1, 5]), tf.zeros([1], tf.int32))
    twins.randomise(layer)
    return layer


@pytest.mark.parametrize("rows", [8, 900])
def test_shared_layers_then_the_head_of_the_rows_source(rows):
    layer, rng = make(), np.random.default_rng(2)
    x, source = rng.normal(size=(rows, 5)), rng.integers(0, 3, rows)
    hidden = x
    for block in layer.hidden.blocks:
        hidden = twins.block(hidden, block.kernel, block.bias)
    head = twins.array(layer.head.kernel)[source, :, 0]
    expected = (hidden * head).sum(-1) + twins.array(layer.head.bias)[source, 0]
    got = layer(tf.constant(x, tf.float32), tf.constant(source, tf.int32))
    assert got.dtype == tf.float32
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_nothing_flows_back_into_the_rows():
    layer, x = make(), tf.Variable(tf.ones([4, 5]))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(x, tf.zeros([4], tf.int32)))
    assert tape.gradient(value, x) is None


def test_score_of_weights_is_the_mean_gradient_of_log_p():
    logits = tf.Variable([-2.0, 0.5, 3.0, 1.0])
    mask = tf.constant([1.0, 1.0, 1.0, 0.0])
    with tf.GradientTape() as tape:
        value = score(logits, tf.ones([4]), mask, tf.constant(3.0))
    got = tape.gradient(value, logits)
    with tf.GradientTape() as tape:
        plain = tf.reduce_sum(mask * tf.math.log(tf.sigmoid(logits))) / 3.0
    np.testing.assert_allclose(got, tape.gradient(plain, logits), rtol=1e-5)


def test_score_of_draws_is_the_gradient_of_their_log_probability():
    logits, taken = tf.Variable([-2.0, 0.5, 3.0]), tf.constant([1.0, 0.0, 1.0])
    with tf.GradientTape() as tape:
        value = score(logits, taken, tf.ones([3]), tf.constant(3.0))
    got = tape.gradient(value, logits)
    with tf.GradientTape() as tape:
        p = tf.sigmoid(logits)
        plain = tf.reduce_mean(tf.math.log(taken * p + (1 - taken) * (1 - p)))
    np.testing.assert_allclose(got, tape.gradient(plain, logits), rtol=1e-5)


def test_saturated_rows_keep_a_small_score():
    logits = tf.Variable([1e4, -1e4])
    with tf.GradientTape() as tape:
        value = score(logits, tf.ones([2]), tf.ones([2]), tf.constant(1.0))
    np.testing.assert_allclose(tape.gradient(value, logits), [0.01, 0.99], rtol=1e-4)
    with tf.GradientTape() as tape:
        value = score(logits, tf.ones([2]), tf.zeros([2]), tf.constant(0.0))
    np.testing.assert_array_equal(tape.gradient(value, logits), [0, 0])


def test_config_round_trip():
    twins.check_config(Selector(2, (4,)))
