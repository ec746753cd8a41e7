"""The sample of a split: its first rows in the order of the shuffle."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.transforms import record_batches, samples

ROWS, SEED = 3000, 5


def batch_of(ids, domain=None):
    domain = np.zeros(len(ids), np.int32) if domain is None else domain
    return pa.RecordBatch.from_arrays(
        [pa.array(ids), pa.array(domain)], ["row_id", "domain"]
    )


@pytest.mark.parametrize("num_batches", [1, 7, 300])
@pytest.mark.parametrize("distinct", [ROWS, 100, 700])
def test_first_rows_survive_whatever_the_batches(num_batches, distinct):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2**62, distinct)[rng.integers(0, distinct, ROWS)]
    step = samples._TakeFirst(SEED)
    step.start_bundle()
    found = [
        piece["row_id"].to_numpy()
        for part in np.array_split(ids, num_batches)
        for split, piece in step.process((1, batch_of(part)))
    ]
    kept = np.concatenate(found)
    by_key = np.argsort(record_batches.order_keys(ids, SEED), kind="stable")
    wanted = ids[by_key][: samples.SAMPLE_ROWS]
    order = np.argsort(record_batches.order_keys(kept, SEED), kind="stable")
    assert kept[order][: samples.SAMPLE_ROWS].tolist() == wanted.tolist()
    if num_batches == 300:
        assert len(kept) < ROWS / 2 + samples.SAMPLE_ROWS  # most are left behind


@pytest.mark.parametrize("num_batches", [1, 60])
def test_a_small_domain_has_rows_of_its_own(num_batches):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 2**62, ROWS)
    domain = np.zeros(ROWS, np.int32)
    domain[:50], domain[50:60] = 3, 1  # 50 rows of one, 10 of another
    shuffled = rng.permutation(ROWS)
    ids, domain = ids[shuffled], domain[shuffled]
    step = samples._TakeFirst(SEED)
    step.start_bundle()
    pieces = [
        piece
        for part in np.array_split(np.arange(ROWS), num_batches)
        for _, piece in step.process((1, batch_of(ids[part], domain[part])))
    ]
    kept = samples._first(record_batches.concat(pieces), SEED)
    by_key = np.argsort(record_batches.order_keys(ids, SEED), kind="stable")
    wanted = set(ids[by_key][: samples.SAMPLE_ROWS].tolist())
    for index in (1, 3):
        own = by_key[domain[by_key] == index]
        wanted |= set(ids[own][: samples.DOMAIN_ROWS].tolist())
    assert set(kept["row_id"].to_pylist()) == wanted
    assert kept.num_rows == len(wanted)


def test_bundles_and_splits_start_anew():
    step = samples._TakeFirst(SEED)
    for split in (0, 1):
        step.start_bundle()
        (pair,) = step.process((split, batch_of(np.arange(10))))
        assert pair[0] == split
        assert pair[1].num_rows == 10
