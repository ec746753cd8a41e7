"""The properties of M3oE that its paper promises (numbers 1 to 15 of our notes)."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models.layers.domain_rows import DomainRows  # isort: skip
from models.layers.fusion import Fusion  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.m3oe import DomainRepresentation  # isort: skip
from tests.models.layers import twins  # isort: skip
from tests.models.methods import data  # isort: skip

SURE = 40.0  # sigmoid(40) is 1 and sigmoid(-200) is 0 in float32


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def fusion_table(domains, tasks, **raw):
    layer = Fusion(domains, tasks)
    layer(tf.zeros([1]))
    for name, value in raw.items():
        layer.raw[name].assign([value])
    return layer(tf.zeros([1])).numpy()


def m3oe(schema=None, **settings):
    return data.make_method("m3oe", schema or data.make_schema(), **settings)


def parts(method, batch):
    """h, gates and experts' outputs as the model computes them, in input order."""
    model, domain = method.model, batch.domain
    rows = DomainRows(domain, method.schema.num_domains)
    h = model.representation(model.embeddings(batch.features), rows)
    return h.numpy(), model.gates(h, rows).numpy(), model.experts(h).numpy(), rows


def test_full_beta_gives_own_expert_alone():
    table = fusion_table(3, 2, beta_domain=SURE, beta_task=SURE, alpha_domain=SURE)
    for d in range(3):
        for t in range(2):
            np.testing.assert_array_equal(table[d, t, :3], np.eye(3)[d])


def test_beta_of_one_over_d_gives_the_mean():
    table = fusion_table(4, 2, beta_domain=-np.log(3.0), alpha_domain=SURE)
    np.testing.assert_allclose(table[:, :, :4], 0.25, rtol=1e-6)


@pytest.mark.parametrize("raw", [-3.0, 0.0, 1.0, 2.5])
def test_weights_over_experts_sum_to_alpha_for_any_beta(raw):
    table = fusion_table(5, 3, beta_domain=raw, beta_task=-raw)
    np.testing.assert_allclose(table[..., :5].sum(-1), sigmoid(1.0), rtol=1e-6)
    np.testing.assert_allclose(table[..., 5:].sum(-1), sigmoid(1.0), rtol=1e-6)


def test_fused_equals_naive_double_loop():
    method = m3oe()
    for name, value in zip(method.model.fusion.raw, (0.3, -1.2, 0.8, 2.0), strict=True):
        method.model.fusion.raw[name].assign([value])
    alpha_d, alpha_t, beta_d, beta_t = (sigmoid(v) for v in (0.3, -1.2, 0.8, 2.0))
    batch = data.make_batch(method.schema, 9)
    _, gates, outputs, rows = parts(method, batch)
    expected = np.zeros([9, 2, 8])
    for b, d in enumerate(batch.domain.numpy()):
        for t in range(2):
            shared = sum(gates[b, t, e] * outputs[b, e] for e in range(2))
            others = [outputs[b, 2 + j] for j in range(3) if j != d]
            dom = beta_d * outputs[b, 2 + d] + (1 - beta_d) / 2 * sum(others)
            tsk = beta_t * outputs[b, 5 + t] + (1 - beta_t) * outputs[b, 5 + (1 - t)]
            expected[b, t] = shared + alpha_d * dom + alpha_t * tsk
    weights = method.model.mixture(tf.constant(gates), batch.domain)
    fused = tf.matmul(weights, outputs)
    np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=1e-5)
    logits = method.model.towers(fused, rows).numpy()
    np.testing.assert_allclose(data.logits(method, batch), logits, atol=1e-5)


RAW = {"beta_domain": 0.8, "beta_task": 2.0}


def hidden_of_concat(d, t, gates, outputs, beta_d, beta_t):
    """[S ; Dom ; Tsk] of one row for one head, in float64."""
    shared = sum(g * f for g, f in zip(gates, outputs[:2], strict=True))
    others = [outputs[2 + j] for j in range(3) if j != d]
    dom = beta_d * outputs[2 + d] + (1 - beta_d) / 2 * sum(others)
    tsk = beta_t * outputs[5 + t] + (1 - beta_t) * outputs[5 + (1 - t)]
    return np.concatenate([shared, dom, tsk])


def hidden_of_gated(d, t, gates, outputs, beta_d, beta_t):
    """One mean of all seven experts under the head's own gate, in float64."""
    del d, t, beta_d, beta_t
    return sum(g * f for g, f in zip(gates, outputs, strict=True))


@pytest.mark.parametrize(
    ("form", "hidden", "weights"),
    [
        ("concat", hidden_of_concat, list(RAW)),
        ("gated", hidden_of_gated, []),
    ],
)
def test_ablated_fusions_equal_their_formula_in_float64(form, hidden, weights):
    method = m3oe(fusion_ablation=form)
    model, rng = method.model, np.random.default_rng(0)
    for layer in (model.gates, model.experts, model.towers):
        for variable in layer.trainable_variables:
            variable.assign(rng.normal(size=variable.shape))
    for name in weights:
        model.fusion.raw[name].assign([RAW[name]])
    batch = data.make_batch(method.schema, 9)
    h, _, _, _ = parts(method, batch)
    logits = data.logits(method, batch)
    for b, d in enumerate(batch.domain.numpy()):
        names = ("kernels", "biases", "gammas", "betas")
        blocks = [getattr(model.experts, n)[0].numpy() for n in names]
        outputs = [twins.block(h[b], *(v[k] for v in blocks)) for k in range(7)]
        kernel, bias = twins.array(model.gates.kernel), twins.array(model.gates.bias)
        for t in range(2):
            gate = np.split(bias[d], 2)[t] + h[b].astype("f8") @ kernel[d, t]
            gate = twins.softmax(gate)
            x = hidden(d, t, gate, outputs, *map(sigmoid, RAW.values()))
            data.check_tower(model.towers, x, d, t, logits[b, t])
    assert [k.removeprefix("fusion/") for k in method.scalars()] == weights
    moved = changed(method, lambda: method.train_step({MAIN: batch}))
    assert moved["fusion"] == [True] * len(weights)
    assert all(moved["rest"])


@pytest.mark.parametrize("form", ["concat", "gated"])
def test_ablated_fusions_are_exported(form, tmp_path):
    method = m3oe(fusion_ablation=form, use_task_experts=False)
    batch = data.make_batch(method.schema, 20)
    method.train_step({MAIN: batch})
    model = method.export_model()
    allowed = list(model.variables)
    assert not [v for v in allowed if "fusion" in v.name]
    data.check_export(method, model, allowed, batch, tmp_path)


def test_gated_fusion_has_no_weights_to_alternate():
    with pytest.raises(ConfigError, match="fusion_update must be joint"):
        m3oe(fusion_ablation="gated", fusion_update="fixed")


@pytest.mark.parametrize(
    ("name", "experts"), [("alpha_domain", slice(2, 5)), ("alpha_task", slice(5, 7))]
)
def test_zero_alpha_cuts_its_module_off(name, experts):
    method = m3oe()
    method.model.fusion.raw[name].assign([-200.0])
    batch = data.make_batch(method.schema, 30)
    _, gradients = data.gradients(method, batch)
    stacks = {
        k: g
        for (k, g), v in zip(
            gradients.items(), method.model.trainable_variables, strict=True
        )
        if any(v is w for w in method.model.experts.trainable_variables)
    }
    assert len(stacks) == 4
    for gradient in stacks.values():
        assert not np.any(gradient[experts])
        assert np.any(np.delete(gradient, experts, axis=0))
    before = data.logits(method, batch)
    kernel = method.model.experts.kernels[0]
    values = kernel.numpy()
    # Random: layer normalisation takes a constant out again.
    values[experts] += np.random.default_rng(0).normal(size=values[experts].shape)
    kernel.assign(values)
    np.testing.assert_array_equal(data.logits(method, batch), before)


def test_zero_alphas_give_an_mmoe_of_the_shared_experts():
    method = m3oe()
    for name in ("alpha_domain", "alpha_task"):
        method.model.fusion.raw[name].assign([-200.0])
    batch = data.make_batch(method.schema, 11)
    _, gates, outputs, rows = parts(method, batch)
    mixed = np.einsum("ntk,nkh->nth", gates, outputs[:, :2])
    expected = method.model.towers(tf.constant(mixed, tf.float32), rows)
    np.testing.assert_allclose(data.logits(method, batch), expected, atol=1e-5)


def test_left_out_modules_have_no_experts_and_no_fusion_weights():
    method = m3oe(use_domain_experts=False, use_task_experts=False)
    assert method.model.counts == (2, 0, 0)
    assert method.variable_groups()["fusion"] == []
    method = m3oe(use_task_experts=False)
    assert [v.name.split("/")[-1] for v in method.variable_groups()["fusion"]] == [
        "fusion_alpha_domain:0",
        "fusion_beta_domain:0",
    ]
    step = method.train_step({MAIN: data.make_batch(method.schema, 8)})
    assert np.isfinite(step["loss"])


def test_rows_of_a_domain_leave_slots_gates_and_towers_of_the_others_alone():
    method = m3oe()
    model, batch = method.model, data.make_batch(method.schema, 16, domain=[1] * 16)
    star = model.representation.star
    own = [star.own_kernel, star.own_bias, *model.gates.trainable_variables]
    own += model.towers.trainable_variables
    shared = [star.kernel, star.bias, *model.representation.adapt.trainable_variables]
    with tf.GradientTape() as tape:
        loss, _ = method.loss({MAIN: batch})
    found = tape.gradient(loss, own + shared)
    assert len(own) == 2 + 2 + 6
    for variable, gradient in zip(own + shared, found, strict=True):
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert np.any(gradient[1:2]), variable.name
        if any(variable is v for v in own):
            assert not np.any(gradient[[0, 2]]), variable.name


def test_foreign_domain_experts_get_gradient_while_beta_is_below_one():
    method = m3oe()
    batch = data.make_batch(method.schema, 16, domain=[0] * 16)
    with tf.GradientTape() as tape:
        loss, _ = method.loss({MAIN: batch})
    gradient = tape.gradient(loss, method.model.experts.kernels[0]).numpy()
    assert all(np.any(g) for g in gradient)


def test_loss_is_a_sum_of_cell_means():
    method = m3oe()
    batch = data.make_batch(method.schema, 20)
    again = np.flatnonzero(batch.domain.numpy() == 1)
    doubled = data.take(batch, np.concatenate([np.arange(20), again]))
    loss, _ = data.gradients(method, batch)
    assert data.gradients(method, doubled)[0] == pytest.approx(loss, rel=1e-5)
    z, y = data.logits(method, batch).astype(np.float64), batch.labels.numpy()
    bce = np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - z * y
    domain = batch.domain.numpy()
    cells = [bce[domain == d, t].mean() for d in range(3) for t in range(2)]
    assert loss == pytest.approx(sum(cells), rel=1e-5)


def test_missing_domain_leaves_its_tower_untouched():
    method = m3oe()
    towers = method.model.towers
    batch = data.make_batch(method.schema, 12, domain=[0, 2] * 6)
    loss, gradients = data.gradients(method, batch)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradients.values())
    with tf.GradientTape() as tape:
        value, _ = method.loss({MAIN: batch})
    for gradient in tape.gradient(value, towers.trainable_variables):
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert not np.any(gradient[1])
        assert np.any(gradient[0])
        assert np.any(gradient[2])


def changed(method, run):
    before = [v.numpy() for v in method.model.trainable_variables]
    run()
    layer = method.model.fusion
    fusion = set() if layer is None else {v.ref() for v in layer.trainable_variables}
    moved = {"fusion": [], "rest": []}
    for old, variable in zip(before, method.model.trainable_variables, strict=True):
        key = "fusion" if variable.ref() in fusion else "rest"
        moved[key].append(not np.array_equal(old, variable.numpy()))
    return moved


def test_joint_step_moves_weights_and_fusion():
    method = m3oe(fusion_update="joint")
    batches = {MAIN: data.make_batch(method.schema, 64)}
    moved = changed(method, lambda: method.train_step(batches))
    assert all(moved["fusion"])
    assert all(moved["rest"])
    assert method.periodic_events() == []


def test_alternate_steps_move_one_side_each():
    method = m3oe(fusion_update="alternate", fusion_every=7)
    batches = {MAIN: data.make_batch(method.schema, 64)}
    moved = changed(method, lambda: method.train_step(batches))
    assert not any(moved["fusion"])
    assert all(moved["rest"])
    (event,) = method.periodic_events()
    assert event.every_steps == 7
    assert event.takes_batch
    moved = changed(method, lambda: event.run(batches))
    assert all(moved["fusion"])
    assert not any(moved["rest"])


def test_fixed_fusion_never_moves():
    method = m3oe(fusion_update="fixed", fusion_initial=0.0)
    batches = {MAIN: data.make_batch(method.schema, 32)}
    assert not any(changed(method, lambda: method.train_step(batches))["fusion"])
    assert set(method.scalars().values()) == {0.5}
    assert method.periodic_events() == []


def test_fusion_weights_start_at_0731_and_stay_inside_0_and_1():
    method = m3oe(
        optimizer=data.FAST | {"groups": {"fusion": {"learning_rate": 0.5}}},
    )
    assert list(method.scalars().values()) == pytest.approx([0.7310586] * 4)
    for seed in range(5):
        method.train_step({MAIN: data.make_batch(method.schema, 32, seed=seed)})
    values = list(method.scalars().values())
    assert all(0 < v < 1 for v in values)
    assert all(abs(v - 0.7310586) > 0.01 for v in values)


def test_fusion_per_domain_and_task():
    method = m3oe(fusion_granularity="per_domain_task")
    assert len(method.scalars()) == 2 * 3 + 2 * 2
    batch = data.make_batch(method.schema, 16, domain=[1] * 16)
    with tf.GradientTape() as tape:
        loss, _ = method.loss({MAIN: batch})
    raw = method.model.fusion.raw["alpha_domain"]
    gradient = tf.convert_to_tensor(tape.gradient(loss, raw)).numpy()
    np.testing.assert_array_equal(gradient != 0, [False, True, False])


@pytest.mark.parametrize("stop", [True, False])
def test_gate_input_is_detached(stop):
    method = m3oe(gate_stop_gradient=stop)
    model, batch = method.model, data.make_batch(method.schema, 12)
    rows = DomainRows(batch.domain, 3)
    with tf.GradientTape() as tape:
        h = model.representation(model.embeddings(batch.features), rows)
        side = tf.stop_gradient(h) if stop else h
        weights = model.gates(side, rows)
        value = tf.reduce_sum(weights * tf.random.stateless_normal([12, 2, 2], [1, 2]))
    found = tape.gradient(value, model.representation.trainable_variables)
    assert all((g is None) == stop for g in found)
    # In the whole model: experts that ignore h leave the gates as its only reader.
    model.experts.gammas[0].assign(tf.zeros([7, 8]))
    model.experts.betas[0].assign(tf.random.stateless_uniform([7, 8], [3, 4]))
    with tf.GradientTape() as tape:
        value = tf.add_n([tf.reduce_sum(v) for v in model(batch.features).values()])
    gradient = tape.gradient(value, model.representation.combine.kernel)
    assert (gradient is not None and bool(np.any(gradient))) != stop


def test_experts_and_towers_teach_h_though_gates_do_not():
    method = m3oe(gate_stop_gradient=True)
    model, batch = method.model, data.make_batch(method.schema, 12)
    gates = model.gates.call
    # Constant gates: whatever reaches h now comes through experts and towers.
    model.gates.call = lambda x, rows: tf.stop_gradient(gates(x, rows))
    with tf.GradientTape() as tape:
        loss, _ = method.loss({MAIN: batch})
    for gradient in tape.gradient(loss, model.representation.trainable_variables):
        assert np.any(tf.convert_to_tensor(gradient))


@pytest.mark.parametrize(("domains", "tasks"), [(1, 2), (3, 1), (1, 1)])
def test_single_domain_or_task_uses_its_expert_fully(domains, tasks):
    table = fusion_table(domains, tasks)
    assert np.isfinite(table).all()
    if domains == 1:
        np.testing.assert_allclose(table[..., 0], sigmoid(1.0), rtol=1e-6)
    if tasks == 1:
        np.testing.assert_allclose(table[..., -1], sigmoid(1.0), rtol=1e-6)


def test_mixed_batch_equals_batches_of_one_domain():
    method = m3oe()
    batch = data.make_batch(method.schema, 400)
    together = data.logits(method, batch)
    for d in range(3):
        index = np.flatnonzero(batch.domain.numpy() == d)
        alone = data.logits(method, data.take(batch, index))
        np.testing.assert_allclose(alone, together[index], rtol=1e-4, atol=1e-5)


def test_export_model_has_fusion_as_constants(tmp_path):
    method = m3oe()
    batch = data.make_batch(method.schema, 20)
    method.train_step({MAIN: batch})
    model = method.export_model()
    allowed = list(model.variables)
    assert len(allowed) == len(method.model.variables) - 4
    assert not [v for v in allowed if "fusion" in v.name]
    data.check_export(method, model, allowed, batch, tmp_path)


def test_export_model_keeps_the_weights_of_its_moment():
    method = m3oe()
    batch = data.make_batch(method.schema, 20)
    frozen = method.export_model()
    method.model.fusion.raw["alpha_domain"].assign([-3.0])
    assert not np.allclose(
        frozen(batch.features)["t0"], method.model(batch.features)["t0"]
    )


@pytest.mark.parametrize("strict", [False, True])
def test_folded_representation_equals_the_formula_in_float64(strict):
    tf.random.set_seed(0)
    layer = DomainRepresentation(3, 32, 6, strict=strict, adapter_units=(5,))
    rng = np.random.default_rng(0)
    x, domain = rng.normal(size=(96, 7)), rng.integers(0, 3, 96)
    rows = DomainRows(tf.constant(domain, tf.int32), 3)
    inputs = tf.constant(x, tf.float32)
    layer(inputs, rows)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    assert layer._folds(inputs)
    assert not layer._folds(inputs[:2])

    def normed(z, block):
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
        return np.maximum(z * block.gamma.numpy() + block.beta.numpy(), 0)

    def linear(z, block):
        return z @ block.kernel.numpy().astype("f8") + block.bias.numpy()

    star = layer.star
    kernels = star.own_kernel.numpy().astype("f8") * star.kernel.numpy()
    bias = star.own_bias.numpy() + star.bias.numpy()
    f_dr = np.stack([v @ kernels[d] + bias[d] for v, d in zip(x, domain, strict=True)])
    combined = linear(f_dr, layer.combine)
    combined = combined if strict else normed(combined, layer.combine)
    adapted = x
    for block in layer.adapt.blocks:
        adapted = normed(linear(adapted, block), block)
    expected = combined + adapted
    np.testing.assert_allclose(layer(inputs, rows), expected, rtol=1e-3, atol=1e-4)
