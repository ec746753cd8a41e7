"""The towers of CCTL: who teaches whom, what is synced, what is served."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models import losses  # isort: skip
from models.cctl.model import tower_logits  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.cctl import SOURCE, CCTLConfig  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.methods.cctl_data import (  # isort: skip
    assert_equal,
    batches,
    bce,
    cctl,
    differs,
    force,
    gradients_of,
    run,
    twin_state,
    values,
)

SURE = 1e4  # sigmoid(1e4) is 1 and sigmoid(-1e4) is 0 in float32


# ------------------------------------------------------------------ 1, 2: towers


@pytest.mark.parametrize("embedding", ["shared", "separate"])
def test_sync_makes_pure_the_twin_of_mixed_to_the_bit(embedding):
    method = cctl(scn_embedding=embedding)
    assert_equal(*twin_state(method))
    run(method, 3)
    assert differs(*twin_state(method))
    method.sync()
    assert_equal(*twin_state(method))
    if embedding == "shared":
        assert len(twin_state(method)[0]) == 6 * 4  # kernel or bias, m, v, counter
        assert method.model.pure_target is method.model.target
    else:
        assert len(twin_state(method)[0]) == 7 * 4


@pytest.mark.parametrize("why", ["weight", "padding"])
def test_towers_stay_twins_and_reward_is_zero_without_source_weight(why, monkeypatch):
    method = cctl(window=1000)
    if why == "weight":
        force(monkeypatch, method, -SURE)
    for seed in range(3):
        given = batches(method, seed=seed)
        if why == "padding":
            given[SOURCE] = tf.nest.map_structure(tf.zeros_like, given[SOURCE])
        assert float(method.train_step(given)["reward"]) == 0.0
        assert_equal(*twin_state(method))


# ------------------------------------------------- 3, 4, 5: who teaches whom


def test_source_row_of_no_weight_changes_no_gradient(monkeypatch):
    method = cctl()
    given = batches(method, 24)
    row = int(np.flatnonzero(given[SOURCE].valid.numpy())[0])
    logits = np.zeros(24)
    logits[row] = -SURE
    force(monkeypatch, method, logits)
    variables = method.model.trainable_variables
    found = []
    for item in (3, 40):
        source = given[SOURCE]
        items = source.features["item"].numpy()
        items[row] = item
        labels = source.labels.numpy()
        labels[row] = item % 2
        source = source._replace(
            features=source.features | {"item": tf.constant(items)},
            labels=tf.constant(labels),
        )
        grads = gradients_of(method, "source", given | {SOURCE: source}, variables)
        found.append([g for g in grads if g is not None])
    assert_equal(*found)
    assert any(np.any(g) for g in found[0])


def test_gradient_of_source_rows_is_linear_in_their_weights(monkeypatch):
    method = cctl()
    given, variables = batches(method, 16), method.model.trainable_variables
    probs = np.random.default_rng(0).uniform(0.1, 0.9, 16)

    def source_gradient(p):
        logits = np.where(p == 0, -SURE, np.where(p == 1, SURE, 0.0))
        inside = (p > 0) & (p < 1)
        logits[inside] = np.log(p[inside] / (1 - p[inside]))
        force(monkeypatch, method, logits)
        grads = gradients_of(method, "source", given, variables)
        return [g for g in grads if g is not None]

    expected = None
    for row in range(16):
        one = source_gradient(np.eye(16)[row])
        scaled = [probs[row] * g for g in one]
        expected = (
            scaled
            if expected is None
            else [a + b for a, b in zip(expected, scaled, strict=True)]
        )
    for got, want in zip(source_gradient(probs), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_loss_never_reaches_the_selector_and_score_nothing_else():
    method = cctl(data.make_schema(), source_features=("user", "item", "price"))
    given = batches(method)
    own = method.model.selector.trainable_variables
    rest = [v for v in method.model.trainable_variables if not any(v is w for w in own)]
    assert method.model.align is not None
    for part in ("pure", "target", "source", "ren"):
        assert gradients_of(method, part, given, own) == [None] * len(own)
    assert gradients_of(method, "score", given, rest) == [None] * len(rest)
    assert all(np.any(g) for g in gradients_of(method, "score", given, own))


def test_pure_loss_never_reaches_source_tables_and_alignment():
    method = cctl(source_features=("user", "item", "price"))
    model, given = method.model, batches(method)
    away = [*model.source.variables, *model.align.variables, *model.mixed.variables]
    assert gradients_of(method, "pure", given, away) == [None] * len(away)
    own = [*model.pure.trainable_variables, *model.target.trainable_variables]
    assert all(np.any(g) for g in gradients_of(method, "pure", given, own))
    taught = [*model.source.variables, *model.align.variables]
    assert all(np.any(g) for g in gradients_of(method, "source", given, taught))


def test_pure_tower_does_not_depend_on_the_source_batch():
    found = []
    for seed in (0, 50):
        method = cctl(scn_embedding="separate", window=1000)
        for step in range(2):
            given = batches(method, seed=step)
            given[SOURCE] = batches(method, seed=seed + step)[SOURCE]
            method.train_step(given)
        found.append([values(side) for side in method.model.twins()])
    assert_equal(found[0][1], found[1][1])
    assert differs(found[0][0], found[1][0])


def test_shared_target_tables_learn_as_from_one_target_loss():
    method = cctl()  # the towers are twins
    given, tables = batches(method), method.model.target.variables
    parts = [gradients_of(method, part, given, tables) for part in ("pure", "target")]
    main = given[MAIN]
    with tf.GradientTape() as tape:
        logits = tower_logits(method.model.pure, method.model.target(main.features))
        rows = losses.bce(logits, main.labels) * main.label_mask
        value = tf.reduce_sum(rows) / tf.reduce_sum(main.weight)
    alone = tf.convert_to_tensor(tape.gradient(value, tables)[0]).numpy()
    assert np.any(alone)
    np.testing.assert_allclose(parts[0][0] + parts[1][0], alone, rtol=1e-4, atol=1e-7)


def test_source_loss_is_a_weighted_mean_times_the_ratio_of_batch_sizes():
    method = cctl()
    given = batches(method, 40)
    source, short = given[SOURCE], data.take(given[MAIN], range(10))
    parts = method._parts({MAIN: short, SOURCE: source})
    index = method.model.source_index(source.features)
    x = method.model.source_rows(source.features, index)
    probs = 1 / (1 + np.exp(-method.model.selector(x, index).numpy().astype("f8")))
    rows = source.valid.numpy()
    weighted = probs[:, None] * bce(tower_logits(method.model.mixed, x), source.labels)
    expected = 40 / 10 * weighted[rows].mean(axis=0).sum()
    assert float(parts.source) == pytest.approx(expected, rel=1e-5)
    assert float(parts.mean_prob) == pytest.approx(probs[rows].mean(), rel=1e-5)


# ------------------------------------------------- 12: fields of source and target


def test_equal_fields_need_no_alignment():
    method = cctl()
    assert method.model.align is None
    assert method.variable_groups()["dense"] == []


def test_alignment_gives_source_rows_the_target_token_widths():
    method = cctl(
        target_features=("user", "item", "tags"), source_features=("user", "price")
    )
    model, given = method.model, batches(method)
    assert model.source.width == 5
    assert model.target.widths == {"user": 4, "item": 8, "context": 0}
    index = model.source_index(given[SOURCE].features)
    assert model.source_rows(given[SOURCE].features, index).shape == [32, 12]
    assert np.isfinite(method.train_step(given)["loss"])


def test_every_source_has_tables_heads_and_rows_of_its_own():
    method = cctl(source_domains=("d2", "d1"))
    assert method.streams()[SOURCE].domains == ("d1", "d2")
    assert method.streams()[MAIN].domains == ("d0",)
    one, two = cctl(source_domains=("d1",)), method
    assert (
        one.model.source.variables[0].shape[0] * 2
        == (two.model.source.variables[0].shape[0])
    )
    before = two.model.source.variables[0].numpy()
    given = batches(two)
    source = given[SOURCE]
    given[SOURCE] = data.of_domains(two.schema, source, ["d2"])
    two.train_step(given)
    moved = np.any(two.model.source.variables[0].numpy() != before, axis=1)
    sizes = {"user": 90, "item": 50, "tags": 9}
    start = 0
    for size in sizes.values():
        assert not moved[start : start + size].any()
        assert moved[start + size : start + 2 * size].any()
        start += 2 * size


def test_without_sources_it_is_two_equal_target_models():
    method = data.make_method("cctl", data.make_schema(num_domains=1), window=2)
    assert list(method.streams()) == [MAIN]
    assert run(method, 3) == [0.0] * 3
    assert_equal(*twin_state(method))


# ------------------------------------------------------------------- 14: export


@pytest.mark.parametrize("serve", ["pure", "synced"])
def test_export_holds_one_tower_and_its_tables_only(serve, tmp_path):
    method = cctl(scn_embedding="separate", serve=serve, ren_weight=0.1)
    run(method, 2)
    model, allowed = method.model, method.serving_variables()
    side = model.mixed if serve == "synced" else model.pure
    tables = model.target if serve == "synced" else model.pure_target
    assert {v.ref() for v in allowed} == {
        v.ref() for v in (*side.variables, *tables.variables)
    }
    for variable in allowed:
        assert not any(
            word in variable.name
            for word in ("source", "selector", "align", "mixed", "constant")
        )
    given = batches(method, seed=8)[MAIN]
    pure, mixed = (
        method.tower_model(name)(given.features)["t0"].numpy()
        for name in ("pure", "mixed")
    )
    assert not np.array_equal(pure, mixed)
    served = method.serving_model()(given.features)["t0"].numpy()
    np.testing.assert_array_equal(served, mixed if serve == "synced" else pure)
    method.sync()  # what is served is now what both towers say
    for name in ("pure", "mixed"):
        scores = method.tower_model(name)(given.features)["t0"].numpy()
        np.testing.assert_array_equal(scores, mixed)
    batch = data.make_batch(method.schema, 20)
    data.check_export(method, method.serving_model(), allowed, batch, tmp_path)


@pytest.mark.parametrize("serve", ["pure", "synced"])
def test_target_alone_is_served_by_its_own_path(serve):
    method = cctl(serve=serve)
    run(method, 2)
    assert method.serving_domains() == ("d0",)
    batch = data.served(method, data.make_batch(method.schema, 30))
    np.testing.assert_array_equal(
        method.model(batch.features)["t1"], method.serving_model()(batch.features)["t1"]
    )


# ------------------------------------------------------------------------ others


def test_impossible_settings_are_refused_in_words():
    for bad in ({"alpha": 1.5}, {"window": 0}, {"gamma": -0.1}, {"norm": "batch"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            CCTLConfig.parse(bad)
    with pytest.raises(ConfigError, match="mixed"):
        CCTLConfig.parse({"optimizer": {"groups": {"pure": {"learning_rate": 1.0}}}})
    with pytest.raises(LookupError, match=r"CCTL.audit_feature must be one of"):
        cctl(audit_feature="price")
    with pytest.raises(LookupError, match=r"CCTL.target_domain must be one of d0"):
        cctl(target_domain="")
