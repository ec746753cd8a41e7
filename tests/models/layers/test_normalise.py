import numpy as np
import pytest
import tensorflow as tf

from models.layers import normalise
from tests.models.layers import twins

# Shape of x and of gamma: rows, stacked experts, blocks of rows.
SHAPES = [((6, 5), (5,)), ((3, 6, 5), (3, 1, 5)), ((4, 2, 3, 5), (4, 1, 3, 5))]


def inputs(x_shape, gamma_shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(2.0, 3.0, x_shape)
    return x, rng.normal(size=gamma_shape), rng.normal(size=gamma_shape)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize(
    ("activation", "twin"),
    [(None, lambda x: x), ("relu", twins.relu), ("tanh", np.tanh)],
)
def test_centre_and_scale_norm_are_layer_normalisation(shapes, activation, twin):
    x, gamma, beta = inputs(*shapes)
    got = normalise.scale_norm(
        normalise.centre(tf.constant(x, tf.float32)),
        tf.constant(gamma, tf.float32),
        tf.constant(beta, tf.float32),
        activation=activation,
    )
    expected = twin(twins.layer_norm(x, gamma, beta))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_equal_those_of_the_plain_formula(shapes, activation):
    x, gamma, beta = (tf.constant(a) for a in inputs(*shapes))
    x = normalise.centre(x)
    up = tf.constant(np.random.default_rng(1).normal(size=shapes[0]))

    def plain(x, gamma, beta):
        inverse = 1 / tf.sqrt(tf.reduce_mean(x * x, -1, keepdims=True) + twins.EPSILON)
        out = x * inverse * gamma + beta
        return tf.nn.relu(out) if activation else out

    found = []
    for function in (
        lambda *args: normalise.scale_norm(*args, activation=activation),
        plain,
    ):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            value = tf.reduce_sum(function(x, gamma, beta) * up)
        found.append(tape.gradient(value, [x, gamma, beta]))
    for got, expected in zip(*found, strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_constant_row_gives_the_shift_and_a_finite_gradient():
    x, gamma = tf.Variable(tf.zeros([2, 3])), tf.ones([3])
    with tf.GradientTape() as tape:
        out = normalise.scale_norm(x, gamma, tf.constant([1.0, 2.0, 3.0]))
        value = tf.reduce_sum(out * out)
    np.testing.assert_array_equal(out, [[1, 2, 3]] * 2)
    assert np.isfinite(tape.gradient(value, x)).all()


def test_bfloat16_keeps_its_type_and_counts_in_float32():
    # 256 equal numbers: a bfloat16 sum of squares would stop growing on the way.
    x = tf.cast(tf.tile([[3.0, -3.0]], [1, 128]), tf.bfloat16)
    out = normalise.scale_norm(x, tf.ones([256]), tf.zeros([256]))
    assert out.dtype == tf.bfloat16
    np.testing.assert_allclose(
        tf.cast(out, tf.float32), np.tile([1.0, -1.0], 128)[None], rtol=1e-2
    )


def test_activate_without_name_is_the_identity():
    x = tf.constant([-1.0, 2.0])
    assert normalise.activate(x, None) is x
    np.testing.assert_array_equal(normalise.activate(x, "relu"), [0.0, 2.0])


def test_unknown_norm_is_named_with_its_owner():
    with pytest.raises(ValueError, match=r"DenseBlock.norm must be one of a, b; got"):
        normalise.check_norm("DenseBlock", "lyer", ("a", "b"))
