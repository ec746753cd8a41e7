"""The properties of SSCTL that its paper promises (numbers 1 to 14 of our notes)."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from models import losses  # isort: skip
from models.method import MAIN  # isort: skip
from models.training.checkpoint import scoring_trackables  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.methods.ssctl_data import (  # isort: skip
    FIRST,
    context_schema,
    copies_of,
    part_gradients,
    seen_and_classes,
    ssctl,
    with_domain,
)


def backbone_layers(method):
    """Layers that the backbone has too, in a fixed order."""
    model = method.model
    network = model.network
    names = ("experts", "specific", "gates", "towers")
    return [
        model.embeddings,
        model.domain_table,
        *(getattr(network, name) for name in names),
    ]


def copy_weights(source, target):
    """Gives `target` the backbone of `source`."""
    pairs = zip(backbone_layers(source), backbone_layers(target), strict=True)
    for one, other in pairs:
        other.set_weights(one.get_weights())


def backbone(method):
    return [v for layer in backbone_layers(method) for v in layer.trainable_variables]


def bce(z, y):
    return np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - z * y


@pytest.mark.parametrize(
    "settings",
    [{"pseudo_weight": 0.0}, {"pseudo_ramp_steps": (10, 20)}],
    ids=["lambda 0", "before the ramp"],
)
def test_without_lambda_and_sddn_it_is_the_backbone_to_the_bit(settings):  # 1
    method = ssctl(use_sddn=False, **settings)
    plain = ssctl(use_sddn=False, use_isct=False, seed=2)
    copy_weights(method, plain)
    for seed in range(2):
        batch = data.make_batch(method.schema, 32, seed=seed)
        metrics, expected = (m.train_step({MAIN: batch}) for m in (method, plain))
        assert float(metrics["task_loss"]) == float(expected["loss"])
        assert float(metrics["pseudo_loss"]) == 0
    for a, b in zip(backbone(method), backbone(plain), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.name)
    np.testing.assert_array_equal(data.logits(method, batch), data.logits(plain, batch))


@pytest.mark.parametrize("scope", ["experts", "all"])
def test_zero_last_layers_of_dn_give_the_backbones_logits_to_the_bit(scope):  # 2
    method, plain = ssctl(sddn_scope=scope), ssctl(use_sddn=False, seed=2)
    copy_weights(method, plain)
    layers = method.model.network.differentiation.values()
    batch = data.make_batch(method.schema, 33)
    assert not np.array_equal(data.logits(method, batch), data.logits(plain, batch))
    for net in (net for layer in layers for net in layer.nets):
        net.kernel.assign(tf.zeros_like(net.kernel))
    np.testing.assert_array_equal(data.logits(method, batch), data.logits(plain, batch))


def test_classifiers_loss_teaches_the_classifier_alone(method_and_batch):  # 3
    method, batch = method_and_batch
    groups = method.variable_groups()
    own, rest = groups["classifier"], groups["embedding"] + groups["dense"]
    found = part_gradients(method, batch, "classifier_loss", own + rest)
    assert all(np.any(g) for g in found[: len(own)])
    assert found[len(own) :] == [None] * len(rest)


@pytest.mark.parametrize("part", ["task_loss", "pseudo_loss"])
def test_tasks_loss_never_teaches_the_classifier(method_and_batch, part):  # 3
    method, batch = method_and_batch
    own = method.variable_groups()["classifier"]
    assert part_gradients(method, batch, part, own) == [None] * len(own)


@pytest.fixture
def method_and_batch():
    method = ssctl()
    return method, data.make_batch(method.schema, 24)


def test_copy_teaches_the_specific_expert_of_its_pseudo_domain_alone():  # 4
    method = ssctl(context_schema(5))
    variables = method.model.network.specific.trainable_variables
    met = set()
    for seed in range(6):
        batch = data.make_batch(method.schema, 1, seed=seed, domain=[0])
        (pseudo,) = copies_of(method, batch).domain.numpy()
        met.add(pseudo)
        for gradient in part_gradients(method, batch, "pseudo_loss", variables):
            assert not np.any(np.delete(gradient, pseudo, axis=0))
            assert np.any(gradient[pseudo])
    assert len(met) > 1


def test_copies_without_weight_change_nothing_at_all(monkeypatch):  # 4
    batch = data.make_batch(context_schema(), 24)
    results = []
    for settings in ({}, {"pseudo_weight": 0.0}):
        method = ssctl(**settings)
        monkeypatch.setattr(
            method.labelling.confidence, "weights", lambda c, _: tf.zeros_like(c)
        )
        results.append(data.gradients(method, batch))
    (loss, gradients), (plain_loss, plain_gradients) = results
    assert loss == plain_loss
    for a, b in zip(gradients.values(), plain_gradients.values(), strict=True):
        # The zeros of copies may change the order of a sum, so its last bit.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_only_dominant_rows_of_training_batches_move_the_confidence():  # 6
    method = ssctl()
    state = method.labelling.confidence
    batch = data.make_batch(method.schema, 30)
    _, z = seen_and_classes(method, batch)
    p = tf.nn.softmax(z).numpy()
    method.train_step({MAIN: batch})
    c = p.max(1)[batch.domain.numpy() == 0]
    assert state.mean.numpy() == pytest.approx([c.mean()], rel=1e-5)
    assert state.variance.numpy() == pytest.approx([c.var(ddof=1)], rel=1e-3)
    before = [v.numpy() for v in state.variables]
    data.logits(method, batch)
    method.train_step({MAIN: data.make_batch(method.schema, 30, domain=[1, 2] * 15)})
    for old, variable in zip(before, state.variables, strict=True):
        np.testing.assert_array_equal(old, variable)
    assert list(method.scalars()) == ["confidence_mean", "confidence_sigma"]


def test_confidence_survives_save_and_restore(tmp_path):  # 6
    settings = {"pseudo_prior": "balanced", "confidence_scope": "per_class"}
    method, other = ssctl(**settings), ssctl(**settings, seed=2)
    for seed in range(2):
        method.train_step({MAIN: data.make_batch(method.schema, 30, seed=seed)})
    path = tf.train.Checkpoint(**scoring_trackables(method)).write(str(tmp_path / "s"))
    restored = tf.train.Checkpoint(**scoring_trackables(other)).read(path)
    restored.assert_consumed()
    # Two moving means of three numbers, and two tables of the audit.
    assert len(method.labelling.variables) == 2 * (2 + 1) + 2
    pairs = zip(method.labelling.variables, other.labelling.variables, strict=True)
    for a, b in pairs:
        assert np.any(a.numpy()) or a is method.labelling.audit.marked
        np.testing.assert_array_equal(a, b)


def test_copies_keep_labels_and_go_to_other_domains_only():  # 7
    method = ssctl(dominant_domains=(FIRST, "d3"), schema=context_schema(5))
    batch = data.make_batch(method.schema, 40)
    batch = batch._replace(
        weight=tf.constant([1.0] * 36 + [2.0, 0.0, 1.0, 1.0]),
        valid=tf.constant([True] * 39 + [False]),
    )
    copies = copies_of(method, batch)
    domain, w = copies.domain.numpy(), copies.weight.numpy()
    dominant = np.isin(batch.domain.numpy(), [0, 3])
    real = batch.weight.numpy() * batch.valid.numpy() > 0
    np.testing.assert_array_equal(w > 0, dominant & real)
    assert set(domain) <= {1, 2, 4}
    _, metrics = ssctl(dominant_domains=(FIRST, "d3"), schema=context_schema(5)).loss(
        {MAIN: batch}
    )
    z = data.logits(method, with_domain(batch, domain)).astype("f8")
    each = bce(z, batch.labels.numpy()) * (w * batch.weight.numpy())[:, None]
    expected = 0.7 * each.sum() / batch.weight.numpy().sum()
    assert float(metrics["pseudo_loss"]) == pytest.approx(expected, rel=1e-4)


def test_classifier_is_blind_to_the_domain_id(method_and_batch):  # 8
    method, batch = method_and_batch
    model = method.model
    domain = batch.domain.numpy()
    moved = with_domain(batch, np.roll(domain, 1))
    (seen, z), (other, other_z) = (seen_and_classes(method, b) for b in (batch, moved))
    np.testing.assert_array_equal(z, other_z)
    np.testing.assert_array_equal(seen.x, other.x)
    np.testing.assert_array_equal(seen.context, other.context)
    changed = domain != np.roll(domain, 1)
    before, after = (data.logits(method, b) for b in (batch, moved))
    assert (before[changed] != after[changed]).all()
    np.testing.assert_array_equal(before[~changed], after[~changed])
    # The domain acts through e_d, the gates and the specific experts, nothing else.
    vectors = tf.zeros_like(model.domain_table.embeddings)
    model.domain_table.embeddings.assign(vectors)
    for variable in model.network.specific.trainable_variables:
        variable.assign(tf.repeat(variable[:1], 3, axis=0))
    np.testing.assert_array_equal(*(data.logits(method, b) for b in (batch, moved)))


def test_soft_embedding_is_a_mean_that_leaves_dominant_domains_out():  # 9
    method = ssctl(context_schema(5))
    _, z = seen_and_classes(method, data.make_batch(method.schema, 12))
    np.testing.assert_allclose(method.model._soft(tf.ones([5, 4]), z), 1.0, rtol=1e-6)
    vectors = tf.random.stateless_normal([5, 4], [1, 2])
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        value = tf.reduce_sum(method.model._soft(vectors, z) ** 2)
    gradient = tf.convert_to_tensor(tape.gradient(value, vectors)).numpy()
    np.testing.assert_array_equal(gradient[0], np.zeros(4))
    assert np.any(gradient[1:], axis=1).all()


def test_copies_leave_batch_statistics_alone():  # 10
    batch = data.make_batch(context_schema(), 40)
    moving = []
    for settings in ({}, {"pseudo_weight": 0.0}):
        method = ssctl(norm="batch", **settings)
        start = [v.numpy() for v in method.model.non_trainable_variables]
        method.train_step({MAIN: batch})
        moving.append([v.numpy() for v in method.model.non_trainable_variables])
    assert len(start) == 3 * (2 + 2 + 1 + 1)  # experts, specific, gate, tower
    for first, with_copies, without in zip(start, *moving, strict=True):
        assert not np.array_equal(first, with_copies)
        np.testing.assert_array_equal(with_copies, without)


def test_looking_twice_equals_separate_and_joined_passes():  # 12
    method = ssctl()
    batch = data.make_batch(method.schema, 30)
    copies = copies_of(method, batch)
    index = np.flatnonzero(copies.weight.numpy() > 0)
    w = 0.7 * copies.weight.numpy()[index, None]
    apart = data.take(with_domain(batch, copies.domain), index)
    joined = tf.nest.map_structure(lambda a, b: tf.concat([a, b], 0), batch, apart)
    weights = np.concatenate([np.ones([30, 1]), w]).astype("f")

    def separate():
        own = method.stacked_logits(batch, training=True)
        other = method.stacked_logits(apart, training=True)
        total = tf.reduce_sum(losses.bce(own, batch.labels))
        return total + tf.reduce_sum(w * losses.bce(other, apart.labels))

    def in_one():
        z = method.stacked_logits(joined, training=True)
        return tf.reduce_sum(weights * losses.bce(z, joined.labels))

    def ours():
        method = again
        metrics = method.loss({MAIN: batch})[1]
        return 30 * (metrics["task_loss"] + metrics["pseudo_loss"])

    again = ssctl()  # its statistics have not seen the batch
    results = []
    for owner, total in ((again, ours), (method, separate), (method, in_one)):
        groups = owner.variable_groups()
        with tf.GradientTape() as tape:
            value = total()
        found = tape.gradient(value, groups["embedding"] + groups["dense"])
        results.append((value, [tf.convert_to_tensor(g).numpy() for g in found]))
    (value, gradients), *twins_of_it = results
    for expected, expected_gradients in twins_of_it:
        assert float(value) == pytest.approx(float(expected), rel=1e-5)
        for a, b in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_absent_domain_keeps_its_expert_to_the_bit(norm):  # 13
    # Plain SGD moves a weight by its gradient alone, and the domain was there before.
    method = ssctl(norm=norm)
    method.train_step({MAIN: data.make_batch(method.schema, 12, domain=[0, 1, 2] * 4)})
    specific = method.model.network.specific
    before = [v.numpy() for v in specific.variables]
    batch = data.make_batch(method.schema, 12, domain=[1] * 12)
    for gradient in part_gradients(method, batch, "loss", specific.trainable_variables):
        assert not np.any(gradient[[0, 2]])
    assert np.isfinite(method.train_step({MAIN: batch})["loss"])
    for old, variable in zip(before, specific.variables, strict=True):
        np.testing.assert_array_equal(variable[0], old[0])
        np.testing.assert_array_equal(variable[2], old[2])
        assert not np.array_equal(variable[1], old[1])


def test_momentum_goes_on_moving_the_expert_of_an_absent_domain():  # 13
    method = ssctl(optimizer=data.FAST)  # one dense Adam for the experts of all domains
    kernel = method.model.network.specific.trainable_variables[0]
    absent = {MAIN: data.make_batch(method.schema, 12, domain=[1] * 12)}
    start = kernel.numpy()
    method.train_step(absent)
    np.testing.assert_array_equal(kernel[2], start[2])  # it has no momentum yet
    method.train_step({MAIN: data.make_batch(method.schema, 12, domain=[2] * 12)})
    before = kernel.numpy()
    method.train_step(absent)
    assert not np.array_equal(kernel[2], before[2])


def test_export_holds_classifier_and_dn_and_no_moving_mean(tmp_path):  # 14
    method = ssctl()
    batch = data.make_batch(method.schema, 20)
    method.train_step({MAIN: batch})
    allowed = method.serving_variables()
    refs = {v.ref() for v in allowed}
    network = method.model.network
    needed = [*method.variable_groups()["classifier"]]
    needed += network.differentiation["experts"].trainable_variables
    assert len(needed) == (4 + 2) + 2 * 4
    assert refs >= {v.ref() for v in needed}
    assert not refs & {v.ref() for v in method.labelling.variables}
    data.check_export(method, method.serving_model(), allowed, batch, tmp_path)


def test_export_without_sddn_leaves_the_classifier_out(tmp_path):  # 14
    method = ssctl(use_sddn=False)
    batch = data.make_batch(method.schema, 20)
    allowed = method.serving_variables()
    assert len(allowed) == len(method.model.variables) - 6
    data.check_export(method, method.serving_model(), allowed, batch, tmp_path)
