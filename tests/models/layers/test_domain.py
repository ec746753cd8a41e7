"""Layers with weights per domain: against loops over rows, and block against all."""

import numpy as np
import pytest
import tensorflow as tf

from models.layers.domain import (
    DomainDense,
    DomainStack,
    DomainTowers,
    _centre_kernels,
)
from models.layers.domain_rows import DomainRows
from models.layers.star import StarDense
from tests.models.layers import twins

D = 4
WIDTH = 3
SKEWED = np.random.default_rng(0).choice(D, 600, p=[0.9, 0.0, 0.07, 0.03])
BATCHES = {
    "absent": (D, [2, 0, 3, 0, 0, 2, 3]),
    "one_row": (D, [1]),
    "one_domain": (1, [0] * 5),
    "early": (D, list(SKEWED)),
}
LAYERS = {
    "dense": lambda d: DomainDense(d, 5, norm="layer", activation="relu"),
    "dense_plain": lambda d: DomainDense(d, 5),
    "stack": lambda d: DomainStack(d, 2, (6, 5), norm="layer"),
    "stack_plain": lambda d: DomainStack(d, 2, (5,)),
    "towers": lambda d: DomainTowers(d, 2, (6,), norm="layer"),
    "towers_linear": lambda d: DomainTowers(d, 2),
    "star": lambda d: StarDense(d, 5, activation="relu"),
}


def run(layer, x, domain, form="auto"):
    rows = DomainRows(tf.constant(domain, tf.int32), layer.num_domains, form=form)
    x = rows.enter(tf.constant(x, tf.float32))
    return rows.leave(layer(x, rows))


def make(kind, num_domains):
    layer = LAYERS[kind](num_domains)
    run(layer, np.zeros([1, WIDTH]), [0])
    twins.randomise(layer)
    return layer


def inputs(domain, shape=(), seed=7):
    return np.random.default_rng(seed).normal(size=(len(domain), *shape, WIDTH))


def norm(layer, at, i=None):
    """Scale and shift of network `at` of layer i; nothing without norm."""
    if layer.norm == "none":
        return ()
    pair = (layer.gamma, layer.beta) if i is None else (layer.gammas[i], layer.betas[i])
    return tuple(twins.array(v)[at] for v in pair)


def twin_stack(layer, x, at):
    for i, (kernel, bias) in enumerate(zip(layer.kernels, layer.biases, strict=True)):
        args = twins.array(kernel)[at], twins.array(bias)[at]
        x = twins.block(x, *args, *norm(layer, at, i))
    return x


def twin_row(layer, x, d):
    """Output for one row, [WIDTH] or [C, WIDTH], of domain d."""
    if isinstance(layer, DomainDense):
        act = twins.relu if layer.activation else (lambda z: z)
        kernel, bias = twins.array(layer.kernel)[d], twins.array(layer.bias)[d]
        return twins.block(x, kernel, bias, *norm(layer, d), activation=act)
    if isinstance(layer, StarDense):
        kernel = twins.array(layer.kernel) * twins.array(layer.own_kernel)[d]
        return twins.block(x, kernel, layer.bias + twins.array(layer.own_bias)[d])
    is_tower = isinstance(layer, DomainTowers)
    stack = layer.hidden if is_tower else layer
    each = [
        twin_stack(stack, x if x.ndim == 1 else x[c], (d, c))
        for c in range(stack.count)
    ]
    if not is_tower:
        return np.stack(each)
    kernel, bias = twins.array(layer.kernel)[d], twins.array(layer.bias)[d]
    return np.array([h @ kernel[t, :, 0] + bias[t] for t, h in enumerate(each)])


@pytest.mark.parametrize("form", ["auto", "all"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", LAYERS)
def test_each_row_equals_its_own_domains_network_in_float64(kind, batch, form):
    num_domains, domain = BATCHES[batch]
    layer, x = make(kind, num_domains), inputs(domain)
    got = run(layer, x, domain, form).numpy()
    # A sample of the larger batches: the twin is slow.
    for row in list(range(len(domain)))[:: max(1, len(domain) // 25)]:
        expected = twin_row(layer, x[row], domain[row])
        np.testing.assert_allclose(got[row], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_blocks_equal_those_of_all_domains(kind, batch):
    num_domains, domain = BATCHES[batch]
    layer, x = make(kind, num_domains), tf.constant(inputs(domain), tf.float32)
    found = []
    for form in ("auto", "all"):
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = run(layer, x, domain, form)
            value = tf.reduce_sum(out * tf.random.stateless_normal(out.shape, [1, 2]))
        found.append(tape.gradient(value, [x, *layer.trainable_variables]))
    for blocks, every in zip(*found, strict=True):
        blocks, every = tf.convert_to_tensor(blocks), tf.convert_to_tensor(every)
        scale = float(tf.reduce_max(tf.abs(every))) + 1.0
        np.testing.assert_allclose(blocks, every, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_of_a_domain_give_exactly_zero_gradient_to_the_others(kind):
    layer = make(kind, D)
    with tf.GradientTape() as tape:
        out = run(layer, inputs([2] * 9), [2] * 9)
        value = tf.reduce_sum(out * tf.random.stateless_normal(out.shape, [1, 2]))
    own = [v for v in layer.trainable_variables if v.shape[0] == D]
    assert len(own) >= 2
    for gradient in tape.gradient(value, own):
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert not np.any(np.delete(gradient, 2, axis=0))
        assert np.any(gradient[2])


@pytest.mark.parametrize("kind", LAYERS)
def test_unknown_batch_size_gives_the_same(kind):
    layer, domain = make(kind, D), BATCHES["early"][1]
    x = tf.constant(inputs(domain), tf.float32)

    @tf.function(
        input_signature=[tf.TensorSpec([None, WIDTH]), tf.TensorSpec([None], tf.int32)],
        autograph=False,
    )
    def call(x, domain):
        return run_rows(layer, x, domain)

    for count in (1, 600):
        got = call(x[:count], tf.constant(domain[:count], tf.int32))
        expected = run(layer, x[:count], domain[:count], "all")
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def run_rows(layer, x, domain):
    rows = DomainRows(domain, layer.num_domains)
    return rows.leave(layer(rows.enter(x), rows))


@pytest.mark.parametrize("kind", LAYERS)
def test_padding_rows_change_no_other_row_and_no_gradient(kind):
    layer, domain = make(kind, D), BATCHES["absent"][1]
    x = inputs(domain)
    padded = np.concatenate([x, np.full([6, WIDTH], 3.0)])
    found = []
    for rows, domains in ((x, domain), (padded, [*domain, 0, 0, 0, 0, 0, 0])):
        with tf.GradientTape() as tape:
            out = run(layer, rows, domains)[: len(domain)]
            value = tf.reduce_sum(out * tf.random.stateless_normal(out.shape, [1, 2]))
        found.append([out, *tape.gradient(value, layer.trainable_variables)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(
            tf.convert_to_tensor(b), tf.convert_to_tensor(a), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("groups", [2, 1])
def test_stack_of_private_inputs_gives_each_group_its_own(groups):
    """[N, G, I]: input g feeds networks g * C / G and on."""
    layer = DomainStack(D, 4, (5,), norm="layer")
    domain = BATCHES["absent"][1]
    x = inputs(domain, (groups,))
    run(layer, x, domain)
    twins.randomise(layer)
    got = run(layer, x, domain)
    each = 4 // groups
    for row, d in enumerate(domain):
        for c in range(4):
            expected = twin_stack(layer, x[row, c // each], (d, c))
            np.testing.assert_allclose(got[row, c], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["towers", "towers_linear"])
def test_towers_of_private_inputs_read_their_own_task(kind):
    layer, domain = LAYERS[kind](D), BATCHES["absent"][1]
    x = inputs(domain, (2,))
    run(layer, x, domain)
    twins.randomise(layer)
    got = run(layer, x, domain)
    for row, d in enumerate(domain):
        if kind == "towers":
            expected = twin_row(layer, x[row], d)
        else:
            kernel = twins.array(layer.kernel)[d, :, :, 0]
            expected = (x[row] * kernel).sum(-1) + twins.array(layer.bias)[d]
        np.testing.assert_allclose(got[row], expected, rtol=1e-3, atol=1e-4)


def test_stack_without_layers_gives_its_input_back():
    x = inputs([1, 0])
    np.testing.assert_array_equal(run(DomainStack(D, 2), x, [1, 0]), x.astype("f"))


def test_star_with_own_weights_of_one_is_the_shared_layer():
    layer = StarDense(D, 5)
    domain = BATCHES["absent"][1]
    x = inputs(domain)
    run(layer, x, domain)
    assert np.all(layer.own_kernel.numpy() == 1)
    assert not np.any(layer.own_bias)
    layer.bias.assign(tf.range(5.0))
    expected = x @ twins.array(layer.kernel) + np.arange(5.0)
    np.testing.assert_allclose(run(layer, x, domain), expected, rtol=1e-4, atol=1e-5)


def test_star_of_rank_one_scales_inputs_and_outputs():
    layer = StarDense(D, 5)
    x, domain = inputs([0, 3]), [0, 3]
    run(layer, x, domain)
    rng = np.random.default_rng(4)
    a, c = rng.normal(size=(D, WIDTH)), rng.normal(size=(D, 5))
    layer.own_kernel.assign(a[:, :, None] * c[:, None, :])
    got = run(layer, x, domain)
    for row, d in enumerate(domain):
        expected = ((x[row] * a[d]) @ twins.array(layer.kernel)) * c[d]
        np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "stack", "towers"])
def test_mean_taken_out_of_kernels_or_of_outputs_is_the_same(kind):
    """By kernels where rows are many, by outputs where they are few."""
    layer, domain = make(kind, 50), list(np.random.default_rng(1).integers(0, 50, 600))
    x = inputs(domain)
    many = run(layer, x, domain).numpy()
    assert _centre_kernels(tf.zeros([600, 1]), tf.zeros([50, WIDTH, 1]))
    assert not _centre_kernels(tf.zeros([80, 1]), tf.zeros([50, WIDTH, 1]))
    few = np.concatenate(
        [run(layer, x[i : i + 5], domain[i : i + 5]) for i in range(0, 50, 5)]
    )
    np.testing.assert_allclose(few, many[:50], rtol=1e-3, atol=1e-4)


def test_networks_of_domains_and_counts_differ_at_start():
    for kind in ("dense", "stack", "towers"):
        layer = LAYERS[kind](D)
        run(layer, np.zeros([1, WIDTH]), [0])
        for variable in layer.trainable_variables:
            if "kernel" in variable.name:
                values = variable.numpy()
                flat = values.reshape(-1, *values.shape[-2:])
                assert len({v.tobytes() for v in flat}) == len(flat), variable.name


def test_dropout_is_on_in_training_only():
    tf.random.set_seed(0)
    layer = DomainTowers(2, 2, (64,), dropout=0.5)
    rows = DomainRows(tf.constant([0, 1, 1]), 2)
    x = tf.constant(inputs([0, 1, 1]), tf.float32)
    out = layer(x, rows).numpy()
    np.testing.assert_array_equal(layer(x, rows, training=False), out)
    assert not np.allclose(layer(x, rows, training=True), out)


def test_towers_give_float32_under_bfloat16():
    layer = DomainTowers(2, 1, (4,), norm="layer", dtype="mixed_bfloat16")
    rows = DomainRows(tf.constant([0, 1]), 2)
    assert layer(tf.ones([2, 3], tf.bfloat16), rows).dtype == tf.float32


WEIGHTS = {
    "dense": {"kernel": (4, 3, 5), "bias": (4, 5), "gamma": (4, 5), "beta": (4, 5)},
    "dense_plain": {"kernel": (4, 3, 5), "bias": (4, 5)},
    "stack_plain": {"kernel_0": (4, 2, 3, 5), "bias_0": (4, 2, 5)},
    "towers": {
        "kernel_0": (4, 2, 3, 6),
        "bias_0": (4, 2, 6),
        "gamma_0": (4, 2, 6),
        "beta_0": (4, 2, 6),
        "kernel": (4, 2, 6, 1),
        "bias": (4, 2),
    },
    "towers_linear": {"kernel": (4, 2, 3, 1), "bias": (4, 2)},
    "star": {
        "kernel": (3, 5),
        "bias": (5,),
        "own_kernel": (4, 3, 5),
        "own_bias": (4, 5),
    },
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_come_with_build_and_have_these_shapes(kind):
    layer = LAYERS[kind](D)
    assert layer.weights == []
    run(layer, np.zeros([1, WIDTH]), [0])
    assert twins.shapes(layer) == WEIGHTS[kind]


@pytest.mark.parametrize("kind", LAYERS)
def test_config_round_trip(kind):
    again = twins.check_config(LAYERS[kind](D))
    layer, domain = make(kind, D), BATCHES["absent"][1]
    run(again, np.zeros([1, WIDTH]), [0])
    again.set_weights(layer.get_weights())
    x = inputs(domain)
    np.testing.assert_array_equal(run(again, x, domain), run(layer, x, domain))


@pytest.mark.parametrize("cls", [DomainDense, DomainStack])
def test_unknown_norm_is_refused(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__}.norm must be one of none"):
        cls(2, 3, norm="batch")
