import numpy as np
import pytest
import tensorflow as tf

from models.layers import domain_rows
from models.layers.domain_rows import DomainRows
from tests.models.layers import twins

# Domain counts that matter: absent domains, one row, one domain, many rows of few.
BATCHES = {
    "absent": (4, [2, 0, 3, 0, 0, 2, 3]),
    "one_row": (3, [2]),
    "one_domain": (1, [0] * 5),
    "all_of_one": (3, [1] * 40),
    "more_domains_than_rows": (50, [49, 0, 7]),
    "early": (3, list(np.random.default_rng(0).choice(3, 900, p=[0.9, 0.08, 0.02]))),
    "full_blocks": (2, [0] * 16 + [1] * 32),
}


@pytest.fixture(params=["split", "gathered"], autouse=True)
def products(request, monkeypatch):
    """Both ways to make the products of blocks; `split` is for small D only."""
    if request.param == "gathered":
        monkeypatch.setattr(domain_rows, "MAX_SPLIT_DOMAINS", 0)
    return request.param


def make(name, **settings):
    num_domains, domain = BATCHES[name]
    return DomainRows(tf.constant(domain, tf.int32), num_domains, **settings)


def run(rows, x, kernels, bias):
    """x in input order through the block product, back in input order."""
    inside = rows.section(
        lambda h: rows.add(rows.matmul(h, kernels), bias), rows.enter(x)
    )
    return rows.leave(inside)


def weights(num_domains, seed=1):
    rng = np.random.default_rng(seed)
    kernels = rng.normal(size=(num_domains, 3, 2)).astype("f")
    return tf.constant(kernels), tf.constant(
        rng.normal(size=(num_domains, 2)), tf.float32
    )


@pytest.mark.parametrize("form", ["auto", "all", "blocks"])
@pytest.mark.parametrize("name", BATCHES)
def test_every_row_meets_its_own_domains_kernel_and_bias(name, form):
    num_domains, domain = BATCHES[name]
    x = np.random.default_rng(2).normal(size=(len(domain), 3))
    kernels, bias = weights(num_domains)
    got = run(make(name, form=form), tf.constant(x, tf.float32), kernels, bias).numpy()
    kernels, bias = twins.array(kernels), twins.array(bias)
    for row, d in enumerate(domain):
        expected = x[row] @ kernels[d] + bias[d]
        np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BATCHES)
def test_gradients_of_blocks_equal_those_of_all_domains(name):
    num_domains, domain = BATCHES[name]
    rng = np.random.default_rng(3)
    x = tf.constant(rng.normal(size=(len(domain), 3)), tf.float32)
    up = tf.constant(rng.normal(size=(len(domain), 2)), tf.float32)
    sources = [x, *weights(num_domains)]
    found = []
    for form in ("blocks", "all"):
        with tf.GradientTape() as tape:
            tape.watch(sources)
            value = tf.reduce_sum(run(make(name, form=form), *sources) * up)
        found.append([tf.convert_to_tensor(g) for g in tape.gradient(value, sources)])
    for blocks, every in zip(*found, strict=True):
        np.testing.assert_allclose(blocks, every, rtol=1e-4, atol=1e-4)
    for gradient in found[0][1:]:
        for d in set(range(num_domains)) - set(domain):
            assert not np.any(gradient[d])


@pytest.mark.parametrize("name", BATCHES)
def test_unknown_batch_size_gives_the_same(name):
    num_domains, domain = BATCHES[name]
    x = tf.random.stateless_normal([len(domain), 3], [1, 2])
    kernels, bias = weights(num_domains)

    @tf.function(
        input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int32)],
        autograph=False,
    )
    def call(x, domain):
        return run(DomainRows(domain, num_domains), x, kernels, bias)

    expected = run(make(name, form="all"), x, kernels, bias)
    got = call(x, tf.constant(domain, tf.int32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in BATCHES if n != "one_domain"])
def test_a_block_holds_rows_of_one_domain_and_all_rows_have_a_slot(name):
    _, domain = BATCHES[name]
    rows = make(name)
    assert rows.num_slots == rows.num_blocks * rows.block_rows
    slots = np.asarray(rows._to_slots(tf.constant(domain, tf.int32)[:, None]))[:, 0]
    used = np.asarray(rows.is_row)
    assert used.sum() == len(domain)
    by_block = np.repeat(rows.block_domain, rows.block_rows)
    np.testing.assert_array_equal(by_block[used], slots[used])


def test_products_are_split_by_domain_for_known_shapes_outside_xla_only(products):
    def is_split(rows, num_domains, *, jit=False):
        seen = []

        def call(domain):
            seen.append(DomainRows(domain, num_domains).split)
            return domain

        spec = tf.TensorSpec([rows], tf.int32)
        function = tf.function(
            call, input_signature=[spec], autograph=False, jit_compile=jit
        )
        function(tf.zeros([40], tf.int32))
        return seen == [True]

    on_cpu = not tf.config.list_physical_devices("GPU")
    assert is_split(40, 3) == (products == "split" and on_cpu)
    assert not is_split(40, 3, jit=True)
    assert not is_split(None, 3)
    assert not is_split(40, 129)


def test_number_of_blocks_follows_from_shapes_alone():
    counts = {
        DomainRows(tf.constant(d, tf.int32), 5).num_slots
        for d in ([0] * 64, [0, 1, 2, 3] * 16, [4] * 63 + [1])
    }
    assert len(counts) == 1
    assert isinstance(counts.pop(), int)


def test_large_batch_enters_block_order_once_and_leaves_it_once():
    rows = make("early")
    assert rows.early
    assert not make("absent").early
    x = tf.random.stateless_normal([900, 2], [1, 2])
    inside = rows.enter(x)
    assert inside.shape == [rows.num_slots, 2]
    np.testing.assert_array_equal(rows.leave(inside), x)
    assert rows.section(lambda h: h, inside) is inside
    # Integers too: ids enter before they are looked up.
    ids = tf.range(900)
    np.testing.assert_array_equal(rows.leave(rows.enter(ids)), ids)


def test_padding_slots_send_no_gradient_to_the_row_they_copy():
    rows = make("early")
    x = tf.random.stateless_normal([900, 2], [1, 2])
    with tf.GradientTape() as tape:
        tape.watch(x)
        # Every slot asks for gradient 1, padding (a copy of row 0) too; only what
        # leaves counts.
        value = tf.reduce_sum(rows.leave(rows.enter(x)))
    np.testing.assert_array_equal(tape.gradient(value, x), tf.ones([900, 2]))


def test_padding_and_invalid_rows_are_told_apart_from_rows_that_count():
    rows = make("early")
    valid = np.random.default_rng(1).random(900) < 0.5
    valid[0] = True  # the row that padding slots copy
    valid = tf.constant(valid)
    counted = np.asarray(rows.valid_rows(valid))
    assert counted.shape == (rows.num_slots,)
    assert counted.sum() == np.asarray(valid).sum()
    np.testing.assert_array_equal(
        rows.leave(tf.constant(counted)[:, None])[:, 0], valid
    )
    assert np.asarray(rows.valid_rows(None)).sum() == 900
    small = make("absent")
    assert small.valid_rows(None) is None


def test_all_rows_meet_params_of_their_own_domain():
    table = tf.constant([[1.0], [2.0], [3.0], [4.0]])
    for form in ("blocks", "all"):
        rows = make("absent", form=form)
        got = rows.section(
            lambda h, rows=rows: rows.flat(rows.view(h) * rows.param(table)),
            tf.ones([7, 1]),
        )
        np.testing.assert_array_equal(got[:, 0], [3, 1, 4, 1, 1, 3, 4])


def test_work_of_blocks_does_not_grow_with_the_number_of_domains():
    """Slots are at most the rows and one block a present domain."""
    domain = tf.zeros([4096], tf.int32)
    for num_domains in (1 + 1, 30, 100, 1000):
        rows = DomainRows(domain, num_domains)
        assert rows.num_slots <= 4096 + num_domains * rows.block_rows
        assert rows.num_slots <= 1.5 * 4096 or num_domains == 1000


def test_less_than_one_domain_is_refused():
    with pytest.raises(ValueError, match="DomainRows.num_domains must be at least 1"):
        DomainRows(tf.zeros([2], tf.int32), 0)
