import numpy as np
import pytest
import tensorflow as tf

from features.config import ConfigError
from models.optimizers import schedule
from models.optimizers.groups import (
    GroupConfig,
    OptimizerConfig,
    apply_gradients,
    make_optimizers,
)
from models.optimizers.schedule import ScheduleConfig


def _variables():
    rng = np.random.default_rng(0)
    table = tf.Variable(rng.normal(size=(20, 4)).astype("f"), name="embedding_table")
    kernel = tf.Variable(rng.normal(size=(4, 1)).astype("f"), name="kernel")
    return table, kernel


def _step(table, kernel, optimizers, ids):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(tf.gather(table, ids) @ kernel)) / 6.0
    apply_gradients(tape, loss, optimizers)
    return loss


def test_apply_gradients_steps_every_group_and_keeps_absent_rows():
    table, kernel = _variables()
    before = table.numpy(), kernel.numpy()
    groups = {"embedding": [table], "dense": [kernel]}
    optimizers = make_optimizers(OptimizerConfig(), groups)
    _step(table, kernel, optimizers, [1, 2, 2])
    moved = (table.numpy() != before[0]).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [1, 2]
    assert (kernel.numpy() != before[1]).all()


def test_variable_without_gradient_is_left_and_its_group_does_not_step():
    table, kernel = _variables()
    other = tf.Variable([1.0])
    groups = {"embedding": [table], "dense": [kernel], "fusion": [other]}
    optimizers = make_optimizers(OptimizerConfig(), groups)
    _step(table, kernel, optimizers, [1])
    assert other.numpy() == [1.0]
    counts = {name: int(o.iterations) for name, o in optimizers.items()}
    assert counts == {"embedding": 1, "dense": 1, "fusion": 0}


def test_some_groups_alone_can_step():
    table, kernel = _variables()
    groups = {"embedding": [table], "dense": [kernel]}
    optimizers = make_optimizers(OptimizerConfig(), groups)
    before = kernel.numpy()
    _step(table, kernel, {"embedding": optimizers["embedding"]}, [1])
    np.testing.assert_array_equal(kernel, before)


def test_group_config_is_used_else_that_of_dense():
    config = OptimizerConfig(
        dense=GroupConfig(learning_rate=0.5),
        groups={"fusion": GroupConfig(learning_rate=0.25)},
    )
    groups = {n: [tf.Variable([1.0])] for n in ("dense", "fusion", "tower")}
    rates = {
        name: float(o.learning_rate)
        for name, o in make_optimizers(config, {**groups, "embedding": []}).items()
    }
    assert rates == {"dense": 0.5, "fusion": 0.25, "tower": 0.5}


def test_unknown_group_in_config_is_named():
    config = OptimizerConfig(groups={"fuson": GroupConfig()})
    with pytest.raises(LookupError, match="Did you mean 'fusion'"):
        make_optimizers(config, {"dense": [], "fusion": [tf.Variable([1.0])]})


def test_variable_in_two_groups_is_refused():
    variable = tf.Variable([1.0], name="twice")
    with pytest.raises(ValueError, match="exactly once.*twice"):
        make_optimizers(OptimizerConfig(), {"dense": [variable], "x": [variable]})


def test_setting_that_the_kind_does_not_read_is_refused():
    with pytest.raises(ConfigError, match="beta_1"):
        GroupConfig.parse({"kind": "sgd", "beta_1": 0.5})


def test_slots_of_a_foreign_variable_are_refused():
    optimizers = make_optimizers(OptimizerConfig(), {"dense": [tf.Variable([1.0])]})
    with pytest.raises(LookupError, match="foreign"):
        optimizers["dense"].slots(tf.Variable([1.0], name="foreign"))


@pytest.mark.parametrize("kind", ["lazy_adam", "adagrad_decay"])
def test_resume_from_checkpoint_is_exact(kind, tmp_path):
    config = OptimizerConfig(embedding=GroupConfig(kind=kind, learning_rate=0.1))

    def fresh():
        table, kernel = _variables()
        groups = {"embedding": [table], "dense": [kernel]}
        optimizers = make_optimizers(config, groups)
        return table, kernel, optimizers

    table, kernel, optimizers = fresh()
    for ids in ([1, 2, 2], [3, 1]):
        _step(table, kernel, optimizers, ids)
    saved = tf.train.Checkpoint(t=table, k=kernel, optimizers=optimizers)
    path = saved.write(str(tmp_path / "ckpt"))
    for ids in ([1, 4], [2, 3]):
        _step(table, kernel, optimizers, ids)

    again_table, again_kernel, again = fresh()
    restored = tf.train.Checkpoint(t=again_table, k=again_kernel, optimizers=again)
    restored.read(path).assert_consumed()
    assert int(again["dense"].iterations) == 2
    for ids in ([1, 4], [2, 3]):
        _step(again_table, again_kernel, again, ids)
    np.testing.assert_array_equal(again_table, table)
    np.testing.assert_array_equal(again_kernel, kernel)


@pytest.mark.parametrize("kind", ["lazy_adam", "adagrad_decay", "adam", "sgd"])
def test_two_replicas_equal_one_device(kind, two_replicas):
    settings = GroupConfig(kind=kind, learning_rate=0.1, clip_norm=0.5, l2=1e-3)
    ids = tf.constant([1, 2, 2, 5, 7, 2])
    results = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            table, kernel = _variables()
            groups = {"embedding": [table], "dense": [kernel]}
            optimizers = make_optimizers(OptimizerConfig(embedding=settings), groups)
        parts = tf.reshape(ids, [strategy.num_replicas_in_sync, -1])

        def replica(parts=parts, table=table, kernel=kernel, optimizers=optimizers):
            context = tf.distribute.get_replica_context()
            mine = parts[context.replica_id_in_sync_group]
            return _step(table, kernel, optimizers, mine)

        @tf.function
        def steps(strategy=strategy, replica=replica):
            for _ in tf.range(4):
                strategy.run(replica)

        steps()
        assert optimizers["embedding"].iterations.numpy() == 4
        results.append((table.numpy(), kernel.numpy()))
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def _rates(config, steps):
    return [
        float(schedule.learning_rate(2.0, config, tf.constant(float(s)))) for s in steps
    ]


def test_warmup_rises_linearly_then_stays():
    config = ScheduleConfig(warmup_steps=4)
    assert _rates(config, [0, 1, 3, 9]) == [0.5, 1.0, 2.0, 2.0]


def test_cosine_falls_to_the_final_fraction():
    config = ScheduleConfig(kind="cosine", decay_steps=10, final_fraction=0.1)
    np.testing.assert_allclose(_rates(config, [0, 5, 10, 50]), [2.0, 1.1, 0.2, 0.2])


def test_exponential_decays_by_the_rate():
    config = ScheduleConfig(kind="exponential", decay_steps=10, decay_rate=0.5)
    np.testing.assert_allclose(_rates(config, [0, 10, 20]), [2.0, 1.0, 0.5], rtol=1e-6)


def test_decay_without_steps_is_refused():
    with pytest.raises(ConfigError, match="decay_steps"):
        ScheduleConfig.parse({"kind": "cosine"})
