"""Update rules against a float64 twin that loops over rows."""

import numpy as np
import pytest
import tensorflow as tf

from models.optimizers.groups import GroupConfig, make_optimizer

V, E, STEPS = 12, 3, 6
BETA_1, BETA_2 = (float(np.float32(b)) for b in (0.9, 0.999))


def _steps(all_rows=False, seed=0, ids_per_step=7):
    """Ids with duplicates; rows 10 and 11 are never looked up."""
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        ids = np.arange(V) if all_rows else rng.integers(0, 10, ids_per_step)
        yield ids.astype("i4"), rng.normal(size=(len(ids), E)).astype("f")


def _start():
    return np.random.default_rng(9).normal(size=(V, E)).astype("f")


class Twin:
    """One row-wise optimiser, one row at a time, in float64."""

    def __init__(self, kind, l2=0.0, lr=0.1, floor=0.1, rate=0.9, every=2):
        self.kind, self.l2, self.lr = kind, l2, lr
        self.floor, self.rate, self.every = floor, rate, every
        self.w = _start().astype(np.float64)
        self.m, self.v = np.zeros((V, E)), np.zeros((V, E))
        self.a, self.decays = np.full((V, E), floor), np.zeros(V, int)
        self.step = 0

    def apply(self, ids, values):
        for row in sorted(set(ids.tolist())):
            g = sum(values[i].astype(np.float64) for i in np.flatnonzero(ids == row))
            g = g + self.l2 * self.w[row]
            getattr(self, self.kind)(row, g)
        self.step += 1

    def sgd(self, row, g):
        self.w[row] -= self.lr * g

    def lazy_adam(self, row, g):
        t = self.step + 1
        self.m[row] = BETA_1 * self.m[row] + (1 - BETA_1) * g
        self.v[row] = BETA_2 * self.v[row] + (1 - BETA_2) * g * g
        m, v = self.m[row] / (1 - BETA_1**t), self.v[row] / (1 - BETA_2**t)
        self.w[row] -= self.lr * m / (np.sqrt(v) + 1e-8)

    def lazy_adagrad(self, row, g):
        self.a[row] += g * g
        self.w[row] -= self.lr * g / (np.sqrt(self.a[row]) + 1e-8)

    def adagrad_decay(self, row, g):
        while self.decays[row] < self.step // self.every:
            self.a[row] = np.maximum(self.a[row] * self.rate, self.floor)
            self.decays[row] += 1
        self.lazy_adagrad(row, g)


def _make(kind, **settings):
    if kind == "adagrad_decay":
        settings |= {"accumulator_decay_steps": 2}
    variable = tf.Variable(_start(), name="table")
    config = GroupConfig(kind=kind, learning_rate=0.1, **settings)
    return variable, make_optimizer(config, [variable], "embedding")


def _run(variable, optimizer, steps):
    for ids, values in steps:
        slices = tf.IndexedSlices(
            tf.constant(values), tf.constant(ids), tf.constant([V, E])
        )
        optimizer.apply_gradients([(slices, variable)])


LAZY = ["lazy_adam", "lazy_adagrad", "adagrad_decay", "sgd"]


@pytest.mark.parametrize("ids_per_step", [7, 20], ids=["few_ids", "more_than_rows"])
@pytest.mark.parametrize("l2", [0.0, 0.05])
@pytest.mark.parametrize("kind", LAZY[:3])
def test_lazy_update_equals_float64_twin(kind, l2, ids_per_step):
    variable, optimizer = _make(kind, l2=l2)
    twin = Twin(kind, l2)
    for ids, values in _steps(ids_per_step=ids_per_step):
        twin.apply(ids, values)
    _run(variable, optimizer, _steps(ids_per_step=ids_per_step))
    np.testing.assert_allclose(variable, twin.w, rtol=2e-5, atol=2e-6)


def test_sgd_update_equals_float64_twin():
    variable, optimizer = _make("sgd")
    twin = Twin("sgd")
    for ids, values in _steps():
        twin.apply(ids, values)
    _run(variable, optimizer, _steps())
    np.testing.assert_allclose(variable, twin.w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ids_per_step", [7, 20])
@pytest.mark.parametrize("kind", LAZY)
def test_absent_rows_and_their_slots_keep_every_bit(kind, ids_per_step):
    variable, optimizer = _make(kind)
    before = {n: s.numpy() for n, s in optimizer.slots(variable).items()}
    _run(variable, optimizer, _steps(ids_per_step=ids_per_step))
    np.testing.assert_array_equal(variable[10:], _start()[10:])
    for name, slot in optimizer.slots(variable).items():
        np.testing.assert_array_equal(slot[10:], before[name][10:])


def test_row_seen_once_stays_in_later_steps():
    variable, optimizer = _make("lazy_adam")
    steps = list(_steps())
    _run(variable, optimizer, [(np.array([11], "i4"), np.ones((1, E), "f"))])
    once = variable[11].numpy()
    assert not np.array_equal(once, _start()[11])
    _run(variable, optimizer, steps)
    np.testing.assert_array_equal(variable[11], once)


@pytest.mark.parametrize(
    ("lazy", "plain"), [("lazy_adam", "adam"), ("lazy_adagrad", "adagrad")]
)
def test_lazy_equals_plain_when_every_row_is_present(lazy, plain):
    sparse, sparse_optimizer = _make(lazy)
    _run(sparse, sparse_optimizer, _steps(all_rows=True))
    dense, dense_optimizer = _make(plain)
    for _, values in _steps(all_rows=True):
        dense_optimizer.apply_gradients([(tf.constant(values), dense)])
    np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=1e-6)


def test_plain_adam_moves_rows_by_momentum_after_their_step():
    variable, optimizer = _make("adam")
    _run(variable, optimizer, [(np.array([11], "i4"), np.ones((1, E), "f"))])
    once = variable[11].numpy()
    _run(variable, optimizer, [(np.array([0], "i4"), np.ones((1, E), "f"))])
    assert (variable[11].numpy() < once).all()


@pytest.mark.parametrize("kind", LAZY[:3])
def test_choice_of_path_changes_no_bit(kind):
    """Ids of unknown number take the unique path, known ones >= V the masked path."""
    results = []
    for shape in ([20], [None]):
        variable, optimizer = _make(kind)

        def step(ids, values, variable=variable, optimizer=optimizer):
            slices = tf.IndexedSlices(values, ids, tf.constant([V, E]))
            optimizer.apply_gradients([(slices, variable)])

        graph = tf.function(
            step,
            input_signature=[
                tf.TensorSpec(shape, tf.int32),
                tf.TensorSpec([*shape, E], tf.float32),
            ],
        )
        for ids, values in _steps(ids_per_step=20):
            graph(ids, values)
        results.append(variable.numpy())
    np.testing.assert_array_equal(results[0], results[1])


def test_dense_adagrad_decay_equals_float64_twin():
    variable, optimizer = _make("adagrad_decay")
    twin = Twin("adagrad_decay")
    for ids, values in _steps(all_rows=True):
        twin.apply(ids, values)
        optimizer.apply_gradients([(tf.constant(values), variable)])
    np.testing.assert_allclose(variable, twin.w, rtol=2e-5, atol=2e-6)


def test_long_absent_row_gets_all_decays_down_to_the_floor():
    variable, optimizer = _make("adagrad_decay")
    accumulator = optimizer.slots(variable)["accumulator"]
    accumulator.assign(tf.fill([V, E], 0.115))
    optimizer.iterations.assign(5)  # two decays due: 0.115 * 0.81 < 0.1
    zero = np.zeros((1, E), "f")
    _run(variable, optimizer, [(np.array([3], "i4"), zero)])
    np.testing.assert_allclose(accumulator[3], [0.1] * E, rtol=1e-6)
    np.testing.assert_allclose(accumulator[4], [0.115] * E, rtol=1e-6)
    assert optimizer.slots(variable)["decays"][3].numpy() == 2


def test_clip_norm_counts_the_sum_of_duplicate_rows():
    variable, optimizer = _make("sgd", clip_norm=1.0)
    values = np.zeros((2, E), "f")
    values[:, 0] = 2.0  # the same row twice: gradient 4, clipped to 1
    _run(variable, optimizer, [(np.array([5, 5], "i4"), values)])
    expected = _start()[5] - [0.1, 0, 0]
    np.testing.assert_allclose(variable[5], expected, rtol=1e-5)


def test_xla_gives_the_same_rows():
    results = []
    for jit in (False, True):
        variable, optimizer = _make("lazy_adam")

        @tf.function(jit_compile=jit)
        def step(ids, values, variable=variable, optimizer=optimizer):
            slices = tf.IndexedSlices(values, ids, tf.constant([V, E]))
            optimizer.apply_gradients([(slices, variable)])

        for ids, values in _steps():
            step(tf.constant(ids), tf.constant(values))
        results.append(variable.numpy())
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-6)
