import functools

import numpy as np
import pyarrow as pa
import pytest

from features import canonical, splits
from features.config import ConfigError
from tests.helpers.feature_rows import make_spec, raw_batch

ROWS = 20_000


def rows_of(spec, rows=ROWS, **columns):
    good, rejected = canonical.canonicalise(spec, raw_batch(rows, **columns))
    assert rejected.num_rows == 0
    return good


def split_in(parts, spec, batch, domain):
    size = -(-batch.num_rows // parts)
    starts = range(0, batch.num_rows, size)
    partials = [
        splits.split_counts(spec, batch.slice(i, size), domain[i : i + size])
        for i in starts
    ]
    merged = functools.reduce(splits.merge_split_counts, partials[::-1])
    plan = splits.fit_split_plan(spec, merged)
    return np.concatenate(
        [
            splits.assign_splits(spec, batch.slice(i, size), domain[i : i + size], plan)
            for i in starts
        ]
    )


def shares(split):
    return np.bincount(split, minlength=3) / len(split)


def test_random_split_holds_its_fractions_and_follows_its_seed():
    results = []
    for seed in (0, 1):
        rule = {"by": "random", "validation": 0.2, "test": 0.1, "seed": seed}
        spec = make_spec(split=rule)
        domain = np.zeros(ROWS, np.int32)
        results.append(split_in(1, spec, rows_of(spec), domain))
        # Five standard deviations: sqrt(.2 * .8 / 20,000) = 0.0028.
        assert shares(results[-1]) == pytest.approx([0.7, 0.2, 0.1], abs=0.014)
    # Independent seeds agree on sum of squares = 0.54 of the rows.
    assert np.mean(results[0] == results[1]) == pytest.approx(0.54, abs=0.02)


def test_random_split_of_a_row_does_not_depend_on_other_rows():
    spec = make_spec()
    batch, domain = rows_of(spec, 3000), np.zeros(3000, np.int32)
    whole = split_in(1, spec, batch, domain)
    np.testing.assert_array_equal(split_in(7, spec, batch, domain), whole)
    part = split_in(1, spec, batch.slice(1000, 500), domain[:500])
    np.testing.assert_array_equal(part, whole[1000:1500])


def test_stratified_split_meets_the_fractions_in_every_domain():
    rule = {"by": "random", "validation": 0.2, "test": 0.1, "stratify": True}
    spec = make_spec(split=rule)
    domain = np.repeat([0, 1, 2], [ROWS - 1100, 1000, 100]).astype(np.int32)
    split = split_in(5, spec, rows_of(spec), domain)
    for index, rows in enumerate((ROWS - 1100, 1000, 100)):
        counts = np.bincount(split[domain == index], minlength=3)
        # A bin of 2**16 holds few rows, so a cut is off by few.
        assert counts == pytest.approx(np.array([0.7, 0.2, 0.1]) * rows, abs=3)
    np.testing.assert_array_equal(split, split_in(1, spec, rows_of(spec), domain))


def test_temporal_split_begins_at_its_times():
    spec = make_spec(split={"by": "temporal", "validation_from": 3, "test_from": 5})
    batch = rows_of(spec, 5, ts=[2, 3, 4, 5, 9])
    assert split_in(1, spec, batch, np.zeros(5)).tolist() == [0, 1, 1, 2, 2]


def test_temporal_split_leaves_out_rows_before_and_after_its_window():
    rule = {"by": "temporal", "validation_from": 3, "test_from": 5}
    plain = make_spec(split=rule)
    spec = make_spec(split={**rule, "train_from": 2, "test_until": 6})
    batch = rows_of(spec, 6, ts=[1, 2, 3, 5, 6, 9])
    assert split_in(1, spec, batch, np.zeros(6)).tolist() == [-1, 0, 1, 2, -1, -1]
    assert spec.fingerprint() != plain.fingerprint()
    open_ended = make_spec(split={**rule, "train_from": None, "test_until": None})
    assert open_ended.fingerprint() == plain.fingerprint()
    with pytest.raises(ConfigError, match="must not go back in time"):
        make_spec(split={**rule, "test_until": 4})


def test_temporal_split_may_have_a_column_of_its_own():
    rule = {"by": "temporal", "column": "step", "validation_from": 1, "test_from": 2}
    spec = make_spec(split=rule)
    batch = rows_of(spec, 3, step=["2", "0", "1"])
    assert split_in(1, spec, batch, np.zeros(3)).tolist() == [2, 0, 1]


@pytest.mark.parametrize("parts", [1, 3])
def test_published_order_cuts_positions_whatever_rows_are_missing(parts):
    rule = {"by": "published_order", "validation": 0.1, "test": 0.2}
    spec = make_spec(split=rule)
    position = [9, 0, 6, 7, 8, 3]  # 1, 2, 4 and 5 were rejected
    batch = rows_of(spec, 6, published_position=position)
    split = split_in(parts, spec, batch, np.zeros(6))
    assert split.tolist() == [2, 0, 0, 1, 2, 0]


def test_column_split_reads_its_lists_and_rejects_the_rest():
    rule = {
        "by": "by_column",
        "column": "part",
        "train": [1],
        "validation": ["2"],
        "test": ["x"],
    }
    spec = make_spec(split=rule)
    batch = rows_of(spec, 5, part=["x", "1", "2", "3", None])
    assert split_in(1, spec, batch, np.zeros(5)).tolist() == [2, 0, 1, -1, -1]


def per_user_spec(validation_last, test_last):
    rule = {"by": "per_user_temporal"}
    rule |= {"validation_last": validation_last, "test_last": test_last}
    return make_spec(split=rule)


def test_per_user_split_holds_out_the_last_rows():
    spec = per_user_spec(1, 2)
    users = np.array([1, 1, 1, 1, 2, 2, 2])
    times = np.array([40, 10, 30, 20, 1, 2, 3])
    split = splits.per_user_temporal(spec, users, times, np.arange(7))
    assert split.tolist() == [2, 0, 2, 1, 0, 0, 0]


def test_per_user_split_breaks_ties_by_row_id():
    spec = per_user_spec(0, 1)
    split = splits.per_user_temporal(
        spec, np.zeros(3), np.array([5, 5, 5]), np.array([2, 9, 4])
    )
    assert split.tolist() == [0, 2, 0]


@pytest.mark.parametrize(("validation_last", "test_last"), [(1, 1), (0, 3), (2, 0)])
def test_per_user_split_agrees_with_a_loop_over_users(validation_last, test_last):
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 40, 300), rng.integers(0, 20, 300)
    row_id = rng.permutation(300)
    expected = np.zeros(300, int)
    for user in range(40):
        mine = sorted(
            np.flatnonzero(users == user), key=lambda i: (times[i], row_id[i])
        )
        if len(mine) > validation_last + test_last:
            for i in mine[len(mine) - validation_last - test_last :]:
                expected[i] = 1
            for i in mine[len(mine) - test_last :]:
                expected[i] = 2
    spec = per_user_spec(validation_last, test_last)
    split = splits.per_user_temporal(spec, users, times, row_id)
    np.testing.assert_array_equal(split, expected)


def test_per_user_split_is_for_its_own_rule_and_takes_no_rows():
    empty = np.zeros(0, np.int64)
    assert len(splits.per_user_temporal(per_user_spec(1, 1), empty, empty, empty)) == 0
    with pytest.raises(ConfigError, match="must be per_user_temporal; got random"):
        splits.per_user_temporal(make_spec(), empty, empty, empty)


def test_per_user_split_works_on_batches_too():
    spec = per_user_spec(1, 1)
    batch = rows_of(spec, 6)  # users u0 and u1 in turn
    plan = splits.fit_split_plan(spec, None)
    split = splits.assign_splits(spec, batch, np.zeros(6), plan)
    assert split.tolist() == [0, 0, 1, 1, 2, 2]
    assert split.dtype == np.int8
    assert pa.array(split).type == pa.int8()
