import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from features.schema import FeatureInfo
from models.layers import representation
from models.layers.representation import RepresentationEnhancement
from models.layers.tokens import TokenEmbeddings

FIELDS = (
    FeatureInfo("user", "user", "id", "user", 8, 3),
    FeatureInfo("item", "item", "id", "item", 6, 3),
    FeatureInfo("here", "sequence", "sequence", "item", 6, 3, 2),
    FeatureInfo("there", "sequence", "sequence", "item", 6, 3, 2),
)
TARGET = {
    "user": tf.constant([2, 3, 4, 5, 6]),
    "item": tf.constant([2, 2, 3, 4, 5]),
    "here": tf.constant([[2, 3], [4, 0], [0, 0], [5, 2], [3, 3]]),
    "there": tf.constant([[3, 2], [0, 0], [5, 4], [2, 0], [4, 5]]),
}


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def make(
    num_sources=1, seen=((0, 2), (0, 4), (0, 5)), sequences=(), kind="relu", stop="none"
):
    keras.utils.set_random_seed(1)
    target = TokenEmbeddings(FIELDS, stddev=1.0)
    source = TokenEmbeddings(FIELDS, num_sources=num_sources, stddev=1.0)
    for layer in (target, source):
        layer.build(None)
    ren = RepresentationEnhancement(
        ["user"], source, sequences=sequences, kind=kind, stop=stop
    )
    ids, sources = zip(*((u, s) for s, u in seen), strict=True)
    ren.note(
        {"user": tf.constant(ids)},
        tf.constant(sources),
        source,
        tf.ones([len(ids)]),
    )
    return ren, target, source


def share(ren, target, source, mask=None):
    mask = tf.ones([5]) if mask is None else tf.constant(mask)
    return sum(ren.share(TARGET, target.by_field(TARGET), source, mask))


def rows(layer, name, ids):
    return layer.fields.lookup(name, tf.constant([ids]))[0].numpy()


@pytest.mark.parametrize(
    ("kind", "cost"),
    [("relu", lambda c: max(c, 0)), ("square", lambda c: c * c), ("literal", float)],
)
def test_id_term_is_the_mean_over_ids_that_both_have(kind, cost):
    ren, target, source = make(kind=kind)
    pairs = zip(
        rows(target, "user", [2, 4, 5]), rows(source, "user", [2, 4, 5]), strict=True
    )
    expected = np.mean([cost(cosine(a, b)) for a, b in pairs])
    assert float(share(ren, target, source)) == pytest.approx(expected, abs=1e-6)


def test_several_sources_give_a_pair_each():
    ren, target, source = make(
        num_sources=2, seen=((0, 2), (1, 2), (1, 6)), kind="literal"
    )
    own, other = rows(target, "user", [2, 6]), rows(source, "user", [2, 10, 14])
    expected = np.mean(
        [
            cosine(own[0], other[0]),
            cosine(own[0], other[1]),
            cosine(own[1], other[2]),
        ]
    )
    assert float(share(ren, target, source)) == pytest.approx(expected, abs=1e-6)


def test_sequence_term_is_the_mean_over_rows_with_both_histories():
    ren, target, source = make(
        sequences=("here", "there"), seen=((0, 7),), kind="literal"
    )
    means = [
        (
            rows(target, "item", here).mean(0),
            rows(source, "item", there).mean(0),
        )
        for here, there in (([2, 3], [3, 2]), ([5, 2], [2]), ([3, 3], [4, 5]))
    ]
    expected = -np.mean([cosine(a, b) for a, b in means])
    assert float(share(ren, target, source)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("stop", "moved"),
    [
        ("none", [True, True]),
        ("target", [False, True]),
        ("source", [True, False]),
        ("both", [False, False]),
    ],
)
def test_sequence_term_leaves_the_stopped_sides_items_alone(stop, moved):
    # Squares have a gradient whatever the sign of a cosine.
    ren, target, source = make(sequences=("here", "there"), stop=stop, kind="square")
    tables = [layer.fields.tables[0] for layer in (target, source)]
    with tf.GradientTape(persistent=True) as tape:
        terms = ren.share(TARGET, target.by_field(TARGET), source, tf.ones([5]))
    for table, moves in zip(tables, moved, strict=True):
        for term, is_item in ((terms[0], [False]), (terms[1], [True] * moves)):
            found = tape.gradient(term, table)
            rows = [] if found is None else tf.convert_to_tensor(found).numpy()
            # The 8 users lie before the 6 items.
            rows = np.flatnonzero([np.any(row) for row in rows])
            assert sorted(set(rows >= 8)) == is_item
    free, *_ = make(sequences=("here", "there"), kind="square")
    same = free.share(TARGET, target.by_field(TARGET), source, tf.ones([5]))
    np.testing.assert_array_equal(same, terms)


def test_ids_without_a_counterpart_get_no_gradient():
    ren, target, source = make(kind="literal")
    tables = [target.fields.tables[0], source.fields.tables[0]]
    with tf.GradientTape() as tape:
        value = share(ren, target, source, [1.0, 1.0, 1.0, 0.0, 1.0])
    for gradient in tape.gradient(value, tables):
        moved = np.flatnonzero(np.any(tf.convert_to_tensor(gradient), axis=1))
        # Users 2 and 4: seen in the source; 5 is a padding row here, 3 and 6 are not.
        np.testing.assert_array_equal(moved, [2, 4])


def test_value_does_not_change_with_the_scale_of_embeddings():
    ren, target, source = make(sequences=("here", "there"), kind="literal")
    before = float(share(ren, target, source))
    for layer, factor in ((target, 30.0), (source, 0.01)):
        for table in layer.fields.tables:
            table.assign(table * factor)
    assert float(share(ren, target, source)) == pytest.approx(before, abs=1e-5)
    assert abs(before) > 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_value_lies_between_minus_two_and_two(seed):
    rng = np.random.default_rng(seed)
    ren, target, source = make(sequences=("here", "there"), kind="literal")
    for layer in (target, source):
        for table in layer.fields.tables:
            table.assign(rng.normal(size=table.shape) * (1 - 2 * (seed % 2)))
    assert -2.0 <= float(share(ren, target, source)) <= 2.0


def test_unknown_padding_and_foreign_ids_are_no_pairs():
    ren, target, source = make(kind="literal", seen=((0, 0), (0, 1), (0, 99)))
    odd = dict(TARGET, user=tf.constant([0, 1, 99, -3, 7]))
    ids, _ = ren.share(odd, target.by_field(odd), source, tf.ones([5]))
    assert float(ids) == 0.0
    assert not np.any(ren.seen["user"].numpy()[1:])


@pytest.mark.parametrize("a", [[0.0, 0.0], [1e-9, 0.0]])
def test_vector_without_direction_has_cosine_zero_and_no_gradient(a):
    a, b = tf.Variable([a]), tf.Variable([[3.0, 4.0]])
    with tf.GradientTape() as tape:
        value, defined = representation.cosine(a, b)
    assert float(value[0]) == 0.0
    assert float(defined[0]) == 0.0
    for gradient in tape.gradient(value, [a, b]):
        np.testing.assert_array_equal(gradient, [[0, 0]])


def test_cosine_of_bfloat16_is_counted_in_float32():
    a = tf.constant([[1.0, 2.0]], tf.bfloat16)
    value, _ = representation.cosine(a, a)
    assert value.dtype == tf.float32
    assert float(value[0]) == pytest.approx(1.0, abs=1e-6)
