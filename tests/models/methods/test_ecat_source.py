"""ECAT's source, what serves, switches and refusals (3, 8, 9, 11, 14 of our notes)."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import dataclasses  # isort: skip
import gc  # isort: skip
import json  # isort: skip
import logging  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip
import tf_keras as keras  # isort: skip

from features.config import ConfigError  # isort: skip
from features.schema import ModelSchema  # isort: skip
from models.layers.frozen_source import FrozenSource, SourceVersions  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.ecat import ECAT, ECATConfig  # isort: skip
from models.training.evaluate import Scorer  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.methods.ecat_data import (  # isort: skip
    GST,
    ecat,
    entropy,
    feed,
    forward,
    set_discriminator,
    shut_gates,
    sigmoid,
    source_model,
)


# --------------------------------------------------------------------- 3: the source


def test_source_never_changes_and_is_in_no_group():
    schema = data.make_schema()
    source = source_model(schema, norm="batch", dropout=0.3)
    method = ecat(schema, source)
    before = [v.numpy() for v in source.variables]
    grouped = {v.ref() for g in method.variable_groups().values() for v in g}
    assert grouped.isdisjoint(v.ref() for v in source.variables)
    assert {v.ref() for v in method.model.variables}.isdisjoint(
        v.ref() for v in source.variables
    )
    step = tf.function(method.train_step, autograph=False)
    for seed in range(4):
        assert np.isfinite(step(feed(schema, seed=seed))["total_loss"])
    assert step.experimental_get_tracing_count() == 1
    for a, b in zip(before, source.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_domains_of_the_source_may_lie_in_another_order():
    schema = data.make_schema()
    turned = ModelSchema(schema.features, ("d2", "d0", "d1"), schema.tasks)
    model = source_model(schema)
    batch = data.make_batch(schema, 9)
    expected = FrozenSource(model, schema).represent(batch.features)
    model.schema = turned
    moved = tf.gather(tf.constant([1, 2, 0]), batch.domain)  # place in `turned`
    got = FrozenSource(model, schema).represent(batch.features)
    again = model.represent(batch.features | {"domain": moved})
    np.testing.assert_array_equal(got.fields, again.fields)
    assert np.any(got.fields != expected.fields)


def test_distillation_pulls_the_adaptation_towards_the_source():
    method = ecat(alpha=1.0)
    batches = feed(method.schema, rows=32)
    step = tf.function(method.train_step, autograph=False)
    first = float(step(batches)["cosine_sequence"])
    for _ in range(60):
        last = float(step(batches)["cosine_sequence"])
    assert last > first + 0.4


def test_warm_start_copies_the_source():
    schema = data.make_schema()
    source = source_model(schema)
    method = ecat(schema, source, warm_start_from_source=True)
    shut_gates(method)
    batch = data.make_batch(schema, 9)
    np.testing.assert_array_equal(
        data.logits(method, batch)[:, 0], source(batch.features)["t0"]
    )
    wider = source_model(schema, hidden_units=(20, 8))
    with pytest.raises(ValueError, match="warm_start_from_source: .*must have the sha"):
        ecat(schema, wider, warm_start_from_source=True)
    deeper = source_model(schema, hidden_units=(16, 8, 8))
    with pytest.raises(ValueError, match="warm_start_from_source needs .*same layers"):
        ecat(schema, deeper, warm_start_from_source=True)


def test_warm_start_from_a_source_of_before_the_vocabulary_grew():
    schema = data.make_schema()
    source = source_model(schema)
    more = dataclasses.replace(
        schema,
        features=tuple(
            dataclasses.replace(f, num_ids=f.num_ids + 7) if f.table == "item" else f
            for f in schema.features
        ),
    )
    method = ecat(more, source, warm_start_from_source=True)
    shut_gates(method)
    batch = data.make_batch(schema, 9)  # old ids only
    np.testing.assert_array_equal(
        data.logits(method, batch)[:, 0], source(batch.features)["t0"]
    )
    variable, first, last = method.model.served.target.embeddings.table_rows()["item"]
    assert last - first == 57
    fresh = variable.numpy()[last - 7 : last]
    assert np.all(np.any(fresh != 0, axis=1))


def test_a_changed_source_is_noted_in_the_checkpoint(tmp_path, caplog):
    schema = data.make_schema()
    source = source_model(schema)
    method = ecat(schema, source)
    first = method._source.version
    path = tf.train.Checkpoint(**method.extra_state()).write(str(tmp_path / "c"))
    same = ecat(schema, source)
    with caplog.at_level(logging.WARNING):
        tf.train.Checkpoint(**same.extra_state()).read(path).assert_consumed()
    assert same.extra_state()["source_versions"].versions == [first]
    assert not caplog.records
    source.network.blocks[-1].bias.assign_add([1.0, 0.0])
    newer = ecat(schema, source)
    with caplog.at_level(logging.WARNING):
        tf.train.Checkpoint(**newer.extra_state()).read(path).assert_consumed()
    second = newer._source.version
    assert second != first
    assert newer.extra_state()["source_versions"].versions == [first, second]
    assert first in caplog.text
    without = SourceVersions(None)  # a run opened where its source is not
    without.deserialize(newer.extra_state()["source_versions"].serialize().encode())
    assert without.versions == [first, second]


@pytest.mark.parametrize(
    ("present", "expected", "told"),
    [
        ("c", ["a", "b", "c"], ("b until now", "c from here on")),
        ("b", ["a", "b"], ()),
        (None, ["a", "b"], ()),
    ],
)
def test_a_run_that_goes_on_takes_over_the_versions(present, expected, told):
    earlier = SourceVersions("x")  # in its source's folder by now; never learnt from
    earlier.deserialize(b'["a", "b"]')
    versions = SourceVersions(present)
    text = versions.go_on_from(earlier)
    assert json.loads(versions.serialize()) == expected
    assert all(part in text for part in told)
    assert bool(text) == bool(told)


# ------------------------------------------------------------------ 8, 9: what serves


def test_export_holds_neither_source_nor_discriminator(tmp_path):
    method = ecat(taps=("fields", "sequence"))
    allowed = method.serving_variables()
    hidden = [*method._source.model.variables]
    hidden += method.model.discriminator.variables
    assert {v.ref() for v in allowed}.isdisjoint(v.ref() for v in hidden)
    assert len(allowed) == len(method.model.variables) - 6
    batch = data.make_batch(method.schema, 20)
    expected = data.logits(method, batch)
    method._source = None
    del hidden
    gc.collect()
    np.testing.assert_array_equal(data.logits(method, batch), expected)
    data.check_export(method, method.serving_model(), allowed, batch, tmp_path)


def test_gate_that_reads_the_source_scores_offline_and_is_not_exported():
    method = ecat(gate_uses_source=True)
    batches = feed(method.schema)
    method.train_step(batches)
    out = Scorer(method)._forward(batches[MAIN])
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match="gate_uses_source must be false"):
        method.serving_variables()


def test_gate_that_reads_the_source_follows_it():
    schema = data.make_schema()
    source = source_model(schema)
    batch = data.make_batch(schema, 9)
    for uses in (False, True):
        method = ecat(schema, source, gate_uses_source=uses)
        before = data.logits(method, batch)
        keep = source.embeddings.tables[0].numpy()
        source.embeddings.tables[0].assign(keep[::-1])
        assert np.array_equal(data.logits(method, batch), before) == (not uses)
        source.embeddings.tables[0].assign(keep)


def test_target_alone_is_served_from_two_streams():
    method = ecat()
    assert method.serving_domains() == ("d0",)
    streams = method.streams()
    assert streams[MAIN].domains == ("d0",)
    assert streams[GST].domains == ("d1", "d2")
    method = ecat(gst_path="streams/gst", gst_share=3.0, source_domains=("d2",))
    gst = method.streams()[GST]
    assert (gst.path, gst.batch_share, gst.domains) == ("streams/gst", 3.0, ("d2",))
    assert not gst.per_epoch
    assert ecat(gst_share="auto", use_distillation=False).streams()[GST].per_epoch
    assert list(ecat(use_source_rows=False).streams()) == [MAIN]


# -------------------------------------------------------------------- 14, and switches


@pytest.mark.parametrize("architecture", ["eta", "din"])
def test_rows_without_history_give_finite_loss_and_gradients(architecture):
    schema = data.make_schema()
    source = None
    if architecture == "din":
        source = data.make_method("din", schema, seed=7).model
    method = ecat(schema, source, architecture=architecture)
    batches = feed(schema, empty=range(12))
    with tf.GradientTape() as tape:
        loss, metrics = method.loss(batches)
    assert np.isfinite(loss)
    assert float(metrics["distillation_loss"]) == 0.0
    for gradient in tape.gradient(loss, method.model.trainable_variables):
        if gradient is not None:
            assert np.isfinite(tf.convert_to_tensor(gradient)).all()
    assert np.isfinite(method.train_step(batches)["total_loss"])
    assert all(np.isfinite(v).all() for v in method.model.variables)


def test_switches_of_the_ablations():
    method = ecat(use_gate=False)
    out, _, _ = forward(method, feed(method.schema))
    np.testing.assert_array_equal(out.gates["sequence"], 1.0)
    assert method.model.served.gates == {}
    assert method.model.served.entropy_head is None  # nothing reads it
    method = ecat(use_gate=False, w_pow="entropy", entropy_source="base_pass")
    out, _, _ = forward(method, feed(method.schema))
    assert out.entropy is not None
    assert out.guess is None
    method = ecat(use_da=False)
    _, metrics = method.loss(feed(method.schema))
    assert method.model.discriminator is None
    assert "domain_loss" not in metrics
    method = ecat(use_distillation=False)
    assert method._source is None
    assert "source_versions" not in method.extra_state()


def test_weights_and_gates_are_audited_by_domain():
    method = ecat(use_distillation=False, audit_feature="item")
    set_discriminator(method, -2.0)  # q = 0.119 of every row
    batches = feed(method.schema)
    for _ in range(2):
        method.loss(batches)
    expected = entropy(sigmoid(-2.0))
    scalars = method.scalars()
    assert scalars["w_da/d1"] == pytest.approx(expected, rel=1e-5)
    assert scalars["w_da/d2"] == pytest.approx(expected, rel=1e-5)
    assert "w_da/d0" not in scalars  # target rows are not weighed
    out, batch, _ = forward(method, batches)
    gates = out.gates["sequence"].numpy()[batch.domain.numpy() == 2]
    assert scalars["gate_sequence/d2"] == pytest.approx(gates.mean(), rel=1e-5)
    lines = method.audit_tables()["w_da"].table()
    assert [line["rows"] for line in lines[:3]] == [0, 12, 12]
    items = set(batches[GST].features["item"].numpy().tolist())
    assert {line["value"] for line in lines[3:]} == items
    saved = set(method.extra_state())
    assert saved == {"audit_w_da", "audit_gate_sequence"}
    with pytest.raises(LookupError, match=r"ecat.audit_feature must be one of"):
        ecat(use_distillation=False, audit_feature="price")


def test_entropy_of_the_base_pass_is_that_of_the_unfused_prediction():
    method = ecat(entropy_source="base_pass")
    batches = feed(method.schema)
    out, batch, _ = forward(method, batches)
    plain = method.model.served.target(batch.features)
    expected = entropy(sigmoid(np.stack([plain["t0"], plain["t1"]], axis=1)))
    np.testing.assert_allclose(out.entropy, expected, rtol=1e-4, atol=1e-6)


def test_step_with_a_source_compiles_and_runs_in_bfloat16():
    schema = data.make_schema()
    batches = feed(schema)
    plain, compiled = ecat(schema), ecat(schema)
    step = tf.function(compiled.train_step, jit_compile=True, autograph=False)
    expected, got = plain.train_step(batches), step(batches)
    for name, value in expected.items():
        assert float(got[name]) == pytest.approx(float(value), rel=1e-4), name
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        half = ecat(schema, entropy_source="base_pass", taps=("fields", "sequence"))
        losses = [float(half.train_step(batches)["loss"]) for _ in range(8)]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_two_replicas_train_as_one_device(two_replicas):
    schema, weights, metrics = data.make_schema(), [], []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            method = ecat(schema)

        def replica(batches, method=method, count=strategy.num_replicas_in_sync):
            part = tf.distribute.get_replica_context().replica_id_in_sync_group
            mine = tf.nest.map_structure(
                lambda x: tf.reshape(x, [count, -1, *x.shape[1:]])[part], batches
            )
            return method.train_step(mine)

        step = tf.function(
            lambda b, s=strategy, r=replica: s.run(r, (b,)), autograph=False
        )
        with strategy.scope():
            for seed in range(2):
                given = step(feed(schema, seed=seed, empty=(1,)))
        reduced = {k: strategy.reduce("SUM", v, axis=None) for k, v in given.items()}
        metrics.append({k: float(v) for k, v in reduced.items()} | method.scalars())
        weights.append([v.numpy() for v in method.model.trainable_variables])
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4)
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"target_domain": ""}, LookupError, "ecat.target_domain must be one of d0"),
        ({"source_domains": ("d0",)}, LookupError, "ecat.source_domains.*d1, d2"),
        ({"domain_specific_features": ("prize",)}, LookupError, "price"),
        ({"gate_uses_source": True, "use_gate": False}, ConfigError, "needs use_gate"),
        ({"gst_path": "x", "use_source_rows": False}, ConfigError, "gst_path"),
        ({"gst_share": 0}, ConfigError, "gst_share"),
        ({"gst_share": "all"}, ConfigError, "gst_share"),
        ({"taps": ("sequence", "sequence")}, ConfigError, "once"),
        (
            {"domain_specific_features": ("user", "item", "tags", "history", "price")},
            ValueError,
            "must leave the discriminator a feature",
        ),
    ],
)
def test_impossible_settings_are_refused(settings, error, text):
    with pytest.raises(error, match=text):
        ecat(use_distillation=False, **settings)


def test_distillation_without_a_source_is_refused():
    config = ECATConfig(target_domain="d0")
    with pytest.raises(ValueError, match="source_workdir.*use_distillation: false"):
        ECAT(config, data.make_schema())


def test_sequence_layer_without_sequences_is_refused():
    schema = data.make_schema()
    fields = tuple(f for f in schema.features if f.kind != "sequence")
    schema = ModelSchema(fields, schema.domains, schema.tasks)
    with pytest.raises(ValueError, match=r"taps: \[fields\]"):
        ecat(schema, use_distillation=False)
    assert ecat(schema, use_distillation=False, taps=("fields",)).model.served


def test_selected_rows_in_a_run_of_the_target_alone_are_refused():
    with pytest.raises(ValueError, match="only domain"):
        ecat(data.make_schema(1), use_distillation=False, gst_path="streams/gst")


def test_sources_that_do_not_fit_are_refused():
    schema = data.make_schema()
    with pytest.raises(TypeError, match="run of eta or din; got MLPModel"):
        ecat(schema, data.make_method("mlp", schema).model)
    with pytest.raises(ValueError, match="as wide in the source"):
        ecat(schema, source_model(schema, head_units=3))
    with pytest.raises(ValueError, match="every domain of the run.*d2"):
        ecat(schema, source_model(data.make_schema(2)))
    fields = tuple(f for f in schema.features if f.name != "price")
    less = ModelSchema(fields, schema.domains, schema.tasks)
    with pytest.raises(ValueError, match="reads 'price' as number"):
        ecat(less, source_model(schema))


def test_missing_source_folder_is_told_before_training(tmp_path):
    schema = data.make_schema()
    small = data.SMALL["ecat"] | {"use_distillation": True}
    config = ECATConfig.parse(small | {"source_workdir": str(tmp_path / "none")})
    method = ECAT(config, schema)  # to score or export needs no source
    data.logits(method, data.make_batch(schema, 4))
    with pytest.raises(ValueError, match="there is none in"):
        method.streams()
