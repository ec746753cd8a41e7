import numpy as np
import pytest
import tensorflow as tf

from features.spec import PAD_ID
from models.layers.local_activation import LocalActivation
from models.layers.sequence_attention import (
    HashedTargetAttention,
    ShortLongAttention,
    TargetAttention,
    latest,
    masked_softmax,
)
from tests.models.layers import twins

ROWS, LENGTH, WIDTH = 5, 7, 6


def rows(*, seed=0, length=LENGTH):
    """Targets, items and a mask; row 0 has no item, row 1 has one, row 2 all."""
    rng = np.random.default_rng(seed)
    mask = rng.random((ROWS, length)) < 0.6
    mask[0], mask[1], mask[2] = False, np.arange(length) == 2, True
    return (
        tf.constant(rng.normal(size=(ROWS, WIDTH)), tf.float32),
        tf.constant(rng.normal(size=(ROWS, length, WIDTH)), tf.float32),
        tf.constant(mask),
    )


def hashed(top_k, *, num_bits=16, seed=3):
    tf.random.set_seed(seed)
    return HashedTargetAttention(2, 4, top_k=top_k, num_bits=num_bits)


def attend(layer, target, items, mask):
    """Multi-head attention with projected keys and values, float64, row by row."""
    wq, wk, wv, wo = map(twins.array, layer.weights[:4])
    units = layer.head_units
    out = np.zeros([len(target), layer.units])
    for b in range(len(target)):
        real = twins.array(items[b])[mask[b].numpy()]
        if len(real):
            query, keys, values = twins.array(target[b]) @ wq, real @ wk, real @ wv
            heads = []
            for h in range(layer.num_heads):
                own = slice(h * units, (h + 1) * units)
                weights = twins.softmax(keys[:, own] @ query[own] / np.sqrt(units))
                heads.append(weights @ values[:, own])
            out[b] = np.concatenate(heads) @ wo
    return out


def test_target_attention_equals_projected_attention_in_float64():
    layer, (target, items, mask) = TargetAttention(2, 4), rows()
    layer(target, items, mask)
    twins.randomise(layer)
    np.testing.assert_allclose(
        layer(target, items, mask),
        attend(layer, target, items, mask),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("make", [lambda: TargetAttention(2, 4), lambda: hashed(3)])
def test_row_without_items_gives_zeros_and_finite_gradients(make):
    layer, (target, items, mask) = make(), rows()
    with tf.GradientTape() as tape:
        tape.watch([target, items])
        out = layer(target, items, mask)
        value = tf.reduce_sum(out**2)
    assert not np.any(out[0])
    assert np.any(out[1])
    found = tape.gradient(value, [target, items, *layer.trainable_variables])
    assert all(np.isfinite(tf.convert_to_tensor(g)).all() for g in found)
    assert not np.any(found[1][0])


@pytest.mark.parametrize("make", [lambda: TargetAttention(2, 4), lambda: hashed(3)])
def test_padded_items_never_count(make):
    layer, (target, items, mask) = make(), rows()
    other = tf.where(mask[..., tf.newaxis], items, 100.0)
    np.testing.assert_array_equal(
        layer(target, items, mask), layer(target, other, mask)
    )


def test_codes_do_not_depend_on_length():
    layer, (target, items, mask) = hashed(3), rows()
    layer(target, items, mask)
    codes = layer.codes(items)
    assert set(np.unique(codes)) == {-1.0, 1.0}
    for scale in (1e-3, 0.7, 2.0, 1e4):
        np.testing.assert_array_equal(layer.codes(scale * items), codes)
    np.testing.assert_array_equal(layer.codes(-items), -codes)


@pytest.mark.parametrize("top_k", [LENGTH, LENGTH + 1, 1000])
def test_top_k_of_the_whole_length_is_full_attention(top_k):
    layer, (target, items, mask) = hashed(top_k), rows()
    np.testing.assert_array_equal(
        layer(target, items, mask), layer.attention(target, items, mask)
    )


def test_rows_with_fewer_items_than_top_k_get_full_attention():
    layer, (target, items, _) = hashed(4), rows()
    mask = tf.constant(np.arange(LENGTH) % 2 == 1)[tf.newaxis, :]  # three items
    mask = tf.repeat(mask, ROWS, axis=0)
    np.testing.assert_allclose(
        layer(target, items, mask),
        layer.attention(target, items, mask),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_nearest_are_those_of_least_hamming_distance_the_later_first(top_k):
    layer, (target, items, mask) = hashed(top_k), rows(seed=4)
    layer(target, items, mask)
    matrix = twins.array(layer.hash_matrix)
    index = layer.nearest(target, items, mask).numpy()
    for b in range(ROWS):
        bits = twins.array(items[b]) @ matrix >= 0
        distance = (bits != (twins.array(target[b]) @ matrix >= 0)).sum(-1)
        real = np.flatnonzero(mask[b])
        order = sorted(real, key=lambda i: (distance[i], -i))[:top_k]
        assert index[b, : len(order)].tolist() == order


def test_padding_is_never_taken_while_real_items_remain():
    target, items, _ = rows(length=40)
    rng = np.random.default_rng(1)
    mask = tf.constant(rng.random((ROWS, 40)) < 0.3)
    layer = hashed(5)
    layer(target, items, mask)
    # Padding that would be nearest of all: the target itself.
    items = tf.where(mask[..., tf.newaxis], items, target[:, tf.newaxis, :])
    index = layer.nearest(target, items, mask)
    taken = tf.gather(mask, index, batch_dims=1).numpy().sum(-1)
    np.testing.assert_array_equal(taken, np.minimum(mask.numpy().sum(-1), 5))


def test_more_bits_find_more_of_the_exact_nearest():
    rng = np.random.default_rng(0)
    target = tf.constant(rng.normal(size=(60, 16)), tf.float32)
    items = tf.constant(rng.normal(size=(60, 100, 16)), tf.float32)
    unit = tf.math.l2_normalize(items, -1)
    exact = tf.math.top_k(tf.linalg.matvec(unit, target), 10).indices.numpy()

    def found(num_bits):
        layer = hashed(10, num_bits=num_bits)
        layer(target, items, tf.ones([60, 100], tf.bool))
        index = layer.nearest(target, items, tf.ones([60, 100], tf.bool)).numpy()
        hits = [len(set(a) & set(b)) for a, b in zip(index, exact, strict=True)]
        return np.mean(hits) / 10

    rates = [found(bits) for bits in (4, 32, 256)]
    assert rates[0] < rates[1] < rates[2]
    assert rates[2] > 0.6


def test_hashing_has_no_gradient_and_its_matrix_is_saved_not_trained():
    layer, (target, items, mask) = hashed(3), rows()
    layer(target, items, mask)
    assert [v.shape.as_list() for v in layer.non_trainable_variables] == [[WIDTH, 16]]
    assert not layer.hash_matrix.trainable
    with tf.GradientTape() as tape:
        tape.watch([target, items])
        codes = tf.reduce_sum(layer.codes(items)) + tf.reduce_sum(layer.codes(target))
    assert tape.gradient(codes, [target, items]) == [None, None]


def test_codes_are_the_same_in_a_graph_and_after_saving(tmp_path):
    layer, (target, items, mask) = hashed(3), rows()
    expected, codes = layer(target, items, mask), layer.codes(items)
    call = tf.function(layer.codes, jit_compile=True, autograph=False)
    np.testing.assert_array_equal(call(items), codes)
    path = tf.train.Checkpoint(layer=layer).write(str(tmp_path / "weights"))
    other = hashed(3, seed=4)
    other(target, items, mask)
    assert np.any(other.codes(items) != codes)
    tf.train.Checkpoint(layer=other).read(path).assert_consumed()
    np.testing.assert_array_equal(other.codes(items), codes)
    np.testing.assert_array_equal(other(target, items, mask), expected)


def table_lookup(table):
    return lambda ids: tf.gather(table, ids)


def test_only_the_items_taken_get_a_gradient():
    values = np.random.default_rng(0).normal(size=(20, WIDTH))
    table = tf.Variable(values, dtype=tf.float32)
    target, items, mask = rows(length=9)
    layer = hashed(3)
    layer(target, items, mask)
    ids = tf.constant([[3, 4, 5, 6, 7, 8, 9, 10, 11]])
    with tf.GradientTape() as tape:
        out = tf.reduce_sum(layer.over_ids(target[:1], ids, table_lookup(table)))
    gradient = tape.gradient(out, table)
    index = layer.nearest(target[:1], tf.gather(table, ids), ids != PAD_ID)
    taken = tf.gather(ids, index, batch_dims=1)
    assert isinstance(gradient, tf.IndexedSlices)
    assert sorted(gradient.indices.numpy()) == sorted(taken.numpy().ravel())


def test_over_ids_equals_the_call_on_their_items():
    table = tf.constant(np.random.default_rng(0).normal(size=(20, WIDTH)), tf.float32)
    target = rows()[0]
    ids = tf.constant(np.random.default_rng(1).integers(0, 20, (ROWS, 9)), tf.int32)
    layer = hashed(3)
    expected = layer(target, tf.gather(table, ids), ids != PAD_ID)
    out = layer.over_ids(target, ids, table_lookup(table))
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


def test_too_many_bits_for_the_length_are_refused():
    layer = hashed(1, num_bits=512)
    items = tf.zeros([1, 40_000, 1])
    layer.build([1, 1])
    with pytest.raises(ValueError, match="num_bits"):
        layer.nearest(tf.zeros([1, 1]), items, tf.ones([1, 40_000], tf.bool))


def test_latest_takes_the_last_items_wherever_padding_is():
    ids = tf.constant(
        [[1, 2, 3, 4, 0, 0], [0, 7, 0, 8, 9, 0], [0] * 6, [5, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        latest(ids, 3), [[4, 3, 2], [9, 8, 7], [0, 0, 0], [5, 0, 0]]
    )
    np.testing.assert_array_equal(latest(ids, 6), ids)


def test_short_part_sees_the_latest_items_only():
    table = tf.constant(np.random.default_rng(0).normal(size=(20, WIDTH)), tf.float32)
    layer = ShortLongAttention(6, 2, 4, short_length=2, top_k=3, num_bits=8)
    target = rows()[0][:1]
    ids = tf.constant([[3, 4, 5, 6, 7, 0]])
    short = layer(target, ids, table_lookup(table))[:, :8]
    other = tf.constant([[13, 14, 15, 6, 7, 0]])
    np.testing.assert_array_equal(
        layer(target, other, table_lookup(table))[:, :8], short
    )


def test_sequence_no_longer_than_the_short_part_is_not_hashed():
    table = tf.constant(np.random.default_rng(0).normal(size=(20, WIDTH)), tf.float32)
    layer = ShortLongAttention(4, 2, 4, short_length=4, top_k=3, num_bits=8)
    out = layer(rows()[0][:1], tf.constant([[3, 4, 5, 0]]), table_lookup(table))
    assert out.shape == [1, 8]
    assert layer.non_trainable_variables == []


def test_masked_softmax_by_hand():
    scores = tf.constant([[0.0, np.log(3.0), 50.0], [1.0, 2.0, 3.0]])
    mask = tf.constant([[True, True, False], [False] * 3])
    np.testing.assert_allclose(
        masked_softmax(scores, mask), [[0.25, 0.75, 0], [0, 0, 0]], rtol=1e-6
    )
    half = masked_softmax(tf.cast(scores, tf.bfloat16), mask)
    assert half.dtype == tf.bfloat16


def activation(**settings):
    layer = LocalActivation((5, 3), **settings)
    layer.build([None, WIDTH])
    return layer


def pooled(layer, target, items, mask):
    """The layer on `items` given as rows of a table of their own."""
    flat = tf.reshape(items, [-1, WIDTH])
    table = tf.concat([tf.fill([1, WIDTH], 9.0), flat], axis=0)
    ids = tf.reshape(tf.range(1, len(flat) + 1), items.shape[:2])
    return layer(target, tf.where(mask, ids, PAD_ID), table_lookup(table))


@pytest.mark.parametrize("softmax", [False, True])
def test_local_activation_equals_the_formula_in_float64(softmax):
    layer, (target, items, mask) = activation(softmax=softmax), rows()
    pooled(layer, target, items, mask)
    twins.randomise(layer)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    expected = np.zeros([ROWS, WIDTH])
    for b in range(ROWS):
        own, real = twins.array(target[b]), twins.array(items[b])[mask[b].numpy()]
        q = np.broadcast_to(own, real.shape)
        x = np.concatenate([q, real, q - real, q * real], axis=-1)
        x = twins.block(x, layer.kernel, layer.bias, activation=sigmoid)
        hidden, last = layer.rest.blocks
        x = twins.block(x, hidden.kernel, hidden.bias, activation=sigmoid)
        x = (x @ twins.array(last.kernel) + twins.array(last.bias))[:, 0]
        if len(real):
            expected[b] = (twins.softmax(x) if softmax else x) @ real
    out = pooled(layer, target, items, mask)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)
    assert not np.any(out[0])


@pytest.mark.parametrize("softmax", [False, True])
def test_local_activation_does_not_see_order_or_padding(softmax):
    layer, (target, items, mask) = activation(softmax=softmax), rows()
    expected = pooled(layer, target, items, mask)
    order = np.random.default_rng(2).permutation(LENGTH)
    moved = [tf.gather(x, order, axis=1) for x in (items, mask)]
    np.testing.assert_allclose(
        pooled(layer, target, *moved), expected, rtol=1e-4, atol=1e-6
    )
    longer = [tf.pad(items, [[0, 0], [0, 3], [0, 0]]), tf.pad(mask, [[0, 0], [0, 3]])]
    np.testing.assert_allclose(
        pooled(layer, target, *longer), expected, rtol=1e-4, atol=1e-6
    )


def test_constant_local_activation_with_softmax_is_the_mean_of_the_items():
    layer, (target, items, mask) = activation(softmax=True), rows()
    pooled(layer, target, items, mask)
    layer.rest.blocks[-1].kernel.assign(tf.zeros([3, 1]))
    out = pooled(layer, target, items, mask)
    for b in range(1, ROWS):
        mean = items[b].numpy()[mask[b].numpy()].mean(0)
        np.testing.assert_allclose(out[b], mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        TargetAttention(2, 4),
        HashedTargetAttention(2, 4, top_k=3, num_bits=8),
        ShortLongAttention(9, 2, 4, short_length=2, top_k=3, num_bits=8),
        LocalActivation((5, 3), activation="relu", softmax=True),
    ],
)
def test_config_round_trip(layer):
    twins.check_config(layer)
