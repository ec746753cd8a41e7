"""Learning vocabularies, numeric parameters and popularity from training rows.

Everything is learnt from *counts of values*: they add up in any order, so the result is
the same for any number of workers and bundles, to the bit.  Numbers are counted after
rounding to 12 bits of mantissa (a relative error of at most 2^-13), which bounds
how many distinct ones there are; means, deviations and quantiles are then computed
over the sorted values in float64.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from features import hashing
from features import spec as spec_lib
from features.domains import FittedDomains
from features.fitted import Fitted, NumericParams
from features.layout import canonical_name
from features.spec import NUM_RESERVED_IDS, DatasetSpec
from features.vocab import Vocab, hash_ids

MANTISSA_BITS = 12
Counts = tuple[Any, np.ndarray]


def partial_counts(spec: DatasetSpec, batch: pa.RecordBatch) -> dict[str, Counts]:
    """Returns distinct values and their rows, by feature, of a batch of training rows.

    Vocabulary features give (strings, int64 counts), numeric ones (float64, int64).
    Missing values are not counted.
    """
    result: dict[str, Counts] = {}
    for feature in spec.features:
        if _owns_vocabulary(feature):
            result[feature.name] = _text_counts(_texts(spec, feature, batch))
        elif isinstance(feature, spec_lib.Numeric):
            name = canonical_name(spec, spec_lib.raw_column(feature), "number")
            result[feature.name] = _number_counts(_column(batch, name))
    for feature in spec.features:
        if isinstance(feature, spec_lib.Popularity) and feature.of not in result:
            of = spec.feature(feature.of)
            result[feature.of] = _text_counts(_texts(spec, of, batch))
    return result


def merge(partials: Iterable[Mapping[str, Counts]]) -> dict[str, Counts]:
    """Returns the sum of partial counts; values ascending."""
    parts = list(partials)
    names = sorted({name for part in parts for name in part})
    return {n: _merge_one([part[n] for part in parts if n in part]) for n in names}


def _merge_one(parts: list[Counts]) -> Counts:
    if isinstance(parts[0][0], np.ndarray):
        values, codes = np.unique(
            np.concatenate([values for values, _ in parts]), return_inverse=True
        )
        counts = np.concatenate([counts for _, counts in parts])
        return values, _add(codes, counts, len(values))
    texts = pa.concat_arrays([values for values, _ in parts])
    uniques, codes = hashing.dictionary_codes(texts)
    counts = np.concatenate([counts for _, counts in parts])
    totals = _add(codes, counts, len(uniques))
    order = np.argsort(
        uniques.to_numpy(zero_copy_only=False).astype(str), kind="stable"
    )
    return uniques.take(pa.array(order)), totals[order]


def _add(codes: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    totals = np.zeros(size, np.int64)
    np.add.at(totals, codes, counts)
    return totals


def fit(
    spec: DatasetSpec,
    merged: Mapping[str, Counts],
    domains: FittedDomains,
    previous: Fitted | None = None,
) -> Fitted:
    """Returns what encodes the rows.

    Args:
      spec: The dataset spec.
      merged: Counts over all training rows.
      domains: The domains.
      previous: Fitted state whose vocabularies are continued: old values keep their
        ids, new ones are appended, the version goes up.
    """
    vocabs = {
        f.name: _fit_vocab(f, merged[f.name], previous)
        for f in spec.features
        if _owns_vocabulary(f)
    }
    numeric, popularity = {}, {}
    for feature in spec.features:
        if isinstance(feature, spec_lib.Numeric):
            numeric[feature.name] = _fit_number(feature, *merged[feature.name])
        elif isinstance(feature, spec_lib.Popularity):
            of = spec.feature(feature.of)
            values, counts = merged[feature.of]
            table = _popularity(of, vocabs, values, counts)
            popularity[feature.name] = table.astype(np.float32)
            numeric[feature.name] = _standardised(np.log1p(counts), counts)
    return Fitted(
        domains=domains.names,
        domain_values=dict(domains.values),
        domain_default=domains.default,
        vocabs=vocabs,
        numeric=numeric,
        popularity=popularity,
    )


def _fit_vocab(feature: Any, counts: Counts, previous: Fitted | None) -> Vocab:
    rule = {
        "min_count": feature.encoding.min_count,
        "max_size": feature.encoding.max_size,
    }
    if previous is not None and feature.name in previous.vocabs:
        return previous.vocabs[feature.name].extend(*counts, **rule)
    return Vocab.from_counts(*counts, **rule)


def _fit_number(
    feature: spec_lib.Numeric, values: np.ndarray, counts: np.ndarray
) -> NumericParams:
    if feature.transform == "none" or not len(values):
        return NumericParams()
    if feature.transform == "bucketise":
        return NumericParams(boundaries=_quantiles(values, counts, feature.num_buckets))
    if feature.transform == "minmax":
        low, high = float(values[0]), float(values[-1])
        return NumericParams(low, (high - low) or 1.0)
    if feature.transform == "log":
        values = np.sign(values) * np.log1p(np.abs(values))
    return _standardised(values, counts)


def _standardised(values: np.ndarray, counts: np.ndarray) -> NumericParams:
    weights = counts / max(counts.sum(), 1)
    mean = float(np.sum(weights * values))
    variance = float(np.sum(weights * (values - mean) ** 2))
    return NumericParams(mean, variance**0.5 or 1.0)


def _quantiles(
    values: np.ndarray, counts: np.ndarray, num_buckets: int
) -> tuple[float, ...]:
    """Values that begin a new bucket; equal ones once, so buckets may be fewer."""
    below = np.cumsum(counts)
    wanted = below[-1] * np.arange(1, num_buckets) / num_buckets
    index = np.searchsorted(below, wanted, side="right")
    cuts = values[np.minimum(index, len(values) - 1)]
    return tuple(np.unique(cuts[cuts > values[0]]).tolist())


def _popularity(
    of: Any, vocabs: Mapping[str, Vocab], values: pa.Array, counts: np.ndarray
) -> np.ndarray:
    if of.name in vocabs:
        size, ids = vocabs[of.name].num_ids, vocabs[of.name].lookup(values)
    else:
        size = NUM_RESERVED_IDS + of.encoding.num_buckets
        ids = hash_ids(values, of.encoding.num_buckets)
    totals = _add(ids, counts, size)
    totals[:NUM_RESERVED_IDS] = 0
    return np.log1p(totals)


def _owns_vocabulary(feature: Any) -> bool:
    return (
        isinstance(feature, spec_lib.Categorical | spec_lib.MultiValued)
        and feature.shares is None
        and isinstance(feature.encoding, spec_lib.Vocabulary)
    )


def _texts(spec: DatasetSpec, feature: Any, batch: pa.RecordBatch) -> pa.Array:
    is_list = isinstance(feature, spec_lib.MultiValued)
    name = canonical_name(
        spec, spec_lib.raw_column(feature), "ids" if is_list else "id"
    )
    column = _column(batch, name)
    return column.flatten() if is_list else column


def _text_counts(values: pa.Array) -> Counts:
    uniques, codes = hashing.dictionary_codes(values)
    return uniques, np.bincount(codes[codes >= 0], minlength=len(uniques)).astype(
        np.int64
    )


def _number_counts(values: pa.Array) -> Counts:
    numbers = values.to_numpy(zero_copy_only=False)
    numbers = _rounded(numbers[~np.isnan(numbers)])
    return np.unique(numbers, return_counts=True)


def _rounded(values: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(values)
    scale = 2.0 ** (MANTISSA_BITS + 1)
    return np.ldexp(np.round(mantissa * scale) / scale, exponent) + 0.0


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(batch.schema.get_field_index(name))
