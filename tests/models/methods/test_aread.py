"""The properties of AREAD's model, loss and export (the search has its own file)."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.config import ConfigError  # isort: skip
from models.aread.config import plan_search  # isort: skip
from models.aread import masks as masks_lib  # isort: skip
from models.layers import hierarchy_math  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.aread import AREADConfig  # isort: skip
from tests.models.methods import aread_data, data  # isort: skip
from tests.models.methods.aread_data import aread, put_masks, values_of  # isort: skip


def cross_entropy(outputs, labels):
    return np.log1p(np.exp(np.where(labels > 0, -outputs, outputs)))


def outputs_of(method, batch):
    """Outputs [N_L, B, T] and active [N_L, B] in float64."""
    outputs, active = method.model.all_outputs(batch.features, training=False)
    return outputs.numpy().astype("f8"), active.numpy()[..., 0]


def test_all_ones_masks_equal_the_unmasked_average():
    """No. 1: Eq. (3), plain softmax gates, and the mean over all outputs."""
    method = aread()
    aread_data.train(method)
    batch = data.make_batch(method.schema, 30)
    hierarchy = method.model.hierarchy
    named = {k: tf.convert_to_tensor(v) for k, v in hierarchy.named.items()}
    gates = hierarchy.gates()

    def unmasked(layer, e):
        own = tf.gather(gates[layer - 1], batch.domain)
        return tf.einsum("bnm,mbh->nbh", own, e)

    outputs = hierarchy_math.run_experts(
        named,
        method.model.base(batch.features)[0],
        unmasked,
        hierarchy.depths,
        norm="layer",
    ).numpy()
    mean = (1 / (1 + np.exp(-outputs.astype("f8")))).mean(0)
    np.testing.assert_allclose(
        data.logits(method, batch), np.log(mean / (1 - mean)), rtol=1e-3, atol=1e-4
    )


def test_cut_edge_has_no_effect_and_no_gradient():
    """No. 2, through the whole model: experts that a domain does not use."""
    method = aread()
    masks = put_masks(method)
    hierarchy = method.model.hierarchy
    cut = ~masks[1].any(1)  # [D, N_L]: top experts that a domain has cut off
    d = int(np.argmax(cut.any(1)))
    unused = np.flatnonzero(cut[d])
    assert unused.size
    batch = data.make_batch(method.schema, 20, domain=[d] * 20)
    before = data.logits(method, batch)
    for name in ("kernel_2_0", "out_kernel", "out_bias"):
        values = hierarchy.named[name].numpy()
        values[unused] += np.random.default_rng(0).normal(size=values[unused].shape)
        hierarchy.named[name].assign(values)
    np.testing.assert_array_equal(data.logits(method, batch), before)


@pytest.mark.parametrize("searched", [0, 1])
def test_gradient_of_a_domain_touches_no_expert_outside_its_mask(searched):
    """No. 10, in the warm-up loss as in the masked one."""
    method = aread()
    masks = put_masks(method, seed=3)
    method.search_state.searches.assign(searched)
    hierarchy = method.model.hierarchy
    seen = 0
    for d in range(3):
        batch = data.make_batch(method.schema, 24, domain=[d] * 24)
        with tf.GradientTape() as tape:
            loss, _ = method.loss({MAIN: batch})
        found = tape.gradient(loss, hierarchy.named)
        used = [masks[0][d].any(1), masks[0][d].any(0), masks[1][d].any(0)]
        for level, kept in enumerate(used):
            gradient = found[f"kernel_{level}_0"].numpy()
            assert not gradient[~kept].any()
            assert all(g.any() for g in gradient[kept])
            seen += int((~kept).sum())
        assert not found["out_kernel"].numpy()[~used[2]].any()
        others = np.delete(found["gate_domain"].numpy(), d, axis=0)
        assert not others.any()
    assert seen


def test_mixed_batch_equals_batches_of_one_domain():
    """No. 8, with a mask of its own for each domain."""
    method = aread()
    masks = put_masks(method)
    assert not np.array_equal(masks[1][0], masks[1][1])
    batch = data.make_batch(method.schema, 200)
    together = data.logits(method, batch)
    for d in range(3):
        index = np.flatnonzero(batch.domain.numpy() == d)
        alone = data.logits(method, data.take(batch, index))
        np.testing.assert_allclose(alone, together[index], rtol=1e-4, atol=1e-5)


def test_score_is_the_mean_probability_over_the_domains_active_outputs():
    method = aread()
    masks = put_masks(method)
    batch = data.make_batch(method.schema, 25)
    outputs, active = outputs_of(method, batch)
    np.testing.assert_array_equal(
        active.T > 0, np.stack([masks[1][d].any(0) for d in batch.domain.numpy()])
    )
    probs = 1 / (1 + np.exp(-outputs))
    mean = (probs * active[..., None]).sum(0) / active.sum(0)[:, None]
    np.testing.assert_allclose(
        data.logits(method, batch), np.log(mean / (1 - mean)), rtol=1e-3, atol=1e-4
    )


def test_warm_up_loss_is_that_of_the_average():
    method = aread()
    batch = data.make_batch(method.schema, 25)
    outputs, _ = outputs_of(method, batch)
    mean = (1 / (1 + np.exp(-outputs))).mean(0)
    labels = batch.labels.numpy()
    each = -np.where(labels > 0, np.log(mean), np.log(1 - mean))
    loss, _ = method.loss({MAIN: batch})
    assert float(loss) == pytest.approx(each.mean(0).sum(), rel=1e-4)


@pytest.mark.parametrize("bagging", ["mean", "sum"])
def test_masked_loss_takes_each_active_output_on_its_own(bagging):
    method = aread(bagging=bagging)
    put_masks(method)
    method.search_state.searches.assign(1)
    batch = data.make_batch(method.schema, 25)
    outputs, active = outputs_of(method, batch)
    each = cross_entropy(outputs, batch.labels.numpy()) * active[..., None]
    rows = each.sum(0) / (active.sum(0)[:, None] if bagging == "mean" else 1)
    loss, _ = method.loss({MAIN: batch})
    assert float(loss) == pytest.approx(rows.mean(0).sum(), rel=1e-4)


def test_replacing_masks_and_the_loss_after_the_first_search_do_not_retrace():
    """No. 9."""
    method = aread()
    step = tf.function(method.train_step, autograph=False)
    batch = {MAIN: data.make_batch(method.schema, 32)}
    warm = float(step(batch)["loss"])
    put_masks(method)
    method.search_state.searches.assign(1)
    masked = float(step(batch)["loss"])
    assert step.experimental_get_tracing_count() == 1
    twin = aread()  # the same seed: what the second step gives without the change
    for _ in range(2):
        plain = float(twin.train_step(batch)["loss"])
    assert masked != pytest.approx(plain, rel=1e-4)
    assert np.isfinite([warm, masked]).all()


def test_mean_gates_are_means_over_steps_with_rows_of_the_domain():
    method = aread(gate_momentum=0.5)
    state, seen = method.search_state, []
    for domains in ([0, 1], [0], [0], [0, 1]):
        seen.append([g.numpy() for g in method.model.hierarchy.gates()])
        batch = data.make_batch(method.schema, 16, domain=(domains * 16)[:16])
        method.train_step({MAIN: batch})
    assert state.steps.numpy().tolist() == [4, 2, 0]
    for layer, mean in enumerate(state.means):
        first, second, third, fourth = (s[layer] for s in seen)
        average = (first[0] + second[0]) / 2  # 1 / (1 - momentum) = 2 plain steps
        average = 0.5 * (0.5 * (average + third[0]) + fourth[0])
        np.testing.assert_allclose(mean[0], average, rtol=1e-5)
        np.testing.assert_allclose(mean[1], (first[1] + fourth[1]) / 2, rtol=1e-5)
    now = [np.full_like(g, 7.0) for g in seen[0]]
    assert (state.mean_gates(2, now)[0] == 7.0).all()


def test_padding_rows_are_no_rows_of_a_domain():
    method = aread()
    batch = data.make_batch(method.schema, 8, domain=[1] * 4 + [0] * 4)
    valid = tf.constant([True] * 4 + [False] * 4)
    weight = tf.cast(valid, tf.float32)
    mask = batch.label_mask * weight[:, None]
    method.train_step(
        {MAIN: batch._replace(valid=valid, weight=weight, label_mask=mask)}
    )
    assert method.search_state.steps.numpy().tolist() == [0, 1, 0]


@pytest.mark.parametrize("head", ["plain", "dcn"])
def test_export_model_has_masks_as_constants_for_every_domain(head, tmp_path):
    """No. 15."""
    method = aread(head=head)
    aread_data.train(method, steps=1)
    put_masks(method)
    batch = data.make_batch(method.schema, 30, domain=list(range(3)) * 10)
    model = method.export_model()
    names = [v.name for v in model.variables]
    assert not [n for n in names if "mask" in n or "gate_" in n]
    assert len(names) == len(method.model.variables) - 8
    data.check_export(method, model, list(model.variables), batch, tmp_path)


def test_serving_variables_hold_no_candidate_and_no_history():
    """No. 15: of the live model, and of the exported one, whose masks are constants."""
    for scope in ("hei", "all"):
        method = aread(search_scope=scope)
        own = {v.ref() for v in method.model.variables}
        exported = {v.ref() for v in method.serving_variables()}
        assert exported < own
        assert not [v.name for v in method.serving_variables() if "mask" in v.name]
        state = tf.nest.flatten(list(method.extra_state().values()))
        assert not own & {v.ref() for v in state}
        shapes = [v.shape.as_list() for v in method.model.non_trainable_variables]
        assert shapes == [[3, 2, 3], [3, 3, 4]]  # masks, nothing else


def test_matrices_tell_overlap_and_the_use_of_experts_by_domain():
    method = aread()
    put_masks(method)
    found = method.matrices()
    own = found["mask overlap, layer 1"]
    np.testing.assert_array_equal(own.values, method.mask_overlap()[0])
    assert own.rows == own.columns == method.schema.domains
    use = found["use of experts, layer 1"].values
    assert use.shape == (3, 2)  # two experts in the first layer
    # Every expert above reads shares that sum to 1, so they do on average.
    np.testing.assert_allclose(use.sum(axis=1), 1.0, rtol=1e-6)


def test_matrices_show_the_pairs_of_most_and_least_alike_domains():
    method = aread()
    masks = [m.numpy() for m in method.model.hierarchy.masks]
    masks[1][:] = False
    masks[1][0, 0, :2] = masks[1][1, 0, :2] = True  # d0 and d1 keep the same edges,
    masks[1][2, :2, 2] = True  # d2 others: d0 and d2 are the first pair with nothing
    for variable, value in zip(method.model.hierarchy.masks, masks, strict=True):
        variable.assign(value)
    found = method.matrices()
    shown = {k: m for k, m in found.items() if "alike" in k}
    assert list(shown) == [
        "most alike: d0 and d1, overlap 1.000",
        "least alike: d0 and d2, overlap 0.000",
    ]
    mixing = method.expert_utilisation()[-1]
    least = shown["least alike: d0 and d2, overlap 0.000"]
    assert least.rows[:2] == ["d0 0", "d0 1"]
    assert least.rows[4] == "d2 0"
    np.testing.assert_array_equal(least.values, np.concatenate([mixing[0], mixing[2]]))
    assert least.values[0].tolist() == [1.0, 0.0, 0.0]  # its one edge


def test_without_masks_there_is_no_overlap_to_show():
    names = aread(use_masks=False).matrices().keys()
    assert set(names) == {"use of experts, layer 1", "use of experts, layer 2"}


def test_one_domain_has_no_pair_and_two_have_one():
    assert masks_lib.extreme_pairs(np.ones([1, 1])) == {}
    assert masks_lib.extreme_pairs(np.ones([2, 2])) == {"most": (0, 1)}


def test_scalars_tell_density_overlap_and_active_outputs():
    method = aread()
    assert method.scalars()["mask/density"] == 1.0
    masks = put_masks(method)
    values = method.scalars()
    edges = sum(m.sum() for m in masks) / 3
    assert values["mask/density"] == pytest.approx(edges / 18)
    assert values["mask/density_layer_2"] == pytest.approx(masks[0].mean())
    assert values["mask/active_outputs"] == pytest.approx(masks[1].any(1).sum(1).mean())
    assert values["mask/searches"] == 0.0
    pairs = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        both, either = masks[1][a] & masks[1][b], masks[1][a] | masks[1][b]
        pairs.append(both.sum() / either.sum())
    assert values["mask/overlap_layer_3"] == pytest.approx(np.mean(pairs))
    assert method.mask_overlap()[1][0, 1] == pytest.approx(pairs[0])


def test_utilisation_gives_each_experts_shares_by_domain():
    method = aread()
    masks = put_masks(method)
    found = method.expert_utilisation()
    assert [u.shape for u in found] == [(3, 3, 2), (3, 4, 3)]
    for shares, mask in zip(found, masks, strict=True):
        np.testing.assert_allclose(shares.sum(-1), mask.any(1), rtol=1e-5)


def test_streams_and_events_are_those_of_the_search_only_with_masks():
    method = aread(augmented_path="streams/augmented", search_batch_share=0.5)
    streams = method.streams()
    assert set(streams) == {
        MAIN,
        *(f"{kind}/d{d}" for kind in ("search", "score") for d in range(3)),
    }
    assert not streams[MAIN].event_only
    assert streams["search/d1"].path == "streams/augmented"
    assert streams["score/d1"].path == ""
    for name in ("search/d1", "score/d1"):
        assert streams[name].event_only
        assert streams[name].domains == ("d1",)
        assert streams[name].batch_share == 0.5
        assert streams[name].split == "train"
    first, later = method.periodic_events()
    assert (first.every_steps, later.every_steps) == (100, 2000)
    assert first.draws
    assert later.draws
    plain = aread(use_masks=False)
    assert set(plain.streams()) == {MAIN}
    assert plain.periodic_events() == []


def test_authors_schedule_shrinks_the_search_before_each():
    config = AREADConfig(search_schedule="authors")
    first, second = plan_search(config, 0), plan_search(config, 1)
    assert (first.num_candidates, second.num_candidates) == (9, 8)
    assert first.keep_rate == pytest.approx(0.665)
    assert second.flip_rate == pytest.approx(0.2 * 0.99**2)
    assert plan_search(config, 100).keep_rate == 0.4
    assert plan_search(config, 100).num_candidates == 1
    constant = plan_search(AREADConfig(), 50)
    assert (constant.num_candidates, constant.keep_rate) == (10, 0.7)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"search_every": 100}, "search_every must be above warmup_steps"),
        ({"keep_rate": 0.3}, r"keep_rate must be at least min_density \(0.4\)"),
        ({"num_experts": (3,)}, "num_experts must hold two or more layers"),
        ({"num_experts": (3, 6)}, "expert_units must hold the hidden widths"),
        ({"prune_rate": 1.0}, "prune_rate"),
    ],
)
def test_impossible_settings_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        AREADConfig.parse(settings)


@pytest.mark.parametrize("where", ["dropout", "base_dropout"])
def test_dropout_is_on_in_training_only(where):
    method = aread(**{where: 0.5})
    batch = data.make_batch(method.schema, 12)
    still = data.logits(method, batch)
    np.testing.assert_array_equal(data.logits(method, batch), still)
    assert not np.allclose(data.logits(method, batch, training=True), still)


def test_values_of_masks_start_as_ones():
    for values in values_of(aread().model.hierarchy.masks):
        assert (values == 1.0).all()


def test_two_replicas_train_the_hierarchy_as_one_device(two_replicas):
    """Without masks, since searches want one device; mean gates stay the same too."""
    one = aread(use_masks=False)
    batch = data.make_batch(one.schema, 16, domain=[0] * 8 + [1] * 8)
    with two_replicas.scope():
        both = aread(use_masks=False)

    def half():
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        part = tf.nest.map_structure(lambda x: x[8 * index : 8 * index + 8], batch)
        return both.train_step({MAIN: part})["loss"]

    run = tf.function(lambda: two_replicas.run(half), autograph=False)
    for _ in range(2):
        loss = two_replicas.reduce("SUM", run(), axis=None)
        expected = one.train_step({MAIN: batch})["loss"]
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    # Replica 0 has rows of domain 0 only; the means are of all replicas' rows.
    assert both.search_state.steps.numpy().tolist() == [2, 2, 0]
    for mine, theirs in zip(
        both.search_state.means, one.search_state.means, strict=True
    ):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-3, atol=1e-5)


def test_without_domain_feature_only_gates_and_masks_know_the_domain():
    """The base's output is then the same for every domain; the scores are not."""
    schema = data.make_schema()
    batch = data.make_batch(schema, 9, domain=[0] * 9)
    other = batch._replace(features=batch.features | {"domain": tf.fill([9], 2)})
    for known in (True, False):
        method = aread(domain_feature=known)
        aread_data.train(method)
        base = [method.model.base(b.features)[0].numpy() for b in (batch, other)]
        assert np.array_equal(*base) == (not known)
        scores = data.logits(method, batch), data.logits(method, other)
        assert not np.allclose(*scores)
