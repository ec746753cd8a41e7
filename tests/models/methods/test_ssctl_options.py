"""SSCTL's options beside its fourteen properties, and what it refuses."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models.method import MAIN  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.methods.ssctl_data import (  # isort: skip
    context_schema,
    part_gradients,
    ssctl,
)


def test_lambda_rises_between_its_two_steps():
    method = ssctl(pseudo_ramp_steps=(1000, 2000), pseudo_weight=0.7)
    found = []
    for step in (0, 1000, 1500, 2000, 9000):
        method.optimizers["dense"].iterations.assign(step)
        found.append(float(method.pseudo_strength()))
    assert found == pytest.approx([0, 0, 0.35, 0.7, 0.7])
    assert float(ssctl().pseudo_strength()) == pytest.approx(0.7)


def test_pseudo_scope_specific_teaches_specific_experts_alone():
    method = ssctl(pseudo_scope="specific", sddn_scope="all")
    specific = method.model.network.specific.trainable_variables
    refs = {v.ref() for v in specific}
    rest = [v for v in method.model.trainable_variables if v.ref() not in refs]
    batch = data.make_batch(method.schema, 24)
    found = part_gradients(method, batch, "pseudo_loss", specific + rest)
    assert all(np.any(g) for g in found[: len(specific)])
    assert found[len(specific) :] == [None] * len(rest)


def test_pretrained_classifier_learns_first_and_alone_then_stays_as_it_is():
    method = ssctl(
        optimizer=data.FAST,  # with momentum, which must not move it on
        classifier_mode="pretrained",
        pretrain_steps=2,
        norm="none",
        expert_units=(8,),
        gate_units=(),
        tower_units=(),
        classifier_units=(),
    )
    step = tf.function(method.train_step, autograph=False)
    groups = method.variable_groups()
    names = ("classifier", "classifier_embedding")
    of_classifier = [v for name in names for v in groups[name]]
    rest = groups["embedding"] + groups["dense"]
    assert groups["classifier_embedding"]
    for number in range(4):
        before = [[v.numpy() for v in part] for part in (of_classifier, rest)]
        step({MAIN: data.make_batch(method.schema, 32, seed=number)})
        moved = [
            [not np.array_equal(a, b.numpy()) for a, b in zip(old, part, strict=True)]
            for old, part in zip(before, (of_classifier, rest), strict=True)
        ]
        learns, stays = moved if number < 2 else moved[::-1]
        assert all(learns)
        assert not any(stays)
    assert step.experimental_get_tracing_count() == 1


def test_domain_embeddings_do_without_an_indicator_in_the_schema():
    method = ssctl(data.without_indicator(), domain_width=7)
    assert method.model.domain_table.embeddings.shape == [3, 7]
    assert np.isfinite(
        method.train_step({MAIN: data.make_batch(method.schema, 24)})["loss"]
    )


@pytest.mark.parametrize("domains", [1, 2])
def test_too_few_domains_are_refused_unless_both_parts_are_off(domains):
    with pytest.raises(ValueError, match="at least two other domains"):
        ssctl(context_schema(domains), use_isct=False, use_sddn=True)
    method = ssctl(context_schema(domains), use_isct=False, use_sddn=False)
    assert method.model.classifier is None


def test_missing_or_unknown_dominant_domain_is_refused():
    with pytest.raises(ValueError, match="must name the domain"):
        ssctl(dominant_domains=())
    with pytest.raises(LookupError, match=r"dominant_domains must be one of d0, d1"):
        ssctl(dominant_domains=("d9",))


def test_ramp_must_be_in_order():
    with pytest.raises(ConfigError, match="0 <= first <= last"):
        ssctl(pseudo_ramp_steps=(20, 10))
