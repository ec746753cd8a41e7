"""Batches of one domain each: every row once, in an order that can be resumed."""

import numpy as np
import pytest

from tests.helpers import tiny_dataset
from tests.tfrecords_tools.conftest import ROWS
from tfrecords_tools import count, memory, read
from tfrecords_tools.one_domain import read_one_domain

TRAIN_ROWS = 800
B = 64
CACHE = pytest.mark.parametrize("cache", [True, False])


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    """Several windows a domain: 53 rows, so a block of 32, with three domains."""
    monkeypatch.setattr(read, "SHUFFLE_WINDOW_ROWS", 160)


@pytest.fixture(scope="module")
def domain():
    """The domain of each training row, by row id."""
    return np.asarray(tiny_dataset.make_rows(ROWS)["domain"])[:TRAIN_ROWS]


def batches(dataset, **arguments):
    request = {k: arguments[k] for k in ("domains", "days") if k in arguments}
    stream = read_one_domain(
        dataset,
        domain_rows=count.count_rows(dataset, split="train", **request),
        **{"batch_size": B, "keys": ["row_id"], "shuffle_seed": 5, **arguments},
    )
    return list(stream.as_numpy_iterator())


def ids(found):
    return [b.keys["row_id"][b.valid].tolist() for b in found]


def turns(found):
    """The domain of each batch."""
    return [int(b.domain[0]) for b in found]


@CACHE
def test_every_row_comes_once_in_batches_of_one_domain(blocks, domain, cache):
    found = batches(blocks, cache=cache)
    for batch in found:
        own = batch.domain[batch.valid]
        assert len(batch.valid) == B
        assert len(own) > 0
        assert set(own.tolist()) == {turns([batch])[0]}
        np.testing.assert_array_equal(own, domain[batch.keys["row_id"][batch.valid]])
        assert not batch.weight[~batch.valid].any()
        assert not batch.label_mask[~batch.valid].any()
    assert sorted(sum(ids(found), [])) == list(range(TRAIN_ROWS))
    # ceil(n_d / B) batches a domain; only the last of each is not full.
    rows = np.bincount(domain)
    assert np.bincount(turns(found)).tolist() == [-(-n // B) for n in rows]
    for d, n in enumerate(rows):
        own = [len(i) for i, t in zip(ids(found), turns(found), strict=True) if t == d]
        assert own == [B] * (n // B) + [n % B] * (n % B > 0)


@CACHE
def test_order_of_domains_and_rows_follows_seed_and_epoch(blocks, cache):
    first = batches(blocks, cache=cache)
    assert turns(first) != sorted(turns(first))
    # The seed enters as the epoch does, so one look is enough where files are read.
    for changes in ({"epoch": 1}, {"shuffle_seed": 6})[: 1 + cache]:
        other = batches(blocks, cache=cache, **changes)
        assert turns(other) != turns(first)
        assert set(map(frozenset, ids(other))).isdisjoint(map(frozenset, ids(first)))


@pytest.mark.parametrize(
    ("cache", "skip"), [(True, 1), (True, 7), (True, 99), (False, 7)]
)
def test_stream_from_a_batch_on_is_the_rest_of_the_whole_one(blocks, cache, skip):
    whole = ids(batches(blocks, cache=cache, epoch=2))
    assert ids(batches(blocks, cache=cache, epoch=2, skip_batches=skip)) == whole[skip:]


@CACHE
def test_filters_and_indices_within_the_request(blocks, rows, domain, cache):
    """Domains d2 and d0 are 0 and 1 of the request; days leave some of their rows."""
    days = (tiny_dataset.FIRST_DAY, tiny_dataset.FIRST_DAY + 1)
    day = tiny_dataset.FIRST_DAY + np.arange(TRAIN_ROWS) % tiny_dataset.NUM_DAYS
    wanted = np.flatnonzero((day <= days[1]) & (domain != 1)).tolist()
    for dataset in (blocks, rows):
        found = batches(
            dataset, cache=cache, domains=["d2", "d0"], days=days, remap_domains=True
        )
        assert sorted(sum(ids(found), [])) == wanted
        for batch, own in zip(found, ids(found), strict=True):
            assert set(domain[own]) == {(2, 0)[batch.domain[0]]}


def test_memory_holds_one_table_for_all_domains(blocks, monkeypatch):
    kept = {}
    monkeypatch.setattr(memory, "_tables", lambda: kept)
    batches(blocks)
    assert [table.num_rows for table in kept.values()] == [TRAIN_ROWS]


def test_counts_that_are_not_those_of_the_files_are_an_error(blocks):
    with pytest.raises(ValueError, match=r"domain_rows must be .* got 9 for domain"):
        read_one_domain(
            blocks,
            domain_rows={"d0": 9, "d1": 9, "d2": 9},
            batch_size=B,
            shuffle_seed=0,
        )
