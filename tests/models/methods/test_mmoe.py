"""What the mmoe method promises beyond the contract of all methods."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip

from models.layers.domain_rows import DomainRows  # isort: skip
from tests.models.layers import twins  # isort: skip
from tests.models.methods import data  # isort: skip


def mmoe(schema=None, **settings):
    return data.make_method("mmoe", schema or data.make_schema(), **settings)


def test_logits_equal_the_formula_in_float64():
    method = mmoe()
    model, batch = method.model, data.make_batch(method.schema, 11)
    twins.randomise(model)
    x = twins.array(model.embeddings(batch.features))
    layers, gates, towers = model.experts, model.gates, model.towers
    stack = []
    for k in range(3):
        h = x
        for i in range(2):
            names = ("kernels", "biases", "gammas", "betas")
            h = twins.block(h, *(getattr(layers, n)[i][k] for n in names))
        stack.append(h)
    got = data.logits(method, batch)
    for row, d in enumerate(batch.domain.numpy()):
        for t in range(2):
            bias = twins.array(gates.bias)[d, 3 * t : 3 * t + 3]
            gate = twins.softmax(x[row] @ twins.array(gates.kernel)[d, t] + bias)
            mixed = sum(gate[k] * stack[k][row] for k in range(3))
            data.check_tower(towers, mixed, d, t, got[row, t])


def test_gates_of_every_head_sum_to_one():
    method = mmoe()
    batch = data.make_batch(method.schema, 20)
    x = method.model.embeddings(batch.features)
    gates = method.model.gates(x, DomainRows(batch.domain, 3)).numpy()
    assert gates.shape == (20, 2, 3)
    assert (gates > 0).all()
    np.testing.assert_allclose(gates.sum(-1), 1.0, rtol=1e-6)


def test_one_expert_is_a_shared_bottom():
    schema = data.make_schema()
    method = mmoe(schema, num_experts=1)
    other = data.make_method("shared_bottom", schema, seed=3)
    for block, *values in zip(
        other.model.bottom.blocks,
        method.model.experts.kernels,
        method.model.experts.biases,
        strict=True,
    ):
        block.kernel.assign(values[0][0])
        block.bias.assign(values[1][0])
    other.model.towers.set_weights(method.model.towers.get_weights())
    other.model.embeddings.set_weights(method.model.embeddings.get_weights())
    batch = data.make_batch(schema, 20)
    np.testing.assert_allclose(
        data.logits(method, batch), data.logits(other, batch), rtol=1e-4, atol=1e-5
    )


def test_equal_experts_make_the_gates_irrelevant():
    method = mmoe()
    for variable in method.model.experts.trainable_variables:
        variable.assign(tf.repeat(variable[:1], 3, axis=0))
    batch = data.make_batch(method.schema, 20)
    before = data.logits(method, batch)
    twins.randomise(method.model.gates)
    np.testing.assert_allclose(data.logits(method, batch), before, atol=1e-5)


def test_permuting_experts_with_their_gate_columns_changes_nothing():
    method = mmoe()
    twins.randomise(method.model.gates)
    batch = data.make_batch(method.schema, 20)
    before = data.logits(method, batch)
    order = [2, 0, 1]
    for variable in method.model.experts.trainable_variables:
        variable.assign(tf.gather(variable, order))
    assert not np.allclose(data.logits(method, batch), before, atol=1e-4)
    gates = method.model.gates
    gates.kernel.assign(tf.gather(gates.kernel, order, axis=-1))
    bias = tf.reshape(gates.bias, [3, 2, 3])
    gates.bias.assign(tf.reshape(tf.gather(bias, order, axis=-1), [3, 6]))
    np.testing.assert_allclose(data.logits(method, batch), before, atol=1e-5)


def test_every_expert_learns_from_every_domain():
    method = mmoe()
    batch = data.make_batch(method.schema, 16, domain=[2] * 16)
    with tf.GradientTape() as tape:
        loss, _ = method.loss({"main": batch})
    gradient = tape.gradient(loss, method.model.experts.kernels[0]).numpy()
    assert all(np.any(g) for g in gradient)
