"""What the ple method promises beyond the contract of all methods."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models.layers.domain_rows import DomainRows  # isort: skip
from models.methods.ple import PLEConfig  # isort: skip
from tests.models.layers import twins  # isort: skip
from tests.models.methods import data  # isort: skip

D, T = 3, 2


def ple(schema=None, **settings):
    return data.make_method("ple", schema or data.make_schema(D, T), **settings)


def stack_out(layer, x, at):
    """One network of a stack of experts on x, in float64."""
    for i in range(len(layer.hidden_units)):
        names = ("kernels", "biases", "gammas", "betas")
        x = twins.block(x, *(twins.array(getattr(layer, n)[i])[at] for n in names))
    return x


def gate(layer, side, d, g):
    bias = twins.array(layer.bias)[d].reshape(layer.num_gates, -1)[g]
    return twins.softmax(side @ twins.array(layer.kernel)[d, g] + bias)


def twin_level(level, specific, shared, own_only):
    """All heads and the shared path of a lower level for one row."""
    m_s, m_0, heads = level.num_specific, level.num_shared, D * T
    out = [
        stack_out(level.experts, specific[h], h * m_s + i)
        for h in range(heads)
        for i in range(m_s)
    ] + [stack_out(level.experts, shared, heads * m_s + i) for i in range(m_0)]
    common = out[heads * m_s :]
    mixed = []
    for h in range(heads):
        at = divmod(h, T) if own_only else (0, h)
        weights = gate(level.head_gates, specific[h], *at)
        own = out[h * m_s : (h + 1) * m_s] + common
        assert len(weights) == len(own)
        mixed.append(sum(w * o for w, o in zip(weights, own, strict=True)))
    weights = gate(level.shared_gate, shared, 0, 0)
    assert len(weights) == len(out)
    return mixed, sum(w * o for w, o in zip(weights, out, strict=True))


def check_against_twin(method, rows=7):
    model, batch = method.model, data.make_batch(method.schema, rows)
    twins.randomise(model)
    x = twins.array(model.embeddings(batch.features))
    got = data.logits(method, batch)
    m_s, m_0 = model.num_specific, model.num_shared
    for row, d in enumerate(batch.domain.numpy()):
        specific, shared = [x[row]] * (D * T), x[row]
        for index, level in enumerate(model.lower):
            last = index == len(model.lower) - 1
            specific, shared = twin_level(level, specific, shared, last)
        for t in range(T):
            side = specific[d * T + t]
            out = [
                stack_out(model.own_experts, side, (d, t * m_s + i)) for i in range(m_s)
            ] + [stack_out(model.shared_experts, shared, i) for i in range(m_0)]
            weights = gate(model.gates, side, d, t)
            mixed = sum(w * o for w, o in zip(weights, out, strict=True))
            data.check_tower(model.towers, mixed, d, t, got[row, t])


@pytest.mark.parametrize("levels", [((8,),), ((16,), (8,)), ((12,), (10, 9), (8,))])
def test_logits_equal_all_heads_then_selection_in_float64(levels):
    """Also says that a row's own heads are all that the last level has to compute."""
    check_against_twin(ple(levels=levels, num_specific=2))


def own_experts(method):
    """Kernels of the last level's specific experts [D, T m_s, in, out]."""
    return method.model.own_experts.kernels[0]


def test_gate_of_a_head_reads_its_own_and_the_shared_experts_only():
    method = ple(levels=((8,),), num_specific=2, num_shared=1)
    batch = data.make_batch(method.schema, 12, domain=[1] * 12)
    kernel = own_experts(method)
    assert method.model.gates.num_experts == 2 + 1
    before = data.logits(method, batch)
    # The experts of all other domains, and of the other task: nothing moves.
    foreign = kernel.numpy()
    # Random: layer normalisation takes a constant out again.
    noise = np.random.default_rng(0).normal(size=foreign.shape)
    foreign[[0, 2]] += noise[[0, 2]]
    kernel.assign(foreign)
    np.testing.assert_array_equal(data.logits(method, batch), before)
    foreign[1, 2:] += noise[1, 2:]  # those of task 1
    kernel.assign(foreign)
    after = data.logits(method, batch)
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert not np.allclose(after[:, 1], before[:, 1])


def test_lower_gates_put_no_weight_on_experts_of_other_heads():
    level = ple(levels=((8,), (8,)), num_specific=2, num_shared=1).model.lower[0]
    domain = tf.constant([2, 0, 1])
    x = tf.random.stateless_normal([3, 21], [1, 2])
    weights = level._head_weights(x, domain, DomainRows(domain, D)).numpy()
    assert weights.shape == (3, T, D * T * 2 + 1)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    for row, d in enumerate(domain.numpy()):
        for t in range(T):
            first = 2 * (d * T + t)
            own = [first, first + 1, D * T * 2]
            assert (weights[row, t, own] > 0).all()
            assert not np.any(np.delete(weights[row, t], own))


def test_one_level_without_specific_experts_is_an_mmoe():
    method = ple(levels=((16, 8),), num_specific=0, num_shared=3)
    mmoe = data.make_method("mmoe", method.schema, norm="layer", seed=4)
    for ours, theirs in (
        (method.model.shared_experts, mmoe.model.experts),
        (method.model.gates, mmoe.model.gates),
        (method.model.towers, mmoe.model.towers),
        (method.model.embeddings, mmoe.model.embeddings),
    ):
        twins.randomise(ours)
        theirs.set_weights(ours.get_weights())
    batch = data.make_batch(method.schema, 20)
    np.testing.assert_allclose(
        data.logits(method, batch), data.logits(mmoe, batch), rtol=1e-4, atol=1e-4
    )


def test_one_level_without_shared_experts_is_independent_networks():
    method = ple(levels=((8,),), num_specific=2, num_shared=0)
    batch = data.make_batch(method.schema, 16, domain=[1] * 16)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(method.stacked_logits(batch, training=True)[:, 0])
    dense = [*method.model.own_experts.trainable_variables]
    for gradient in tape.gradient(value, dense):
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert np.any(gradient[1, :2])  # experts of (domain 1, task 0)
        assert not np.any(gradient[1, 2:])
        assert not np.any(gradient[[0, 2]])


def test_lower_levels_teach_foreign_experts_through_the_shared_path():
    method = ple(levels=((16,), (8,)), num_specific=1, num_shared=2)
    batch = data.make_batch(method.schema, 16, domain=[1] * 16)
    with tf.GradientTape() as tape:
        loss, _ = method.loss({"main": batch})
    found = tape.gradient(
        loss, [method.model.lower[0].experts.kernels[0], own_experts(method)]
    )
    assert all(np.any(g) for g in found[0].numpy())
    assert not np.any(tf.convert_to_tensor(found[1]).numpy()[[0, 2]])


def test_head_without_any_expert_is_refused():
    with pytest.raises(ConfigError, match="num_specific \\+ num_shared must be at"):
        PLEConfig.parse({"num_specific": 0, "num_shared": 0})
