import pickle

import numpy as np
import pyarrow as pa
import pytest

from features import canonical, fit
from features.config import ConfigError
from features.domains import FittedDomains
from tests.helpers.feature_rows import make_spec, raw_batch

DOMAINS = FittedDomains(("x", "y"), {"x": 0, "y": 1}, -1)


def number_spec(transform, **options):
    feature = {"kind": "numeric", "name": "price", "role": "item"}
    return make_spec(features=[feature | {"transform": transform} | options])


def canonical_rows(spec, rows, **columns):
    good, rejected = canonical.canonicalise(spec, raw_batch(rows, **columns))
    assert rejected.num_rows == 0
    return good


def fitted(spec, rows, previous=None, **columns):
    batch = canonical_rows(spec, rows, **columns)
    merged = fit.merge([fit.partial_counts(spec, batch)])
    return fit.fit(spec, merged, DOMAINS, previous)


def price(transform, values, **options):
    spec = number_spec(transform, **options)
    return fitted(spec, len(values), price=values).numeric["price"]


def test_standardise_is_mean_and_deviation_of_known_values():
    params = price("standardise", [1.0, 2.0, None, 6.0])
    assert params.shift == 3.0
    assert params.scale == pytest.approx(np.std([1, 2, 6]))


def test_log_standardises_the_signed_log():
    values = np.array([-5.0, 0.0, 1.0, 1000.0])
    logs = np.sign(values) * np.log1p(np.abs(values))
    params = price("log", values)
    assert params.shift == pytest.approx(logs.mean())
    assert params.scale == pytest.approx(logs.std())


def test_minmax_is_lowest_and_range():
    params = price("minmax", [5.0, -1.0, 2.0])
    assert (params.shift, params.scale) == (-1.0, 6.0)


@pytest.mark.parametrize("transform", ["standardise", "minmax", "log"])
@pytest.mark.parametrize("values", [[7.0, 7.0], [None, None]])
def test_constant_or_missing_numbers_get_scale_one(transform, values):
    params = price(transform, pa.array(values, pa.float64()))
    assert params.scale == 1.0
    assert params.boundaries == ()


def test_none_keeps_the_number():
    params = price("none", [5.0, 6.0])
    assert (params.shift, params.scale) == (0.0, 1.0)


def test_bucketise_cuts_at_quantiles_and_equal_cuts_are_one():
    assert price("bucketise", [*range(8)], num_buckets=4).boundaries == (2, 4, 6)
    skewed = [0.0] * 8 + [1.0, 2.0]
    assert price("bucketise", skewed, num_buckets=5).boundaries == (1.0,)
    assert price("bucketise", [3.0, 3.0]).boundaries == ()


def test_numbers_far_from_zero_keep_their_spread():
    values = 1.6e9 + np.arange(0, 86_400, 60)
    params = price("standardise", values)
    assert params.shift == pytest.approx(values.mean(), abs=1e-3)
    assert params.scale == pytest.approx(values.std(), rel=1e-9)


def test_many_distinct_numbers_are_counted_on_a_grid_fine_enough(monkeypatch):
    monkeypatch.setattr(fit, "MAX_DISTINCT", 512)
    values = 1.6e9 + np.random.default_rng(0).normal(0, 30_000, 20_000)
    spec = number_spec("standardise")
    part = fit.partial_counts(spec, canonical_rows(spec, 20_000, price=values))["price"]
    assert len(part.values) <= 512
    assert part.counts.sum() == 20_000
    params = fit.fit(spec, {"price": part}, DOMAINS).numeric["price"]
    # A cell is 2048 s wide here: off by half a cell, and the deviation hardly.
    assert params.shift == pytest.approx(values.mean(), abs=2048)
    assert params.scale == pytest.approx(values.std(), rel=0.02)


@pytest.mark.parametrize("max_distinct", [16, 100, 2**16])
def test_result_is_the_same_to_the_bit_for_any_bundles_and_merge_order(
    monkeypatch, max_distinct
):
    monkeypatch.setattr(fit, "MAX_DISTINCT", max_distinct)
    rng = np.random.default_rng(0)
    rows, spec = 600, make_spec()
    batch = canonical_rows(
        spec,
        rows,
        item=rng.integers(0, 90, rows),
        # Some bundles are dense and coarse early, others never are.
        price=np.where(np.arange(rows) < 200, 3.0, rng.normal(0, 1e3, rows)),
        tags=[f"t{i}|t{j}" for i, j in rng.integers(0, 9, (rows, 2))],
    )
    fingerprints = set()
    for size in (1, 7, 64, 200, 600):
        parts = [
            fit.partial_counts(spec, batch.slice(i, size)) for i in range(0, rows, size)
        ]
        parts = [
            pickle.loads(pickle.dumps(parts[i])) for i in rng.permutation(len(parts))
        ]
        middle = len(parts) // 2
        halves = [fit.merge(p) for p in (parts[:middle], parts[middle:]) if p]
        fingerprints.add(fit.fit(spec, fit.merge(halves), DOMAINS).fingerprint())
    assert len(fingerprints) == 1


def test_vocabularies_count_rows_of_their_own_column():
    spec = make_spec()
    found = fitted(
        spec, 4, item=["b", "a", "b", None], tags=["t2|t1", "t2", None, "t2"]
    )
    assert found.vocabs["item_id"].values == ["b", "a"]
    assert found.vocabs["tags"].values == ["t2", "t1"]
    assert set(found.vocabs) == {"item_id", "tags"}


def test_popularity_is_log_count_per_id_and_standardised_over_rows():
    found = fitted(make_spec(), 4, item=["b", "a", "b", "b"])
    table = found.popularity["pop"]
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, [0, 0, np.log(4), np.log(2)], rtol=1e-6)
    rows = np.log([4, 2, 4, 4])
    assert found.numeric["pop"].shift == pytest.approx(rows.mean())
    assert found.numeric["pop"].scale == pytest.approx(rows.std())


def test_popularity_of_a_hashed_feature_adds_values_of_one_bucket():
    features = [
        {
            "kind": "categorical",
            "name": "item",
            "role": "item",
            "encoding": {"by": "hash", "num_buckets": 1},
        },
        {"kind": "popularity", "name": "pop", "role": "item", "of": "item"},
    ]
    found = fitted(make_spec(features=features), 4, item=["b", "a", "b", "b"])
    np.testing.assert_allclose(found.popularity["pop"], [0, 0, np.log(5)], rtol=1e-6)
    assert not found.vocabs


def test_previous_is_continued_without_changing_what_ids_mean():
    spec = make_spec()
    old = fitted(spec, 3, item=["a", "a", "b"], price=[1.0, 2.0, 3.0])
    new = fitted(spec, 3, item=["c", "c", "b"], price=[70.0, 80.0, 90.0], previous=old)
    assert new.vocabs["item_id"].values == ["a", "b", "c"]
    assert new.vocabs["item_id"].version == 2
    assert new.numeric["level"] == old.numeric["level"]
    assert new.numeric["price"] == old.numeric["price"]
    counts = [0, 0, 0, 1, 2]
    np.testing.assert_allclose(new.popularity["pop"], np.log1p(counts), rtol=1e-6)


def test_previous_with_other_domains_is_refused():
    spec = make_spec()
    old = fitted(spec, 2)
    batch = fit.merge([fit.partial_counts(spec, canonical_rows(spec, 2))])
    other = FittedDomains(("y", "x"), {}, -1)
    with pytest.raises(ConfigError, match="domains must begin with.*y, x after x, y"):
        fit.fit(spec, batch, other, old)
