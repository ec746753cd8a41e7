import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from models.layers.mlp import MLP, DenseBlock
from tests.models.layers import twins


def rows(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_dense_block_equals_float64_twin(norm, shape):
    layer = DenseBlock(4, norm=norm)
    x = rows(shape)
    layer(tf.constant(x, tf.float32))
    twins.randomise(layer)
    scale = (layer.gamma, layer.beta) if norm == "layer" else ()
    expected = twins.block(x, layer.kernel, layer.bias, *scale)
    got = layer(tf.constant(x, tf.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_dense_block_has_the_weights_of_its_norm():
    plain = {"kernel": (3, 4), "bias": (4,)}
    scale = {"gamma": (4,), "beta": (4,)}
    moving = {"moving_mean": (1, 4), "moving_variance": (1, 4), "num_updates": (1, 1)}
    for norm, extra in (("none", {}), ("layer", scale), ("batch", scale | moving)):
        layer = DenseBlock(4, norm=norm)
        assert layer.weights == []
        layer(tf.zeros([2, 3]))
        assert twins.shapes(layer) == plain | extra


def test_batch_norm_counts_valid_rows_only():
    layer, twin = DenseBlock(4, norm="batch"), DenseBlock(4, norm="batch")
    x = tf.constant(rows((6, 3)), tf.float32)
    valid = tf.constant([True, True, False, True, False, True])
    layer(x), twin(x)
    twin.set_weights(layer.get_weights())
    got = layer(x, training=True, valid=valid)
    expected = twin(x[valid], training=True)
    np.testing.assert_allclose(got[valid], expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(layer.weights, twin.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_dropout_scales_what_it_keeps_and_is_off_at_inference():
    tf.random.set_seed(0)
    layer = DenseBlock(1000, dropout=0.25, activation=None)
    x = tf.ones([1, 3])
    out = layer(x).numpy()
    np.testing.assert_array_equal(layer(x, training=False), out)
    dropped = layer(x, training=True).numpy()
    kept = dropped != 0
    assert 0.70 < kept.mean() < 0.80
    np.testing.assert_allclose(dropped[kept], out[kept] / 0.75, rtol=1e-5)


def test_mlp_is_its_blocks_then_a_linear_layer():
    layer = MLP((16, 12), output_units=2, norm="layer")
    x = rows((6, 3))
    layer(tf.constant(x, tf.float32))
    twins.randomise(layer)
    h = x
    for block in layer.blocks[:2]:
        h = twins.block(h, block.kernel, block.bias, block.gamma, block.beta)
    last = layer.blocks[2]
    expected = h @ twins.array(last.kernel) + twins.array(last.bias)
    got = layer(tf.constant(x, tf.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert (expected < 0).any()


def test_mlp_without_layers_gives_its_input_back():
    x = tf.constant(rows((2, 3)), tf.float32)
    np.testing.assert_array_equal(MLP(())(x), x)


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layers_equal_the_formula_in_float64(rank):
    layer = MLP((), cross_layers=2, cross_rank=rank)
    x = rows((5, 4))
    layer(tf.constant(x, tf.float32))
    twins.randomise(layer)
    h = x
    weights = iter(layer.trainable_variables)
    for _ in range(2):
        kernel = twins.array(next(weights))
        if rank is not None:
            kernel = kernel @ twins.array(next(weights))
        # The bias is inside the product: that is version 2.
        h = x * (h @ kernel + twins.array(next(weights))) + h
    got = layer(tf.constant(x, tf.float32))
    np.testing.assert_allclose(got, h, rtol=1e-3, atol=1e-4)
    assert all(isinstance(c, tfrs.layers.dcn.Cross) for c in layer.crosses)


def test_cross_layers_of_zero_weights_change_nothing():
    layer, plain = MLP((3,), cross_layers=3), MLP((3,))
    x = tf.constant(rows((5, 4)), tf.float32)
    layer(x), plain(x)
    for cross in layer.crosses:
        for weight in cross.weights:
            weight.assign(tf.zeros_like(weight))
    plain.set_weights(layer.blocks[0].get_weights())
    np.testing.assert_array_equal(layer(x), plain(x))


@pytest.mark.parametrize(("rank", "each"), [(None, 4 * 4 + 4), (2, 2 * 4 * 2 + 4)])
def test_cross_layers_add_their_weights(rank, each):
    layer = MLP((3,), cross_layers=2, cross_rank=rank)
    layer(tf.zeros([1, 4]))
    assert sum(int(tf.size(w)) for w in layer.weights) == 2 * each + 4 * 3 + 3


@pytest.mark.parametrize(
    "layer",
    [
        DenseBlock(
            3, norm="batch", activation="tanh", dropout=0.1, kernel_initializer="zeros"
        ),
        MLP(
            (3, 2),
            output_units=1,
            norm="layer",
            activation="tanh",
            dropout=0.1,
            cross_layers=1,
            cross_rank=2,
        ),
    ],
)
def test_config_round_trip(layer):
    again = twins.check_config(layer)
    again(tf.zeros([1, 4]))
    layer(tf.zeros([1, 4]))
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="DenseBlock.norm must be one of none, layer"):
        DenseBlock(3, norm="group")


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_precision_given_to_the_layer_reaches_its_parts(norm):
    layer = MLP((4,), output_units=2, norm=norm, cross_layers=1, dtype="mixed_bfloat16")
    assert layer(tf.ones([2, 3], tf.bfloat16), training=True).dtype == tf.bfloat16
    assert {w.dtype for w in layer.weights} == {tf.float32}
