"""The sample of a split: its first rows in the order of the shuffle."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.transforms import record_batches, samples

ROWS, SEED = 3000, 5


def batch_of(ids):
    return pa.RecordBatch.from_arrays([pa.array(ids)], ["row_id"])


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


def test_bundles_and_splits_start_anew():
    step = samples._TakeFirst(SEED)
    for split in (0, 1):
        step.start_bundle()
        (pair,) = step.process((split, batch_of(np.arange(10))))
        assert pair[0] == split
        assert pair[1].num_rows == 10
