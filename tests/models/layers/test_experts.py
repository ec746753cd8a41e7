import numpy as np
import pytest
import tensorflow as tf

from models.layers import experts
from models.layers.domain_rows import DomainRows
from tests.models.layers import twins

K = 4


def inputs(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def built(layer, x):
    layer(tf.constant(x, tf.float32))
    twins.randomise(layer)
    return layer(tf.constant(x, tf.float32)).numpy()


def twin(layer, x, k):
    for i in range(len(layer.hidden_units)):
        args = [layer.kernels[i], layer.biases[i]]
        if layer.norm == "layer":
            args += [layer.gammas[i], layer.betas[i]]
        x = twins.block(x, *(twins.array(a)[k] for a in args))
    return x


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("private", [False, True])
def test_stacked_experts_equal_separate_networks_in_float64(private, norm):
    x = inputs((K, 6, 3) if private else (6, 3))
    layer = experts.StackedMLP(K, (5, 4), norm=norm)
    out = built(layer, x)
    assert out.shape == (K, 6, 4)
    for k in range(K):
        expected = twin(layer, x[k] if private else x, k)
        np.testing.assert_allclose(out[k], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_rows_first_is_the_same_transposed(norm):
    x = inputs((6, 3))
    layer = experts.StackedMLP(K, (5,), norm=norm, rows_first=True)
    out = built(layer, x)
    assert out.shape == (6, K, 5)
    for k in range(K):
        np.testing.assert_allclose(out[:, k], twin(layer, x, k), rtol=1e-3, atol=1e-4)


def test_gradient_of_an_expert_comes_from_its_own_output_alone():
    layer = experts.StackedMLP(K, (16, 12), norm="layer")
    x = inputs((6, 3))
    built(layer, x)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(tf.constant(x, tf.float32))[1] ** 2)
    for gradient in tape.gradient(value, layer.trainable_variables):
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert not np.any(np.delete(gradient, 1, axis=0))
    assert np.any(gradient[1])


def test_experts_differ_at_start_and_have_one_kernels_spread():
    tf.random.set_seed(1)
    layer = experts.StackedMLP(12, (32,))
    layer(tf.zeros([1, 64]))
    kernels = layer.kernels[0].numpy()
    assert len({k.tobytes() for k in kernels}) == 12
    assert kernels.std() == pytest.approx(np.sqrt(2 / (64 + 32)), rel=0.03)


def test_dropout_of_experts_is_on_in_training_only():
    tf.random.set_seed(0)
    layer = experts.StackedMLP(2, (64,), dropout=0.5)
    x = tf.ones([3, 4])
    np.testing.assert_array_equal(layer(x), layer(x, training=False))
    out, dropped = layer(x).numpy(), layer(x, training=True).numpy()
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * out[kept], rtol=1e-5)
    assert 0.3 < kept[out > 0].mean() < 0.7


def test_stack_weights_come_with_build():
    layer = experts.StackedMLP(K, (5, 2), norm="layer")
    assert layer.weights == []
    layer(tf.zeros([1, 3]))
    assert twins.shapes(layer) == {
        "kernel_0": (K, 3, 5),
        "kernel_1": (K, 5, 2),
        **{f"{n}_0": (K, 5) for n in ("bias", "gamma", "beta")},
        **{f"{n}_1": (K, 2) for n in ("bias", "gamma", "beta")},
    }


@pytest.mark.parametrize("rows", [7, 600])
@pytest.mark.parametrize("private", [False, True])
def test_gates_are_softmaxes_of_the_rows_own_domain(private, rows):
    layer = experts.Gates(3, 2, K)
    domain = np.random.default_rng(1).integers(0, 3, rows)
    x = inputs((rows, 2, 5) if private else (rows, 5))
    plan = DomainRows(tf.constant(domain, tf.int32), 3)
    entered = plan.enter(tf.constant(x, tf.float32))
    layer(entered, plan)
    twins.randomise(layer)
    got = plan.leave(layer(entered, plan)).numpy()
    assert got.shape == (rows, 2, K)
    np.testing.assert_allclose(got.sum(-1), 1.0, rtol=1e-5)
    kernel, bias = twins.array(layer.kernel), twins.array(layer.bias)
    for row in range(0, rows, max(1, rows // 20)):
        for g in range(2):
            d = domain[row]
            side = x[row, g] if private else x[row]
            logits = side @ kernel[d, g] + bias[d, g * K : (g + 1) * K]
            expected = twins.softmax(logits)
            np.testing.assert_allclose(got[row, g], expected, rtol=1e-3, atol=1e-5)


def test_gates_of_other_domains_get_exactly_zero_gradient():
    layer = experts.Gates(3, 2, K)
    plan = DomainRows(tf.constant([1, 1, 1]), 3)
    x = tf.constant(inputs((3, 5)), tf.float32)
    layer(x, plan)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(x, plan) * tf.constant([1.0, 2.0, 3.0, 4.0]))
    for gradient in tape.gradient(value, layer.trainable_variables):
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert not np.any(gradient[[0, 2]])
        assert np.any(gradient[1])


def test_gates_are_float32_under_bfloat16():
    layer = experts.Gates(2, 1, K, dtype="mixed_bfloat16")
    plan = DomainRows(tf.constant([0, 1]), 2)
    assert layer(tf.ones([2, 3], tf.bfloat16), plan).dtype == tf.float32


def test_mix_is_a_weighted_sum_by_hand():
    weights = tf.constant([[[0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.25, 0.75]]])
    outputs = tf.constant([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [9.0, 10.0]]])
    expected = [[[2, 3], [1, 2]], [[9, 10], [8, 9]]]
    np.testing.assert_allclose(experts.mix(weights, outputs), expected)
    stacked = tf.transpose(outputs, [1, 0, 2])
    np.testing.assert_allclose(experts.mix_stacked(weights, stacked), expected)


@pytest.mark.parametrize("function", ["mix", "mix_stacked"])
def test_gradients_of_mixing_equal_those_of_the_plain_sum(function):
    rng = np.random.default_rng(0)
    weights = tf.constant(rng.normal(size=(5, 2, K)))
    outputs = tf.constant(rng.normal(size=(5, K, 3)))
    if function == "mix_stacked":
        outputs = tf.transpose(outputs, [1, 0, 2])
    letters = "bgk,bkh->bgh" if function == "mix" else "bgk,kbh->bgh"
    up = rng.normal(size=(5, 2, 3))
    found = []
    for call in (
        getattr(experts, function),
        lambda a, b: tf.einsum(letters, a, b),
    ):
        with tf.GradientTape() as tape:
            tape.watch([weights, outputs])
            value = tf.reduce_sum(call(weights, outputs) * up)
        found.append(tape.gradient(value, [weights, outputs]))
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_stack_without_widths_or_rows_first_with_two_is_refused():
    with pytest.raises(ValueError, match="StackedMLP.hidden_units must hold"):
        experts.StackedMLP(2, ())
    with pytest.raises(ValueError, match="StackedMLP.rows_first must go with one"):
        experts.StackedMLP(2, (3, 3), rows_first=True)
    with pytest.raises(ValueError, match="StackedMLP.norm must be one of none, layer"):
        experts.StackedMLP(2, (3,), norm="batch")


@pytest.mark.parametrize(
    "layer",
    [
        experts.StackedMLP(
            3, (4,), norm="layer", activation=None, dropout=0.1, rows_first=True
        ),
        experts.StackedMLP(3, (4, 2), kernel_initializer="he_normal"),
        experts.Gates(3, 2, 4),
    ],
)
def test_config_round_trip(layer):
    twins.check_config(layer)
