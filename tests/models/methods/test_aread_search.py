"""The properties of AREAD's mask search, in both scopes."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import functools  # isort: skip
import itertools  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip
import tf_keras as keras  # isort: skip

from models.aread import masks as masks_lib  # isort: skip
from models.aread.config import Plan  # isort: skip
from models.aread.stacked import stack  # isort: skip
from models.layers import hierarchy_math  # isort: skip
from models.method import MAIN  # isort: skip
from models.optimizers import groups  # isort: skip
from models.snapshot import VariableSnapshot  # isort: skip
from tests.models.methods import aread_data, data  # isort: skip
from tests.models.methods.aread_data import Rows, aread, put_masks, values_of  # isort: skip

SCOPES = ["hei", "all"]


def everything(method):
    state = method.search_state
    return [
        *method.model.variables,
        *(v for o in method.optimizers.values() for v in o.variables),
        *(state.seed, state.searches, state.steps, *state.means),
    ]


@functools.cache
def trained(scope, head="plain"):
    """A method that has been trained a little, slots and mean gates not at zero."""
    method = aread(search_scope=scope, head=head)
    aread_data.train(method)
    return method, VariableSnapshot(everything(method)), method.config


def ready(scope="hei", head="plain", **settings):
    """The trained method of a scope as it was at first, with other search settings."""
    method, start, config = trained(scope, head)
    start.restore()
    config = config.model_copy(update=settings)
    method.mask_search.config = method.mask_search.trial.config = config
    return method


def masks_of(method):
    return values_of(method.model.hierarchy.masks)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("scope", SCOPES)
def test_search_changes_masks_and_counter_and_nothing_else_in_any_bit(scope):
    """No. 5."""
    method = ready(scope)
    moves = [*method.model.hierarchy.masks, method.search_state.searches]
    moves = {v.ref() for v in moves}
    kept = VariableSnapshot(v for v in everything(method) if v.ref() not in moves)
    before = masks_of(method)
    method.search(Rows(method.schema))
    assert kept.changed() == []
    assert not equal(masks_of(method), before)
    assert method.search_state.searches.numpy() == 1


@pytest.mark.parametrize("scope", SCOPES)
def test_masks_in_force_are_dense_enough_and_without_dead_experts(scope):
    """No. 3 and 4."""
    method = ready(scope, candidate_steps=4, prune_rate=0.2)
    for _ in range(2):
        method.search(Rows(method.schema))
        for d in range(3):
            mask = [m[d] > 0 for m in masks_of(method)]
            assert masks_lib.density(mask) >= 0.4
            assert mask[-1].any()
            for below, above in itertools.pairwise(mask):
                np.testing.assert_array_equal(below.any(0), above.any(1))


@pytest.mark.parametrize("scope", SCOPES)
def test_candidates_are_only_ever_pruned(scope):
    """No. 3: no edge comes back inside one candidate."""
    method = ready(scope)
    search = method.mask_search
    plan, gates = Plan(3, 0.8, 0.2), values_of(method.model.hierarchy.gates())
    for d in range(3):
        start = search.candidates(d, plan, gates)
        found = search.search_domain(d, Rows(method.schema), plan, gates)
        for before, after in zip(start, found.masks, strict=True):
            assert all((a <= b).all() for a, b in zip(after, before, strict=True))
            assert masks_lib.count(after) < masks_lib.count(before)


@pytest.mark.parametrize("scope", SCOPES)
def test_search_for_a_domain_changes_its_mask_only(scope):
    """No. 6; the other domains have no rows."""
    method = ready(scope)
    before = put_masks(method)
    empty = {f"{kind}/d{d}" for kind in ("search", "score") for d in (0, 2)}
    values = method.search(Rows(method.schema, empty=empty))
    assert values["domains"] == 1.0
    for old, new in zip(before, masks_of(method), strict=True):
        np.testing.assert_array_equal(new[[0, 2]], old[[0, 2]])
    assert not equal([m[1] for m in before], [m[1] for m in masks_of(method)])


@pytest.mark.parametrize("scope", SCOPES)
def test_one_candidate_without_flips_and_steps_is_the_top_of_the_mean_gates(scope):
    """No. 6."""
    method = ready(scope, num_candidates=1, flip_rate=0.0, candidate_steps=0)
    means = values_of(method.search_state.means)
    method.search(Rows(method.schema))
    for d in range(3):
        flat = np.concatenate(
            [(m[d].T * m.shape[2]).ravel() for m in means]  # gate times fan-in
        )
        kept = np.zeros(18, bool)
        kept[np.argsort(-flat, kind="stable")[:13]] = True  # 0.7 * 18 = 12.6
        expected = masks_lib.live([kept[:6].reshape(2, 3), kept[6:].reshape(3, 4)])
        assert equal([m[d] for m in masks_of(method)], expected)


@pytest.mark.parametrize("scope", SCOPES)
def test_candidates_are_scored_on_the_same_rows_and_the_best_is_taken(scope):
    """No. 7: without training a score is the model's loss under that mask."""
    method = ready(scope, candidate_steps=0)
    method.search(Rows(method.schema))
    chosen = masks_of(method)
    rows = Rows(method.schema)
    for d, name in enumerate(method.schema.domains):
        result = method.mask_search.last[name]
        batches = [rows(f"score/{name}") for _ in range(2)]
        expected = []
        for mask in result.masks:
            for variable, layer in zip(method.model.hierarchy.masks, mask, strict=True):
                variable.assign(np.broadcast_to(layer, variable.shape))
            logits = np.concatenate([data.logits(method, b) for b in batches])
            labels = np.concatenate([b.labels.numpy() for b in batches])
            each = np.log1p(np.exp(np.where(labels > 0, -logits, logits)))
            expected.append(each.mean(0).sum())
        np.testing.assert_allclose(result.scores, expected, rtol=1e-4)
        assert result.chosen == int(np.argmin(result.scores))
        assert len(set(result.scores)) > 1
        assert equal([m[d] for m in chosen], result.masks[result.chosen])


@pytest.mark.parametrize("scope", SCOPES)
def test_ties_go_to_the_first_candidate(scope):
    """No. 7: equal candidates train alike and score the same."""
    method = ready(scope, flip_rate=0.0)
    method.search(Rows(method.schema))
    for result in method.mask_search.last.values():
        assert len(set(result.scores)) == 1
        assert result.chosen == 0


def test_candidate_that_diverged_is_not_chosen(monkeypatch):
    method = ready()
    found = [tuple(m[0] > 0 for m in put_masks(method))] * 3

    class Diverged:
        def run(self, domain, candidates, train, score):
            return found, [float("nan"), 0.7, 0.6]

    monkeypatch.setattr(method.mask_search, "trial", Diverged())
    method.search(Rows(method.schema))
    assert method.mask_search.last["d0"].chosen == 2


@pytest.mark.parametrize("head", ["plain", "dcn"])
def test_stacked_candidates_equal_training_each_alone(head):
    """Every copy against the model itself under its mask: same weights, gates, loss."""
    method = ready(head=head)
    trial, hierarchy = method.mask_search.trial, method.model.hierarchy
    rng = np.random.default_rng(4)
    full = tuple(np.ones(m.shape[1:], bool) for m in hierarchy.masks)
    masks = [masks_lib.candidate(full, 0.4, 8, rng) for _ in range(3)]
    rows, d = Rows(method.schema), 1
    batches = [rows("search/d1") for _ in range(3)]
    copies = trial.start(d, 3)
    for number, batch in enumerate(batches, start=1):
        copies = trial.train_step(
            copies, trial.rows(batch), masks, np.ones(3, bool), number
        )
    scores = trial.score(copies, masks, batches)
    gates = trial._gates(copies.weights, stack(masks))
    before = VariableSnapshot(method.model.variables)
    method.search_state.searches.assign(1)  # the masked loss
    for z, mask in enumerate(masks):
        before.restore()
        for variable, layer in zip(hierarchy.masks, mask, strict=True):
            variable.assign(np.broadcast_to(layer, variable.shape))
        own = {"dense": list(hierarchy.named.values())}
        config = groups.OptimizerConfig(dense=groups.GroupConfig(learning_rate=0.01))
        optimizers = groups.make_optimizers(config, own)
        for batch in batches:
            with tf.GradientTape() as tape:
                loss, _ = method.loss({MAIN: batch})
            groups.apply_gradients(tape, loss, optimizers)
        for name, variable in hierarchy.named.items():
            value = variable[d] if name == "gate_domain" else variable
            # A tenth of one step: Adam magnifies the rounding of gradients near 0.
            np.testing.assert_allclose(
                copies.weights[name][z], value, rtol=2e-3, atol=1e-3, err_msg=name
            )
        for found, expected in zip(gates, hierarchy.gates(), strict=True):
            np.testing.assert_allclose(found[z], expected[d], rtol=1e-3, atol=1e-4)
        alone = np.concatenate([data.logits(method, b) for b in batches])
        labels = np.concatenate([b.labels.numpy() for b in batches])
        each = np.log1p(np.exp(np.where(labels > 0, -alone, alone)))
        assert scores[z] == pytest.approx(each.mean(0).sum(), rel=1e-3)


def test_candidate_that_reached_the_least_density_trains_no_more():
    method = ready()
    trial = method.mask_search.trial
    mask = tuple(m[0] > 0 for m in put_masks(method))
    copies = trial.start(0, 2)
    rows = trial.rows(Rows(method.schema)("search/d0"))
    after = trial.train_step(copies, rows, [mask, mask], np.array([True, False]), 1)
    for name, value in after.weights.items():
        np.testing.assert_array_equal(value[1], copies.weights[name][1])
    assert np.any(after.weights["out_bias"][0] != copies.weights["out_bias"][0])


def test_full_trial_trains_all_parameters_before_it_scores(monkeypatch):
    method = ready("all")
    trial = method.mask_search.trial
    start = VariableSnapshot(method.model.trainable_variables)
    changed = []

    def numbers(batch):
        changed.append(len(start.changed()))
        return np.ones((2, 2))

    monkeypatch.setattr(trial, "_numbers", numbers)
    # All edges: an expert of one input has a gate of 1, which learns nothing.
    mask = tuple(np.ones(m.shape[1:], bool) for m in method.model.hierarchy.masks)
    rows = Rows(method.schema)
    trial.run(0, [mask], [rows("search/d0")], [rows("score/d0")])
    assert changed == [len(start.variables)]
    assert start.changed() == []


def test_every_candidate_of_the_full_trial_starts_with_a_fresh_adam():
    method = ready("all")
    mask = tuple(m[0] > 0 for m in put_masks(method))
    rows = Rows(method.schema)
    batches = [rows("search/d0") for _ in range(2)]
    found, scores = method.mask_search.trial.run(0, [mask] * 3, batches, batches)
    assert len(set(scores)) == 1
    assert all(equal(m, found[0]) for m in found)


@pytest.mark.parametrize("scope", SCOPES)
def test_padding_rows_change_no_score(scope):
    method = ready(scope)
    mask = tuple(m[1] > 0 for m in put_masks(method))
    batch, other = (Rows(method.schema)(f"{k}/d1") for k in ("search", "score"))
    valid = tf.constant([True] * 19 + [False] * 5)
    weight = tf.cast(valid, tf.float32)

    def padded(garbage):
        rows = tf.nest.map_structure(
            lambda a, b: tf.concat([a[:19], b[19:]], 0), batch, garbage
        )
        return rows._replace(valid=valid, weight=weight)

    run = method.mask_search.trial.run
    _, plain = run(1, [mask], [padded(batch)], [padded(batch)])
    _, same = run(1, [mask], [padded(other)], [padded(other)])
    assert same == pytest.approx(plain, rel=1e-5)


def test_domain_without_augmented_rows_trains_on_its_plain_ones():
    method = ready()
    rows = Rows(method.schema, empty={"search/d1"})
    method.search(rows)
    assert rows.drawn == {
        "score/d1": 4,  # 2 to score by, 2 to train on
        **{f"{kind}/d{d}": 2 for kind in ("search", "score") for d in (0, 2)},
    }


@pytest.mark.parametrize("scope", SCOPES)
def test_search_after_a_restored_checkpoint_is_the_same_in_every_bit(scope, tmp_path):
    """No. 14: seed, counter and mean gates come from the checkpoint."""

    def checkpoint(method):
        return tf.train.Checkpoint(
            model=method.model,
            extra=method.extra_state(),
            optimizers=dict(method.optimizers),
        )

    method, rows = ready(scope), Rows(data.make_schema())
    method.search(rows)
    aread_data.train(method, seed=70)
    path = checkpoint(method).write(str(tmp_path / "c"))
    position = dict(rows.drawn)
    other = data.make_method("aread", method.schema, seed=9, search_scope=scope)
    assert other.search_state.seed.numpy() != method.search_state.seed.numpy()
    checkpoint(other).read(path).assert_consumed()
    for one, draw in ((method, rows), (other, Rows(method.schema, drawn=position))):
        aread_data.train(one, steps=1, seed=80)
        one.search(draw)
    assert equal(masks_of(method), masks_of(other))
    for name, result in method.mask_search.last.items():
        assert result.scores == other.mask_search.last[name].scores
    assert other.search_state.searches.numpy() == 2


def test_every_search_draws_other_candidates():
    method = ready()
    plan, gates = Plan(3, 0.8, 0.2), values_of(method.model.hierarchy.gates())
    first = method.mask_search.candidates(0, plan, gates)
    assert all(
        equal(a, b)
        for a, b in zip(
            first, method.mask_search.candidates(0, plan, gates), strict=True
        )
    )
    method.search_state.searches.assign(1)
    later = method.mask_search.candidates(0, plan, gates)
    assert not all(equal(a, b) for a, b in zip(first, later, strict=True))


def test_step_after_a_search_trains_every_row_under_its_own_mask():
    """The wrong-domain bug: the last searched domain's mask must not stay."""
    method = ready()
    method.search(Rows(method.schema))
    masks = [m > 0 for m in put_masks(method, seed=3)]
    batch = data.make_batch(method.schema, 24, domain=[0] * 24)
    with tf.GradientTape() as tape:
        loss, _ = method.loss({MAIN: batch})
    kernel = method.model.hierarchy.named["out_kernel"]
    gradient = tape.gradient(loss, kernel).numpy()
    np.testing.assert_array_equal(
        gradient.any((1, 2)), masks_lib.active_outputs([m[0] for m in masks])
    )


def test_first_search_runs_once():
    method = ready()
    values = method.first_search(Rows(method.schema))
    assert values["domains"] == 3.0
    assert method.first_search(Rows(method.schema)) is None
    assert method.search_state.searches.numpy() == 1


def test_average_of_a_candidates_active_outputs_is_what_scores():
    """A candidate's score reads Eq. (9), not the bagging loss it trains on."""
    outputs = tf.constant([[[4.0]], [[-4.0]]])
    active = tf.ones([2, 1, 1])
    average = hierarchy_math.average_logits(outputs, active)
    bag = hierarchy_math.bagging(outputs, active, tf.constant([[1.0]]), "mean")
    assert float(average[0, 0]) == pytest.approx(0.0, abs=1e-6)
    assert float(bag[0, 0]) > 2.0


def test_search_of_a_bfloat16_model_trains_its_copies_in_float32():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        method = aread(candidate_steps=1)
        method.search(Rows(method.schema, empty={"score/d1", "score/d2"}))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    copies = method.mask_search.trial.start(0, 2)
    assert {v.dtype for v in copies.weights.values()} == {tf.float32}
    assert np.isfinite(method.mask_search.last["d0"].scores).all()
