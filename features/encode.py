"""Canonical rows to the columns on disk, and back to readable values."""

from typing import Any

import numpy as np
import pyarrow as pa

from features import hashing
from features import spec as spec_lib
from features.fitted import Fitted, NumericParams
from features.layout import canonical_name
from features.schema import LABEL_PREFIX, encoded_columns
from features.spec import NUM_RESERVED_IDS, PAD_ID, UNKNOWN_ID, DatasetSpec
from features.vocab import hash_ids

UNKNOWN_TEXT = "<unknown>"


def encode(
    spec: DatasetSpec, fitted: Fitted, batch: pa.RecordBatch
) -> tuple[pa.RecordBatch, dict[str, int]]:
    """Returns the encoded rows and how many ids of each feature became unknown.

    Args:
      spec: The dataset spec.
      fitted: What was learnt from training rows.
      batch: Canonical rows [B] with `domain` and the computed histories.

    Returns:
      Exactly the columns of `encoded_columns(spec)`: int64 or float32 [B], lists as
      FixedSizeList<int64>; and feature -> number of UNKNOWN_ID.
    """
    unknown: dict[str, int] = {}
    arrays, names = [], []
    for column in encoded_columns(spec):
        values = _column(spec, fitted, batch, column.name)
        if column.dtype == "int64" and not _is_plain(spec, column.name):
            count = int(np.count_nonzero(values == UNKNOWN_ID))
            if count:
                unknown[column.name] = count
        kind = pa.int64() if column.dtype == "int64" else pa.float32()
        array = pa.array(np.ascontiguousarray(values.reshape(-1)), kind)
        if values.ndim == 2:
            array = pa.FixedSizeListArray.from_arrays(array, values.shape[1])
        arrays.append(array)
        names.append(column.name)
    return pa.RecordBatch.from_arrays(arrays, names), unknown


def _is_plain(spec: DatasetSpec, name: str) -> bool:
    return name not in {f.name for f in spec.features}


def _column(
    spec: DatasetSpec, fitted: Fitted, batch: pa.RecordBatch, name: str
) -> np.ndarray:
    if _is_plain(spec, name):
        values = _get(batch, name).to_numpy(zero_copy_only=False)
        return values.astype(np.float32 if name == "weight" else np.int64)
    feature = spec.feature(name)
    match feature:
        case spec_lib.Categorical():
            return _ids(spec, fitted, name, _texts(spec, feature, batch))
        case spec_lib.MultiValued():
            lists = _texts(spec, feature, batch)
            return _padded(spec, fitted, name, lists, feature.max_length, last=False)
        case spec_lib.Sequence():
            column = feature.column
            at = name if column is None else canonical_name(spec, column, "ids")
            lists = _get(batch, at)
            return _padded(spec, fitted, name, lists, feature.max_length, last=True)
        case spec_lib.Popularity():
            of = spec.feature(feature.of)
            ids = _ids(spec, fitted, of.name, _texts(spec, of, batch))
            raw = fitted.popularity[name].astype(np.float64)[ids]
            return normalise(raw, fitted.numeric[name])
        case _:
            at = canonical_name(spec, spec_lib.raw_column(feature), "number")
            numbers = _get(batch, at).to_numpy(zero_copy_only=False)
            return _numbers(feature, numbers, fitted.numeric[name])


def _ids(spec: DatasetSpec, fitted: Fitted, name: str, texts: pa.Array) -> np.ndarray:
    table = spec.table_of(name)
    if table in fitted.vocabs:
        return fitted.vocabs[table].lookup(texts)
    return hash_ids(texts, spec.feature(table).encoding.num_buckets)


def _padded(
    spec: DatasetSpec,
    fitted: Fitted,
    name: str,
    lists: pa.ListArray,
    length: int,
    *,
    last: bool,
) -> np.ndarray:
    """Ids int64 [B, length] of list rows: the last or the first `length` of each."""
    lengths = hashing.list_lengths(lists)
    ids = _ids(spec, fitted, name, lists.flatten())
    kept = np.minimum(lengths, length)
    starts = np.cumsum(lengths) - lengths + (lengths - kept if last else 0)
    result = np.full((len(lengths), length), PAD_ID, np.int64)
    place = np.arange(length)[None, :] < kept[:, None]
    offsets = np.cumsum(kept) - kept
    result[place] = ids[np.arange(int(kept.sum())) + np.repeat(starts - offsets, kept)]
    return result


def _numbers(
    feature: spec_lib.Numeric, values: np.ndarray, params: NumericParams
) -> np.ndarray:
    if feature.transform == "bucketise":
        bucket = np.searchsorted(np.array(params.boundaries), values, side="right")
        return np.where(np.isnan(values), UNKNOWN_ID, bucket + NUM_RESERVED_IDS)
    if feature.transform == "log":
        values = np.sign(values) * np.log1p(np.abs(values))
    return normalise(values, params)


def normalise(values: np.ndarray, params: NumericParams) -> np.ndarray:
    """Returns (values - shift) / scale as float32; NaN (missing) becomes 0."""
    scaled = (values - params.shift) / params.scale
    return np.nan_to_num(scaled, nan=0.0).astype(np.float32)


def decode(spec: DatasetSpec, fitted: Fitted, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns encoded rows as readable values: texts, numbers, domain names.

    Unknown ids read `<unknown>`, hashed ones `#<id>` (a hash has no way back);
    bucketised numbers read as the range of their bucket.
    """
    columns = {}
    for column in encoded_columns(spec):
        values = _get(batch, column.name)
        columns[column.name] = _decoded(spec, fitted, column.name, values)
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def texts_of_ids(
    spec: DatasetSpec, fitted: Fitted, name: str, ids: np.ndarray
) -> list[str]:
    """Returns ids of a feature, int64 [N], as `decode` shows them."""
    return _decoded(spec, fitted, name, pa.array(ids)).to_pylist()


def _decoded(spec: DatasetSpec, fitted: Fitted, name: str, values: Any) -> pa.Array:
    if name == "domain":
        return pa.array(np.array(fitted.domains, object)[values.to_numpy()])
    if name.startswith(LABEL_PREFIX) or _is_plain(spec, name):
        return values
    feature = spec.feature(name)
    if isinstance(feature, spec_lib.Popularity):
        return _raw_numbers(values, fitted.numeric[name], "none")
    if isinstance(feature, spec_lib.Numeric):
        params = fitted.numeric[name]
        if feature.transform == "bucketise":
            return _buckets(values, params)
        return _raw_numbers(values, params, feature.transform)
    if pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
        flat = values.flatten()
        lengths = np.full(len(values), len(flat) // max(len(values), 1))
        ids = flat.to_numpy()
        keep = ids != PAD_ID
        owner = np.repeat(np.arange(len(values)), lengths)[keep]
        counts = np.bincount(owner, minlength=len(values))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        texts = _texts_of(spec, fitted, name, ids[keep])
        return pa.ListArray.from_arrays(pa.array(offsets), texts)
    return _texts_of(spec, fitted, name, values.to_numpy())


def _texts_of(
    spec: DatasetSpec, fitted: Fitted, name: str, ids: np.ndarray
) -> pa.Array:
    table = spec.table_of(name)
    if table in fitted.vocabs:
        texts = pa.concat_arrays(
            [pa.array(["", UNKNOWN_TEXT]), fitted.vocabs[table].array]
        )
        return texts.take(pa.array(ids))
    texts = [UNKNOWN_TEXT if i == UNKNOWN_ID else f"#{i}" for i in ids.tolist()]
    return pa.array(texts, pa.string())


def _raw_numbers(values: Any, params: NumericParams, transform: str) -> pa.Array:
    raw = values.to_numpy().astype(np.float64) * params.scale + params.shift
    if transform == "log":
        raw = np.sign(raw) * np.expm1(np.abs(raw))
    return pa.array(raw)


def _buckets(values: Any, params: NumericParams) -> pa.Array:
    edges = ["-inf", *(f"{b:g}" for b in params.boundaries), "inf"]
    names = ["", UNKNOWN_TEXT]
    names += [f"[{a}, {b})" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return pa.array(names, pa.string()).take(values)


def _texts(spec: DatasetSpec, feature: Any, batch: pa.RecordBatch) -> pa.Array:
    kind = "ids" if isinstance(feature, spec_lib.MultiValued) else "id"
    return _get(batch, canonical_name(spec, spec_lib.raw_column(feature), kind))


def _get(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(batch.schema.get_field_index(name))
