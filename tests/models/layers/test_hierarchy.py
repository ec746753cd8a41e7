"""The hierarchy of experts against a row-by-row float64 twin."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models.aread import masks as masks_lib  # isort: skip
from models.layers import hierarchy_math  # isort: skip
from models.layers.hierarchy import Hierarchy, mix_rows  # isort: skip
from tests.models.layers import twins  # isort: skip

SIZES = (2, 3, 4)
D, T, B, WIDTH = 3, 2, 11, 5


def make(norm="layer", masked=True):
    tf.random.set_seed(0)
    layer = Hierarchy(D, T, SIZES, ((4, 3), (3,), (3, 2)), gate_width=3, norm=norm)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(SIZES[0], B, WIDTH)), tf.float32)
    domain = tf.constant(rng.integers(0, D, B), tf.int32)
    layer(x, domain)
    twins.randomise(layer)
    if masked:
        put_masks(layer, rng)
    return layer, x, domain


def put_masks(layer, rng, rate=0.6):
    full = [np.ones(m.shape[1:], bool) for m in layer.masks]
    masks = [masks_lib.candidate(tuple(full), rate, 4, rng) for _ in range(D)]
    for variable, values in zip(layer.masks, zip(*masks, strict=True), strict=True):
        variable.assign(np.stack(values))


def gates_of(layer, d, masks):
    """Softmax gates [N_l, N_{l-1}] of domain d over all edges."""
    named = {name: twins.array(v) for name, v in layer.named.items()}
    active = masks[0].any(1)
    group = named["gate_experts"][active].mean(0)
    side = np.concatenate([named["gate_domain"][d], group])
    return [
        np.stack(
            [
                twins.softmax(side @ kernel + bias)
                for kernel, bias in zip(
                    named[f"gate_kernel_{i}"], named[f"gate_bias_{i}"], strict=True
                )
            ]
        )
        for i in (1, 2)
    ]


def mlp(layer, level, n, x):
    named = {name: twins.array(v) for name, v in layer.named.items()}
    for i in range(layer.depths[level]):
        keys = ["kernel", "bias"] + ["gamma", "beta"] * (layer.norm == "layer")
        x = twins.block(x, *(named[f"{key}_{level}_{i}"][n] for key in keys))
    return x


def slow_outputs(layer, x, d):
    """Outputs {j: [T]} of one row's active top experts, by Eq. (3), (4) and (7)."""
    masks = [m.numpy()[d] > 0 for m in layer.masks]
    gates = gates_of(layer, d, masks)
    below = {n: mlp(layer, 0, n, x[n]) for n in range(SIZES[0])}
    for level, (mask, gate) in enumerate(zip(masks, gates, strict=True), start=1):
        above = {}
        for n in range(SIZES[level]):
            kept = [i for i in range(SIZES[level - 1]) if mask[i, n]]
            if not kept:
                continue
            total = sum(gate[n, i] for i in kept)
            mixed = sum(gate[n, i] * below[i] for i in kept) / total
            above[n] = mlp(layer, level, n, mixed)
        below = above
    kernel, bias = (twins.array(layer.named[f"out_{k}"]) for k in ("kernel", "bias"))
    return {j: e @ kernel[j] + bias[j] for j, e in below.items()}


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_equal_the_formulas_row_by_row(norm, masked):
    layer, x, domain = make(norm, masked)
    outputs, active = layer(x, domain)
    assert outputs.shape == [SIZES[-1], B, T]
    for b in range(B):
        expected = slow_outputs(layer, x.numpy()[:, b], int(domain[b]))
        assert set(np.flatnonzero(active.numpy()[:, b, 0])) == set(expected)
        for j, values in expected.items():
            np.testing.assert_allclose(outputs[j, b], values, rtol=1e-3, atol=1e-3)


def test_all_ones_masks_are_no_masks():
    layer, _, _ = make(masked=False)
    for a, gates in zip(layer.mixing(), layer.gates(), strict=True):
        np.testing.assert_array_equal(a, gates)
    np.testing.assert_array_equal(layer.active_outputs(), np.ones([D, SIZES[-1]]))


def test_weights_of_an_active_expert_sum_to_one_and_cut_edges_are_zero():
    layer, _, _ = make()
    for a, mask in zip(layer.mixing(), layer.masks, strict=True):
        kept = np.swapaxes(mask.numpy(), 1, 2) > 0
        assert (~kept).any()
        np.testing.assert_array_equal(a.numpy()[~kept], 0.0)
        np.testing.assert_allclose(a.numpy().sum(-1), kept.any(-1), rtol=1e-6)


def test_cut_edges_logit_gets_exactly_no_gradient():
    logits = tf.random.stateless_normal([2, 4, 3], [1, 2])
    mask = tf.constant(np.random.default_rng(0).integers(0, 2, (2, 3, 4)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = tf.reduce_sum(hierarchy_math.mixing(logits, mask) ** 2)
    gradient = tape.gradient(value, logits).numpy()
    cut = np.swapaxes(mask.numpy(), 1, 2) == 0
    assert not gradient[cut].any()
    assert gradient[~cut].any()


def test_mixing_survives_gates_that_underflow():
    logits = tf.constant([[[500.0, -500.0, -501.0]]])  # softmax: 1, 0, 0 in float32
    mask = tf.constant([[[0.0], [1.0], [1.0]]])
    found = hierarchy_math.mixing(logits, mask).numpy()[0, 0]
    np.testing.assert_allclose(found, [0, 1 / (1 + np.exp(-1)), 1 / (1 + np.e)], 1e-5)


def test_unused_first_layer_experts_stay_out_of_the_gates():
    layer, _, _ = make(masked=False)
    first = layer.masks[0].numpy()
    first[1, 0] = 0.0  # domain 1 does not use expert 0
    layer.masks[0].assign(first)
    before = [g.numpy() for g in layer.gates()]
    vectors = layer.named["gate_experts"].numpy()
    vectors[0] += 1.0
    layer.named["gate_experts"].assign(vectors)
    for old, new in zip(before, layer.gates(), strict=True):
        np.testing.assert_array_equal(old[1], new[1])
        assert not np.allclose(old[0], new[0])


def test_copies_in_one_product_equal_each_on_its_own():
    layer, x, _ = make(masked=False)
    rng = np.random.default_rng(3)
    named = {n: v for n, v in layer.named.items() if not n.startswith("gate_")}
    copies = [
        {n: tf.constant(rng.normal(size=v.shape), tf.float32) for n, v in named.items()}
        for _ in range(4)
    ]
    stacked = {n: tf.stack([c[n] for c in copies]) for n in named}

    def mean(_, e):  # inputs of the layer above: the mean of all, to every expert
        return tf.reduce_mean(e, axis=-3, keepdims=True)

    def run(weights):
        return hierarchy_math.run_experts(
            weights, x, mean, layer.depths, norm="layer"
        ).numpy()

    together = run(stacked)
    for z, weights in enumerate(copies):
        np.testing.assert_allclose(together[z], run(weights), rtol=1e-4, atol=1e-4)


def test_mix_rows_takes_each_rows_own_matrix():
    rng = np.random.default_rng(0)
    matrices, e = rng.normal(size=(D, 4, 3)), rng.normal(size=(3, B, 2))
    domain = rng.integers(0, D, B)
    found = mix_rows(
        tf.constant(matrices, tf.float32),
        tf.constant(domain, tf.int32),
        tf.constant(e, tf.float32),
    )
    for b, d in enumerate(domain):
        np.testing.assert_allclose(found[:, b], matrices[d] @ e[:, b], rtol=1e-4)


def test_average_logits_are_those_of_the_mean_probability():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(4, 6, 2)) * 3
    active = (rng.random((4, 6, 1)) < 0.5).astype("f4")
    active[0] = 1.0
    found = hierarchy_math.average_logits(tf.constant(outputs, tf.float32), active)
    probs = 1 / (1 + np.exp(-outputs))
    mean = (probs * active).sum(0) / active.sum(0)
    np.testing.assert_allclose(found, np.log(mean / (1 - mean)), rtol=1e-4, atol=1e-5)


def test_average_logits_of_extreme_outputs_stay_finite_with_gradient():
    outputs = tf.constant([[[300.0]], [[-300.0]], [[1e4]]])
    active = tf.constant([[[1.0]], [[1.0]], [[0.0]]])
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        found = hierarchy_math.average_logits(outputs, active)
    assert float(found[0, 0]) == pytest.approx(0.0, abs=1e-5)  # mean of 1 and 0
    gradient = tape.gradient(found, outputs).numpy()
    assert np.isfinite(gradient).all()
    assert gradient[2, 0, 0] == 0.0


@pytest.mark.parametrize(("kind", "divisor"), [("sum", 1), ("mean", 2)])
def test_bagging_adds_up_each_active_outputs_loss(kind, divisor):
    outputs = tf.constant([[[2.0]], [[-1.0]], [[7.0]]])  # three outputs, one row
    active = tf.constant([[[1.0]], [[1.0]], [[0.0]]])
    found = hierarchy_math.bagging(outputs, active, tf.constant([[1.0]]), kind)
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(1.0))) / divisor
    assert float(found[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_folded_layer_gives_the_same_outputs_without_gates_and_masks():
    layer, x, domain = make()
    folded = layer.folded()
    for a, b in zip(folded(x, domain), layer(x, domain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    names = [v.name for v in folded.variables]
    assert len(names) == len(layer.variables) - 2 - 4 - 2  # vectors, gates, masks
    assert not [n for n in names if "gate" in n or "mask" in n]


def test_hierarchy_config_round_trip():
    twins.check_config(make()[0])


@pytest.mark.parametrize(
    ("sizes", "units", "text"),
    [
        ((3,), ((4,),), r"two or more layers .*; got \(3,\)"),
        ((3, 0), ((4,), (4,)), r"at least one expert; got \(3, 0\)"),
        ((3, 4), ((4,),), r"each of the 2 layers .*; got \(\(4,\),\)"),
        ((3, 4), ((4,), ()), r"at least one, of each"),
    ],
)
def test_impossible_layers_are_refused(sizes, units, text):
    with pytest.raises(ValueError, match=text):
        Hierarchy(2, 1, sizes, units)
