"""Learning vocabularies, numeric parameters and popularity from training rows.

Everything is learnt from *counts of values*: they add up in any order, so the result is
the same for any number of workers and bundles, to the bit.  Up to MAX_DISTINCT numbers
are counted exactly.  When a feature has more, mantissas are cut to the most bits that
leave at most so many; cutting twice is cutting once at the coarser place, so this too
is the same however the rows were bundled.  The grid follows the data: a day's worth of
epoch seconds keeps its spread.  Means, deviations and quantiles are then computed over
the sorted values in float64.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features import hashing
from features import spec as spec_lib
from features.config import ConfigError
from features.domains import FittedDomains
from features.fitted import Fitted, NumericParams
from features.layout import canonical_name
from features.spec import NUM_RESERVED_IDS, DatasetSpec
from features.vocab import Vocab, hash_ids

MAX_DISTINCT = 2**16  # numbers counted per feature: bounds a partial at 1 MiB
FULL_BITS = 52  # of a float64's mantissa; the bits kept go down in steps
_BITS_STEP = 4


class NumberCounts(NamedTuple):
    """Rows by number.

    Attributes:
      values: Ascending, float64 [N], mantissas cut to `bits`.
      counts: Rows of each, int64 [N].
      bits: Bits of mantissa kept, FULL_BITS = exact.
    """

    values: np.ndarray
    counts: np.ndarray
    bits: int


TextCounts = tuple[pa.StringArray, np.ndarray]
Counts = TextCounts | NumberCounts


def partial_counts(spec: DatasetSpec, batch: pa.RecordBatch) -> dict[str, Counts]:
    """Returns distinct values and their rows, by feature, of a batch of training rows.

    Vocabulary features give (strings, int64 counts), numeric ones `NumberCounts`; a
    popularity feature reads the counts of its `of`.  Missing values are not counted.
    """
    result: dict[str, Counts] = {}
    for feature in spec.features:
        if _owns_vocabulary(feature):
            result[feature.name] = _text_counts(_texts(spec, feature, batch))
        elif isinstance(feature, spec_lib.Numeric):
            name = canonical_name(spec, spec_lib.raw_column(feature), "number")
            numbers = _column(batch, name).to_numpy(zero_copy_only=False)
            numbers = numbers[~np.isnan(numbers)]
            ones = np.ones(len(numbers), np.int64)
            result[feature.name] = _count_numbers(numbers, ones, FULL_BITS)
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


def _merge_one(parts: list[Any]) -> Counts:
    counts = np.concatenate([part[1] for part in parts])
    if isinstance(parts[0], NumberCounts):
        values = np.concatenate([part.values for part in parts])
        return _count_numbers(values, counts, min(part.bits for part in parts))
    texts = pa.concat_arrays([part[0] for part in parts])
    uniques, codes = hashing.dictionary_codes(texts)
    totals = _add(codes, counts, len(uniques))
    order = pc.sort_indices(uniques)
    return uniques.take(order), totals[order.to_numpy()]


def _add(codes: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    totals = np.zeros(size, np.int64)
    np.add.at(totals, codes, counts)
    return totals


def fit(
    spec: DatasetSpec,
    merged: Mapping[str, Any],
    domains: FittedDomains,
    previous: Fitted | None = None,
) -> Fitted:
    """Returns what encodes the rows.

    Args:
      spec: The dataset spec.
      merged: Counts over all training rows.
      domains: The domains.
      previous: Fitted state that is continued, so that a trained model stays of use:
        old values keep their ids, new ones are appended, the version goes up;
        numbers keep their shift, scale and buckets.  Popularity is counted anew.

    Raises:
      ConfigError: When the domains do not begin with those of `previous`.
    """
    if previous is not None:
        _check_domains(domains, previous)
    vocabs = {
        f.name: _fit_vocab(f, merged[f.name], previous)
        for f in spec.features
        if _owns_vocabulary(f)
    }
    numeric, popularity = {}, {}
    for feature in spec.features:
        if isinstance(feature, spec_lib.Numeric):
            numbers = merged[feature.name]
            numeric[feature.name] = _fit_number(feature, numbers[0], numbers[1])
        elif isinstance(feature, spec_lib.Popularity):
            of = spec.feature(feature.of)
            values, counts = merged[feature.of]
            ids, table = _popularity(of, vocabs, values, counts)
            popularity[feature.name] = table.astype(np.float32)
            numeric[feature.name] = _standardised(table[ids], counts)
    if previous is not None:
        numeric |= {n: p for n, p in previous.numeric.items() if n in numeric}
    return Fitted(
        domains=domains.names,
        domain_values=dict(domains.values),
        domain_default=domains.default,
        vocabs=vocabs,
        numeric=numeric,
        popularity=popularity,
    )


def _check_domains(domains: FittedDomains, previous: Fitted) -> None:
    if domains.names[: len(previous.domains)] != previous.domains:
        raise ConfigError(
            "domains must begin with those of the data set that is continued; got "
            f"{', '.join(domains.names)} after {', '.join(previous.domains)}. Fix the "
            "order with domain.values or a value map, or start anew."
        )


def _fit_vocab(feature: Any, counts: Any, previous: Fitted | None) -> Vocab:
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
) -> tuple[np.ndarray, np.ndarray]:
    """Id of each value, and log(1 + rows) of each id, float64 [num ids]."""
    if of.name in vocabs:
        size, ids = vocabs[of.name].num_ids, vocabs[of.name].lookup(values)
    else:
        size = NUM_RESERVED_IDS + of.encoding.num_buckets
        ids = hash_ids(values, of.encoding.num_buckets)
    totals = _add(ids, counts, size)
    totals[:NUM_RESERVED_IDS] = 0
    return ids, np.log1p(totals)


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


def _text_counts(values: pa.Array) -> TextCounts:
    uniques, codes = hashing.dictionary_codes(values)
    return uniques, np.bincount(codes[codes >= 0], minlength=len(uniques)).astype(
        np.int64
    )


def _count_numbers(values: np.ndarray, counts: np.ndarray, bits: int) -> NumberCounts:
    """Adds up equal numbers, cutting mantissas from `bits` down as far as needed."""
    # Sorted once: cutting towards 0 keeps the order, so equal ones stay neighbours.
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    while True:
        cut = _cut(values, bits)
        first = np.flatnonzero(np.diff(cut, prepend=np.nan) != 0)
        if len(first) <= MAX_DISTINCT:
            totals = np.add.reduceat(counts, first) if len(first) else counts
            return NumberCounts(cut[first], totals, bits)
        bits -= _BITS_STEP


def _cut(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers with the mantissa's last bits zero: towards 0, so cuts compose."""
    if bits >= FULL_BITS:
        return values + 0.0  # -0.0 is 0.0
    mask = np.int64(-1) << np.int64(FULL_BITS - bits)
    return (values.view(np.int64) & mask).view(np.float64) + 0.0


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(batch.schema.get_field_index(name))
