import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from features import hashing
from features.schema import encoded_columns
from tests.helpers import tiny_dataset
from tests.tfrecords_tools.conftest import ROWS
from tfrecords_tools import read
from tfrecords_tools.count import count_rows

TRAIN_ROWS = 800
B = 64  # 12 full batches and one of 32 rows


@pytest.fixture(params=["block", "block_gzip", "row"], scope="session")
def dataset(request, blocks, rows, tmp_path_factory):
    if request.param == "block_gzip":
        folder = tmp_path_factory.mktemp("data") / "g"
        return tiny_dataset.make_dataset(folder, rows=ROWS, compression="GZIP")
    return blocks if request.param == "block" else rows


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    """Several windows an epoch, none of them a multiple of B."""
    monkeypatch.setattr(read, "SHUFFLE_WINDOW_ROWS", 160)
    monkeypatch.setattr(read, "PLAIN_WINDOW_ROWS", 96)


def _ids(dataset, **arguments):
    """Row ids in the order of the stream, padding left out."""
    stream = read.read_stream(
        dataset, **{"batch_size": B, "keys": ["row_id"], **arguments}
    )
    found = [b.keys["row_id"][b.valid] for b in stream.as_numpy_iterator()]
    return np.concatenate(found).tolist() if found else []


def _truth(**arguments):
    return tiny_dataset.make_rows(ROWS, **arguments)


def _column(rows, name):
    array = rows[name]
    width = array.type.list_size if hasattr(array.type, "list_size") else 0
    flat = (array.flatten() if width else array).to_numpy()
    return flat.reshape(-1, width) if width else flat


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("seed", [None, 5])
def test_every_row_comes_exactly_once(dataset, cache, seed):
    ids = _ids(dataset, cache=cache, shuffle_seed=seed)
    assert sorted(ids) == list(range(TRAIN_ROWS))
    assert (ids == list(range(TRAIN_ROWS))) == (seed is None)


@pytest.mark.parametrize("cache", [True, False])
def test_hash_ranges_that_do_not_meet_share_the_rows_out(blocks, cache):
    ranges = [(0.0, 0.2), (0.2, 0.5), (0.5, 1.0)]
    parts = [
        _ids(blocks, hash_range=part, shuffle_seed=3, cache=cache) for part in ranges
    ]
    assert sorted(sum(parts, [])) == list(range(TRAIN_ROWS))
    for (low, high), ids in zip(ranges, parts, strict=True):
        # Five standard deviations of a binomial count.
        share = high - low
        room = 5 * (TRAIN_ROWS * share * (1 - share)) ** 0.5
        assert abs(len(ids) - TRAIN_ROWS * share) < room
        assert ids != sorted(ids)
        counted = sum(
            count_rows(blocks, split="train", hash_range=(low, high)).values()
        )
        assert counted == len(ids)
    ids_of_d1 = _ids(blocks, hash_range=ranges[0], domains=["d1"], cache=cache)
    domain = _column(_truth(), "domain")
    assert sorted(ids_of_d1) == sorted(i for i in parts[0] if domain[i] == 1)


def test_row_hash_equals_the_one_of_arrays():
    ids = np.random.default_rng(0).integers(0, 2**62, 1000)
    salted = ids.astype(np.uint64) + np.uint64(read._HASH_SALT)
    mixed = hashing.mix64(salted - hashing._GOLDEN)  # which mix64 adds first
    expected = (mixed >> np.uint64(11)) * 2.0**-53
    np.testing.assert_array_equal(read.row_hash(tf.constant(ids)), expected)


@pytest.mark.parametrize("part", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.5)])
def test_hash_range_outside_0_to_1_is_refused(blocks, part):
    with pytest.raises(ValueError, match="hash_range must be"):
        _ids(blocks, hash_range=part)


@pytest.mark.parametrize("cache", [True, False])
def test_hash_range_without_rows_is_refused(blocks, cache):
    nothing = (0.5, 0.5 + 1e-9)
    assert not any(count_rows(blocks, split="train", hash_range=nothing).values())
    with pytest.raises(ValueError, match="hash_range"):
        _ids(blocks, hash_range=nothing, cache=cache)


@pytest.mark.parametrize("cache", [True, False])
def test_batches_hold_the_rows_that_were_written(dataset, cache):
    truth = _truth()
    stream = read.read_stream(
        dataset, batch_size=B, shuffle_seed=1, keys=["row_id", "day"], cache=cache
    )
    assert [s.shape[0] for s in tf.nest.flatten(stream.element_spec)] == [B] * 14
    for batch in stream.as_numpy_iterator():
        keep = batch.valid
        rows = batch.keys["row_id"][keep]
        for name, values in batch.features.items():
            expected = _column(truth, name)[rows]
            np.testing.assert_array_equal(values[keep], expected, err_msg=name)
            is_number = name in ("price", "item_popularity")
            assert values.dtype == (np.float32 if is_number else np.int32)
        np.testing.assert_array_equal(batch.keys["day"][keep], 20240101 + rows % 4)
        for task in range(2):
            label = _column(truth, f"label/task{task}")[rows]
            np.testing.assert_array_equal(batch.labels[keep, task], label == 1)
            np.testing.assert_array_equal(batch.label_mask[keep, task], label >= 0)
        np.testing.assert_array_equal(batch.weight, keep.astype("f4"))


@pytest.mark.parametrize("cache", [True, False])
def test_last_batch_is_padded_with_rows_that_count_nothing(blocks, cache):
    *_, last = read.read_stream(blocks, batch_size=B, cache=cache).as_numpy_iterator()
    assert last.valid.tolist() == [True] * 32 + [False] * 32
    for values in (last.weight, last.label_mask, last.labels, *last.features.values()):
        assert not values[32:].any()


@pytest.mark.parametrize("cache", [True, False])
def test_batch_sizes_that_divide_exceed_or_drop(blocks, cache):
    assert len(_batches(blocks, batch_size=100, cache=cache)) == 8
    assert len(_batches(blocks, batch_size=900, cache=cache)) == 1
    assert len(_batches(blocks, batch_size=1, cache=cache)) == TRAIN_ROWS
    assert len(_batches(blocks, batch_size=B, cache=cache, drop_remainder=True)) == 12


def _batches(dataset, **arguments):
    return list(read.read_stream(dataset, **arguments).as_numpy_iterator())


@pytest.mark.parametrize("cache", [True, False])
def test_order_depends_on_seed_and_epoch_only(dataset, cache):
    def order(seed, epoch):
        return _ids(dataset, cache=cache, shuffle_seed=seed, epoch=epoch)

    tf.random.set_seed(1)
    first = order(3, 0)
    tf.random.set_seed(2)
    assert order(3, 0) == first
    assert order(3, 1) != first
    assert order(4, 0) != first
    correlation = np.corrcoef(first, np.arange(TRAIN_ROWS))[0, 1]
    if cache:
        assert abs(correlation) < 0.1  # a full permutation; its deviation is 0.035


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    "filters", [{}, {"domains": ["d1", "d0"]}, {"days": (20240102, 20240103)}]
)
@pytest.mark.parametrize("seed", [None, 7])
def test_skip_batches_gives_the_suffix(dataset, cache, filters, seed):
    arguments = {"cache": cache, "shuffle_seed": seed, "epoch": 2, **filters}
    full = _ids(dataset, **arguments)
    for skip in (1, 3, 50):
        assert _ids(dataset, skip_batches=skip, **arguments) == full[skip * B :]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("num_workers", [2, 3])
def test_worker_shards_are_disjoint_and_complete(dataset, cache, num_workers):
    parts = [
        _ids(
            dataset,
            cache=cache,
            shuffle_seed=7,
            num_workers=num_workers,
            worker_index=i,
        )
        for i in range(num_workers)
    ]
    assert min(map(len, parts)) > TRAIN_ROWS / num_workers * 0.8
    assert sorted(sum(parts, [])) == list(range(TRAIN_ROWS))


def test_workers_with_enough_files_read_whole_files(blocks):
    second = _ids(blocks, cache=False, num_workers=2, worker_index=1)
    assert second == list(range(400, 800))


@pytest.mark.parametrize("cache", [True, False])
def test_filters_keep_the_rows_asked_for(dataset, cache):
    truth = _truth()
    domain = _column(truth, "domain")[:TRAIN_ROWS]
    day = _column(truth, "day")[:TRAIN_ROWS]
    found = _ids(dataset, cache=cache, domains=["d2", "d1"], days=(20240102, 20240103))
    keep = (domain > 0) & (day >= 20240102) & (day <= 20240103)
    assert found == np.flatnonzero(keep).tolist()
    found = _ids(dataset, cache=cache, split="test")
    assert found == list(range(900, 1000))


@pytest.mark.parametrize("cache", [True, False])
def test_domain_index_is_remapped_on_request_only(blocks, cache):
    truth = _column(_truth(), "domain")
    for remap, index in ((False, {2: 2, 0: 0}), (True, {2: 0, 0: 1})):
        stream = read.read_stream(
            blocks,
            batch_size=B,
            domains=["d2", "d0"],
            keys=["row_id"],
            remap_domains=remap,
            cache=cache,
        )
        for batch in stream.as_numpy_iterator():
            rows = batch.keys["row_id"][batch.valid]
            expected = [index[d] for d in truth[rows]]
            assert batch.features["domain"][batch.valid].tolist() == expected


def test_tasks_order_the_label_columns(blocks):
    both = next(iter(read.read_stream(blocks, batch_size=B)))
    swapped = next(iter(read.read_stream(blocks, batch_size=B, tasks=["task1"])))
    np.testing.assert_array_equal(swapped.labels, both.labels[:, 1:])
    np.testing.assert_array_equal(swapped.label_mask, both.label_mask[:, 1:])


def test_weights_of_the_data_set_are_read(tmp_path):
    dataset = tiny_dataset.make_dataset(tmp_path / "w", rows=100, weight=True)
    expected = tiny_dataset.make_rows(100, weight=True)["weight"].to_numpy()[:80]
    for cache in (True, False):
        (batch,) = _batches(dataset, batch_size=90, cache=cache)
        np.testing.assert_array_equal(batch.weight[:80], expected)
        assert not batch.weight[80:].any()


def test_cached_arrays_hold_the_split_in_file_order(blocks):
    batch = read.cached_arrays(blocks, split="validation", keys=["row_id", "user_key"])
    assert batch.keys["row_id"].tolist() == list(range(800, 900))
    assert batch.valid.all()
    np.testing.assert_array_equal(
        batch.features["history"], _column(_truth(), "history")[800:900]
    )


def test_cache_is_chosen_by_size_and_notices_changed_files(tmp_path, monkeypatch):
    first = tiny_dataset.make_dataset(tmp_path / "a", rows=100, seed=1)
    price = read.cached_arrays(first).features["price"]
    again = tiny_dataset.make_dataset(tmp_path / "a", rows=100, seed=2)
    assert first.info.fingerprint == again.info.fingerprint
    assert not np.array_equal(read.cached_arrays(again).features["price"], price)

    def refuse(*_):
        raise AssertionError("read into memory")

    monkeypatch.setattr(read, "_cached_stream", refuse)
    with pytest.raises(AssertionError, match="into memory"):
        read.read_stream(again, batch_size=4)
    monkeypatch.setattr(read, "CACHE_LIMIT_BYTES", 100)
    read.read_stream(again, batch_size=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tests"}, "Did you mean 'test'"),
        ({"domains": ["d9"]}, "domains must be one of d0, d1, d2; got 'd9'"),
        ({"tasks": ["tsk0"]}, "Did you mean 'task0'"),
        ({"keys": ["rowid"]}, "Did you mean 'row_id'"),
    ],
)
def test_unknown_names_are_lookup_errors(blocks, arguments, message):
    with pytest.raises(LookupError, match=message):
        read.read_stream(blocks, batch_size=B, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"skip_batches": -1}, "skip_batches must be at least 0"),
        ({"num_workers": 2, "worker_index": 2}, "worker_index must be 0 to 1; got 2"),
        ({"domains": ["d0", "d0"]}, "each one once"),
        ({"days": (20240103, 20240102)}, "Swap them"),
    ],
)
def test_impossible_arguments_are_value_errors(blocks, arguments, message):
    with pytest.raises(ValueError, match=message):
        read.read_stream(blocks, **{"batch_size": B, **arguments})


@pytest.mark.parametrize("cache", [True, False])
def test_no_row_left_is_an_error_with_the_counts(blocks, cache):
    with pytest.raises(ValueError, match=r"leave none.*'d0': \d+"):
        read.read_stream(blocks, batch_size=B, days=(20250101, 20250102), cache=cache)
    empty = dataclasses.replace(
        blocks, info=dataclasses.replace(blocks.info, counts={"train": {}})
    )
    with pytest.raises(ValueError, match="split 'train'.*leave none"):
        read.read_stream(empty, batch_size=B, cache=cache)


@pytest.mark.parametrize("cache", [True, False])
def test_domain_index_out_of_range_is_an_error(tmp_path, cache):
    wide = tiny_dataset.make_dataset(tmp_path / "wide", rows=100, domains=4)
    narrow = dataclasses.replace(wide.info, fitted=tiny_dataset.make_fitted(3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="domain must be 0 to 2"):
        _batches(dataclasses.replace(wide, info=narrow), batch_size=B, cache=cache)


def test_columns_nobody_asked_for_are_not_parsed(blocks, monkeypatch):
    seen = set()
    parse = read.decode.parse_columns

    def spy(serialized, columns, record_format):
        seen.update(c.name for c in columns)
        return parse(serialized, columns, record_format)

    monkeypatch.setattr(read.decode, "parse_columns", spy)
    read.read_stream(blocks, batch_size=B, tasks=["task0"], cache=False)
    everything = {c.name for c in encoded_columns(blocks.info.spec)}
    assert everything - seen == {"row_id", "user_key", "day", "label/task1"}


@pytest.mark.parametrize("record_format", ["block", "row"])
def test_corrupt_byte_met_in_training_is_named(tmp_path, record_format):
    dataset = tiny_dataset.make_dataset(
        tmp_path / "c", rows=500, record_format=record_format
    )
    path = dataset.files("train")[1]
    offsets = read.records.record_offsets(path)
    data = bytearray(path.read_bytes())
    data[offsets[3] + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(tf.errors.DataLossError) as lost:
        _batches(dataset, batch_size=B, shuffle_seed=0, cache=False)
    found = read.explain_data_loss(dataset, "train", lost.value)
    assert isinstance(found, read.records.RecordError)
    assert (found.path, found.record) == (path, 3)
    assert "part-00001-of-00002.tfrecord: record 3" in str(found)
    healthy = read.explain_data_loss(dataset, "test", lost.value)
    assert "passes its checksum now" in str(healthy)


def test_truncated_file_is_named(tmp_path):
    dataset = tiny_dataset.make_dataset(tmp_path / "t", rows=500)
    path = dataset.files("train")[0]
    path.write_bytes(path.read_bytes()[:-10])
    for cache in (True, False):
        with pytest.raises(read.records.RecordError, match=r"record 6 .*truncated"):
            read.read_stream(dataset, batch_size=B, cache=cache)
