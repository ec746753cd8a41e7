import numpy as np
import pytest
import tensorflow as tf

from models.layers.fusion import NAMES, FixedFusion, Fusion
from tests.models.layers import twins


def logit(p):
    return np.log(p / (1 - p))


def table(layer):
    return layer(tf.zeros([1])).numpy()


def set_weights(layer, **chosen):
    layer(tf.zeros([1]))
    for name, value in chosen.items():
        layer.raw[name].assign(
            np.broadcast_to(logit(np.array(value)), [layer.raw[name].shape[0]])
        )


def test_table_by_hand():
    layer = Fusion(3, 2)
    set_weights(
        layer, alpha_domain=0.5, beta_domain=0.6, alpha_task=0.25, beta_task=0.8
    )
    own, other = 0.5 * 0.6, 0.5 * 0.4 / 2
    task_own, task_other = 0.25 * 0.8, 0.25 * 0.2
    domains = np.full((3, 3), other) + (own - other) * np.eye(3)
    tasks = np.full((2, 2), task_other) + (task_own - task_other) * np.eye(2)
    got = table(layer)
    assert got.shape == (3, 2, 5)
    for d in range(3):
        for t in range(2):
            np.testing.assert_allclose(got[d, t], [*domains[d], *tasks[t]], rtol=1e-5)


def test_weights_per_domain_and_task_go_to_their_own_heads():
    layer = Fusion(2, 3, per_head=True)
    set_weights(layer, alpha_domain=[0.2, 0.4], beta_domain=[0.5, 0.9])
    got = table(layer)
    np.testing.assert_allclose(got[0, :, :2], [[0.1, 0.1]] * 3, rtol=1e-5)
    np.testing.assert_allclose(got[1, :, :2], [[0.04, 0.36]] * 3, rtol=1e-5)
    set_weights(layer, alpha_task=[0.3, 0.6, 0.9], beta_task=[1 / 3, 0.5, 0.8])
    expected = [[0.1, 0.1, 0.1], [0.15, 0.3, 0.15], [0.09, 0.09, 0.72]]
    for d in range(2):
        np.testing.assert_allclose(table(layer)[d, :, 2:], expected, rtol=1e-5)


@pytest.mark.parametrize(("domains", "tasks"), [(1, 2), (2, 1), (1, 1)])
def test_single_expert_weighs_alpha(domains, tasks):
    layer = Fusion(domains, tasks)
    set_weights(layer, alpha_domain=0.3, alpha_task=0.7, beta_task=0.9)
    got = table(layer)
    assert np.isfinite(got).all()
    if domains == 1:
        np.testing.assert_allclose(got[..., 0], 0.3, rtol=1e-5)
    if tasks == 1:
        np.testing.assert_allclose(got[..., -1], 0.7, rtol=1e-5)


def test_table_is_float32_under_bfloat16_and_weights_are_named():
    layer = Fusion(3, 2)
    table(layer)
    assert [v.name.split("/")[-1] for v in layer.weights] == [
        f"fusion_{name}:0" for name in NAMES
    ]
    assert {v.shape[0] for v in layer.weights} == {1}
    assert layer.compute_dtype == "float32"


def test_values_are_the_sigmoids_by_name():
    layer = Fusion(2, 1, initial=0.0, per_head=True)
    table(layer)
    assert layer.values() == {
        "fusion/alpha_domain_0": 0.5,
        "fusion/alpha_domain_1": 0.5,
        "fusion/alpha_task": 0.5,
        "fusion/beta_domain_0": 0.5,
        "fusion/beta_domain_1": 0.5,
        "fusion/beta_task": 0.5,
    }


def test_fixed_fusion_gives_its_table_without_weights():
    values = np.arange(12.0).reshape(2, 2, 3)
    layer = FixedFusion(values)
    np.testing.assert_array_equal(table(layer), values)
    assert layer.weights == []
    again = FixedFusion.from_config(layer.get_config())
    np.testing.assert_array_equal(table(again), values)


def test_config_round_trip():
    twins.check_config(Fusion(3, 2, initial=0.5, per_head=True))


@pytest.mark.parametrize(("signs", "direction"), [("+++", -1), ("+-+", 1)])
def test_own_share_falls_where_domains_agree_and_rises_where_one_conflicts(
    signs, direction
):
    """Experts that each know their domain's taste up to an error of their own."""
    rng = np.random.default_rng(5)
    rows, width = 3000, 8
    taste = rng.normal(size=width)
    tastes = np.stack([taste if s == "+" else -taste for s in signs])
    x, domain = rng.normal(size=(rows, width)), rng.integers(0, 3, rows)
    clicks = rng.uniform(size=rows) < 1 / (1 + np.exp(-(x * tastes[domain]).sum(1)))
    experts = tastes + 0.7 * rng.normal(size=tastes.shape)
    outputs = tf.constant(x @ experts.T, tf.float32)  # [rows, 3]
    labels = tf.constant(clicks, tf.float32)
    layer = Fusion(3, 1)
    set_weights(layer, alpha_domain=0.9, beta_domain=0.6)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            weights = tf.gather(layer(labels)[:, 0, :3], domain)
            logits = tf.reduce_sum(weights * outputs, axis=1)
            loss = tf.reduce_mean(
                tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
            )
        raw = [layer.raw["alpha_domain"], layer.raw["beta_domain"]]
        for variable, gradient in zip(raw, tape.gradient(loss, raw), strict=True):
            variable.assign_sub(2.0 * gradient)

    for _ in range(60):
        step()
    moved = layer.values()["fusion/beta_domain"] - 0.6
    assert moved * direction > 0.15, moved
