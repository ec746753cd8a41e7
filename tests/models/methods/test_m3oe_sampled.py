"""M3oE with a sample of the other domains' experts in training steps."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import itertools  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models.layers.domain_rows import DomainRows  # isort: skip
from models.layers.sample import SampledDomains  # isort: skip
from models.method import MAIN  # isort: skip
from models.training import strategy  # isort: skip
from tests.models.methods import data  # isort: skip

D, K = 4, 2


def m3oe(**settings):
    schema = data.make_schema(num_domains=D)
    return data.make_method("m3oe", schema, **{"foreign_experts": K, **settings})


def fused(method, batch, sample):
    """h_{d,t} in input order: of all experts, or with a sample of domains."""
    model, domain = method.model, batch.domain
    rows = DomainRows(domain, D)
    domain = rows.enter(domain)
    x = model.embeddings({k: rows.enter(v) for k, v in batch.features.items()})
    h = model.representation(x, rows)
    gates = model.gates(h, rows)
    if sample is None:
        out = model.fuse(model.mixture(gates, domain), model.experts(h))
    else:
        table = model.fusion(domain)
        out = model.fuse_sampled(h, gates, domain, rows, tf.constant(sample), table)
    return rows.leave(out).numpy()


@pytest.mark.parametrize("tasks", [True, False])
def test_mean_over_all_samples_is_the_fusion_of_all_experts(tasks):
    method = m3oe(fusion_granularity="per_domain_task", use_task_experts=tasks)
    for number, raw in enumerate(method.model.fusion.raw.values()):
        raw.assign(np.linspace(-1, 1, raw.shape[0]) + 0.1 * number)
    batch = data.make_batch(method.schema, 12)
    samples = list(itertools.combinations(range(D), K))
    mean = np.mean([fused(method, batch, sample) for sample in samples], axis=0)
    expected = fused(method, batch, None)
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5)
    one = fused(method, batch, samples[0])
    assert np.abs(one - expected).max() > 1e-2 * np.abs(expected).max()


def test_evaluation_computes_all_experts():
    sampled, whole = m3oe(), m3oe(foreign_experts=0)
    for theirs, ours in zip(whole.model.weights, sampled.model.weights, strict=True):
        ours.assign(theirs)
    batch = data.make_batch(sampled.schema, 12)
    ours, theirs = sampled.model(batch.features), whole.model(batch.features)
    for task in ours:
        np.testing.assert_array_equal(ours[task], theirs[task])


def test_step_teaches_own_and_drawn_experts_alone():
    method = m3oe()
    method.model.sample.call = lambda x: tf.constant([3, 1])
    batch = data.make_batch(method.schema, 12, domain=[0, 1] * 6)
    with tf.GradientTape() as tape:
        loss, _ = method.loss({MAIN: batch})
    kernel = method.model.experts.kernels[0]
    size = np.abs(tape.gradient(loss, kernel).numpy()).sum(axis=(1, 2))
    shared = method.config.num_shared_experts
    assert (size[shared : shared + D] > 0).tolist() == [True, True, False, True]


def test_every_domain_is_drawn_about_as_often():
    layer = SampledDomains(D, K)
    layer.build([])
    draws = np.stack([layer(tf.zeros([1])).numpy() for _ in range(600)])
    assert all(len(set(draw)) == K for draw in draws)
    counts = np.bincount(draws.ravel(), minlength=D)
    # 300 expected, standard deviation 12.
    assert counts.min() > 240
    assert counts.max() < 360


def test_generator_of_the_sample_goes_into_checkpoints():
    strategy.seed_everything(0)
    assert len(strategy.generators(m3oe().model)) == 1


def test_few_domains_are_not_sampled():
    assert m3oe(foreign_experts=D).model.sample is None


def test_exported_model_draws_nothing():
    assert m3oe().export_model().sample is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"foreign_experts": 1}, "at least 2"),
        ({"fusion_ablation": "concat"}, "Remove it"),
        ({"use_domain_experts": False}, "Remove it"),
    ],
)
def test_sample_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        m3oe(**settings)
