import numpy as np
import pytest
import tensorflow as tf

from features.schema import FeatureInfo
from models.layers.embeddings import FieldEmbeddings
from tests.models.layers import twins

UNKNOWN = 1
FIELDS = (
    FeatureInfo("user", "user", "id", "user", 7, 3),
    FeatureInfo("item", "item", "id", "item", 10, 3),
    FeatureInfo("tags", "item", "ids", "tags", 5, 2, 3),
    FeatureInfo("price", "item", "number"),
    FeatureInfo("history", "sequence", "sequence", "item", 10, 3, 4),
    FeatureInfo("indicator", "domain", "id", "indicator", 2, 2),
)
# Tables of one width lie one after the other, in order of appearance.
USER, ITEM, TAGS, INDICATOR = 0, 7, 0, 5


def batch():
    return {
        "user": tf.constant([2, 6, 0]),
        "item": tf.constant([9, 3, 4]),
        "tags": tf.constant([[2, 4, 0], [3, 3, 2], [0, 0, 0]]),
        "price": tf.constant([0.5, -1.0, 2.0]),
        "history": tf.constant([[9, 0, 0, 0], [3, 4, 5, 6], [0, 0, 2, 2]]),
        "domain": tf.constant([0, 1, 1]),
    }


def make(features=FIELDS, **settings):
    layer = FieldEmbeddings(features, stddev=0.5, **settings)
    layer(batch())
    return layer


def mean(table, first, ids):
    kept = [table[first + i] for i in ids if i]
    return np.mean(kept, axis=0) if kept else np.zeros(table.shape[1])


def expected(layer):
    """Every field by hand: [B, width] by name."""
    wide, narrow = (twins.array(t) for t in layer.tables)
    data = {k: v.numpy() for k, v in batch().items()}
    return {
        "user": np.stack([wide[USER + i] for i in data["user"]]),
        "item": np.stack([wide[ITEM + i] for i in data["item"]]),
        "tags": np.stack([mean(narrow, TAGS, ids) for ids in data["tags"]]),
        "price": data["price"][:, None],
        "history": np.stack([mean(wide, ITEM, ids) for ids in data["history"]]),
        "indicator": np.stack([narrow[INDICATOR + i] for i in data["domain"]]),
    }


def test_fields_equal_lookups_and_masked_means_by_hand():
    layer = make()
    by_hand, found = expected(layer), layer.by_field(batch())
    assert list(found) == [f.name for f in FIELDS]
    for name, value in by_hand.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_row_is_single_ids_then_lists_then_numbers():
    layer = make()
    by_hand = expected(layer)
    order = ("user", "item", "indicator", "history", "tags", "price")
    row = np.concatenate([by_hand[name] for name in order], axis=1)
    np.testing.assert_allclose(layer(batch()), row, rtol=1e-5)
    assert layer.width == row.shape[1] == 3 + 3 + 2 + 3 + 2 + 1


def test_sequence_shares_the_table_of_its_feature():
    layer = make()
    found = layer.by_field(batch())
    # Row 0 of the history holds the item of row 0 alone.
    np.testing.assert_allclose(found["history"][0], found["item"][0], rtol=1e-6)
    rows, mask = layer.sequence(batch(), "history")
    assert rows.shape == [3, 4, 3]
    np.testing.assert_array_equal(mask, batch()["history"] != 0)
    np.testing.assert_allclose(rows[1, 0], found["item"][1], rtol=1e-6)


def test_padding_is_zero_and_gets_no_gradient():
    layer = make()
    found = layer.by_field(batch())
    assert not np.any(found["user"][2])
    assert not np.any(found["tags"][2])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(
            layer(batch()) * tf.random.stateless_normal([3, 14], [1, 2])
        )
    wide, narrow = tape.gradient(value, layer.tables)
    for gradient, pads in ((wide, [USER, ITEM]), (narrow, [TAGS])):
        dense = tf.convert_to_tensor(gradient).numpy()
        assert not np.any(dense[pads])
        assert np.any(dense)


def test_domain_indicator_of_index_0_is_no_padding():
    layer = make()
    assert np.all(layer.tables[1].numpy()[INDICATOR] != 0)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer.by_field(batch())["indicator"])
    gradient = tf.convert_to_tensor(tape.gradient(value, layer.tables[1]))
    np.testing.assert_array_equal(gradient[INDICATOR], [1.0, 1.0])
    np.testing.assert_array_equal(gradient[INDICATOR + 1], [2.0, 2.0])


def test_gradients_are_sparse_and_sum_over_fields_that_share_a_table():
    layer = make()
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(batch()))
    gradients = tape.gradient(value, layer.tables)
    assert all(isinstance(g, tf.IndexedSlices) for g in gradients)
    # A slice a lookup: 2 single and 4 listed ids a row, in 3 rows.
    assert gradients[0].values.shape == [3 * (2 + 4), 3]
    dense = tf.convert_to_tensor(gradients[0]).numpy()
    # Item 9: once as the item, once as a history of its own; item 4: once as the
    # item, once as a quarter of a history.
    np.testing.assert_allclose(dense[ITEM + 9], [2.0] * 3)
    np.testing.assert_allclose(dense[ITEM + 4], [1.25] * 3)
    assert not np.any(dense[ITEM + 8])


def test_mean_gradient_equals_one_over_the_number_of_ids():
    layer = make()
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer.by_field(batch())["tags"])
    gradient = tf.convert_to_tensor(tape.gradient(value, layer.tables[1])).numpy()
    by_hand = {0: 0, 1: 0, 2: 1 / 2 + 1 / 3, 3: 2 / 3, 4: 1 / 2}
    np.testing.assert_allclose(
        gradient[:5], [[v] * 2 for v in by_hand.values()], rtol=1e-6
    )


@pytest.mark.parametrize("bad", [-1, 10, 10**6])
def test_id_outside_its_table_reads_as_unknown_and_stays_in_it(bad):
    layer = make()
    odd = batch() | {"item": tf.fill([3], bad), "history": tf.fill([3, 4], bad)}
    plain = batch() | {
        "item": tf.fill([3], UNKNOWN),
        "history": tf.fill([3, 4], UNKNOWN),
    }
    np.testing.assert_array_equal(layer(odd), layer(plain))


def test_large_tables_have_a_variable_of_their_own_and_score_the_same():
    together, apart = make(), make(shared_rows=7)
    assert [tuple(t.shape) for t in together.tables] == [(17, 3), (7, 2)]
    assert [tuple(t.shape) for t in apart.tables] == [(7, 3), (10, 3), (7, 2)]
    assert len(make(shared_rows=10).tables) == 2
    wide = together.tables[0]
    apart.set_weights([wide[:7], wide[7:], together.tables[1]])
    got, want = apart.by_field(batch()), together.by_field(batch())
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_fields_of_one_width_are_read_by_one_gather_for_ids_and_one_for_lists():
    layer = make()
    graph = tf.function(layer, autograph=False).get_concrete_function(batch()).graph
    gathers = [op for op in graph.get_operations() if op.type == "ResourceGather"]
    assert len(gathers) == 4  # two widths, each with single ids and lists


def test_start_values_have_the_given_spread_and_padding_is_zero():
    tf.random.set_seed(0)
    info = FeatureInfo("user", "user", "id", "user", 5000, 4)
    layer = FieldEmbeddings([info], stddev=0.02)
    layer({"user": tf.constant([1])})
    values = layer.tables[0].numpy()
    assert not np.any(values[0])
    assert values[1:].std() == pytest.approx(0.02, rel=0.03)
    assert layer.tables[0].name.split("/")[-1] == "embedding_table_0_width_4:0"


def test_bfloat16_rows_come_from_float32_tables():
    layer = make(dtype="mixed_bfloat16")
    assert layer(batch()).dtype == tf.bfloat16
    assert layer.tables[0].dtype == tf.float32


def test_unknown_sequence_is_named():
    with pytest.raises(LookupError, match="one of history, tags; got 'user'"):
        make().sequence(batch(), "user")


def test_no_field_or_no_spread_is_refused():
    with pytest.raises(ValueError, match="FieldEmbeddings.features must hold"):
        FieldEmbeddings([])
    with pytest.raises(ValueError, match="FieldEmbeddings.stddev must be > 0; got 0"):
        FieldEmbeddings(FIELDS, stddev=0)


def test_config_round_trip():
    layer = make(shared_rows=9)
    again = twins.check_config(layer)
    again(batch())
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(batch()), layer(batch()))
