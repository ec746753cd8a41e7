"""Raw Arrow columns of any type to the canonical types: ids, numbers, times.

Each function gives the converted column and a mask of values that cannot be
converted (missing values are null, not bad).  The result for a value depends on the
value and the column's type alone, never on its neighbours in the batch.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features import hashing

_NUMBER = r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_ISO_TIME = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?Z?)?$"
_MISSING = pa.array(["", "nan", "NaN", "null", "None", "NA", r"\N"])
_MISSING_ID = pa.array(["", "nan"])
_INT64_LIMIT = 2.0**63
_PER_SECOND = {"seconds": 1, "milliseconds": 1000}
_SECONDS_PER_DAY = 86_400


def to_id(column: pa.Array) -> tuple[pa.StringArray, np.ndarray]:
    """Returns identifiers as strings and a mask of bad ones (none are).

    Integers and integral floats are written in decimal, booleans as 0 and 1; NaN,
    the empty text and the text "nan" are null.
    """
    column = _plain(column)
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif pa.types.is_decimal(kind):
        column = _float_ids(column.cast(pa.float64()))
    elif pa.types.is_floating(kind):
        column = _float_ids(column)
    elif _is_binary(kind):
        column = _decode(column)
    elif _is_nested(kind):
        raise TypeError(f"one value a row; got {kind}")
    column = column.cast(pa.string())
    missing = pc.is_in(column, value_set=_MISSING_ID)
    if pc.any(missing).as_py():
        column = pc.if_else(missing, pa.scalar(None, pa.string()), column)
    return column, _none(column)


def to_ids(column: pa.Array, separator: str | None) -> tuple[pa.ListArray, np.ndarray]:
    """Returns lists of identifiers and a mask of bad ones (none are).

    Args:
      column: Lists of any scalar type, or text to cut at `separator`; other scalars
        are lists of one.
      separator: None: text is one identifier.

    Missing elements are dropped; a missing list is an empty one.
    """
    column = _plain(column)
    if pa.types.is_fixed_size_list(column.type):
        # Arrow 10 has no such cast; `flatten` leaves null lists out.
        lengths = np.where(_nulls(column), 0, column.type.list_size)
        column = _to_lists(lengths, column.flatten())
    elif pa.types.is_large_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if not pa.types.is_list(column.type):
        texts, _ = to_id(column)
        if separator is None:
            column = _to_lists(np.ones(len(texts), np.int64), texts)
        else:
            column = pc.split_pattern(texts, separator)
    lengths = hashing.list_lengths(column)
    flat, _ = to_id(column.flatten())
    if flat.null_count:
        kept = flat.is_valid().to_numpy(zero_copy_only=False)
        ends = np.cumsum(lengths)
        before = np.concatenate([[0], np.cumsum(kept)])
        lengths = before[ends] - before[ends - lengths]
        flat = flat.drop_null()
    lists = _to_lists(lengths, flat)
    return lists, _none(lists)


def to_number(column: pa.Array) -> tuple[pa.FloatingPointArray, np.ndarray]:
    """Returns float64 and a mask of values that are not finite numbers.

    NaN and the usual texts for a missing value are null; booleans are 0 and 1.
    """
    column = _plain(column)
    kind = column.type
    bad = _none(column)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif _is_binary(kind) or _is_text(kind):
        column, bad = _parse(_decode(column) if _is_binary(kind) else column)
    elif _is_nested(kind) or pa.types.is_temporal(kind):
        raise TypeError(f"numbers or text that holds numbers; got {kind}")
    column = column.cast(pa.float64(), safe=False)
    numbers = column.to_numpy(zero_copy_only=False)  # null as NaN
    finite = np.isfinite(numbers)
    if not finite.all():
        bad = bad | np.isinf(numbers)
        column = pa.array(numbers, pa.float64(), mask=~finite)
    return column, bad


def to_time(column: pa.Array, unit: str) -> tuple[pa.Int64Array, np.ndarray]:
    """Returns int64 times in `unit` and a mask of bad ones.

    Args:
      column: Integers or numbers in `unit` already (fractions are cut off), Arrow
        timestamps or dates, or text that holds a number or an ISO 8601 UTC time.
      unit: "seconds", "milliseconds", "days" or "order".
    """
    column = _plain(column)
    kind = column.type
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return column.cast(pa.int64()), _none(column)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _from_timestamp(column, unit), _none(column)
    numbers, bad = to_number(column)
    values = np.floor(numbers.to_numpy(zero_copy_only=False))
    fits = np.abs(values) < _INT64_LIMIT  # False for NaN
    bad = bad | (np.abs(values) >= _INT64_LIMIT)
    times = np.where(fits, values, 0).astype(np.int64)
    known = fits
    if bad.any() and _is_text(kind) and unit != "order":
        parsed = _from_timestamp(_parse_iso(column), unit)
        iso = bad & ~_nulls(parsed)
        times[iso] = parsed.filter(pa.array(iso)).to_numpy(zero_copy_only=False)
        known, bad = known | iso, bad & ~iso
    return pa.array(times, mask=~known), bad


def to_day(column: pa.Array) -> tuple[pa.Int64Array, np.ndarray]:
    """Returns days as YYYYMMDD int64 and a mask of bad ones.

    Args:
      column: Numbers or text YYYYMMDD, text YYYY-MM-DD, Arrow dates or timestamps.
    """
    column = _plain(column)
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        days, bad = to_time(column, "days")
        filled = pc.fill_null(days, 0).to_numpy(zero_copy_only=False)
        dates = pa.array(yyyymmdd(filled), mask=_nulls(days))
        return dates.cast(pa.int64()), bad
    if _is_text(kind):
        column = pc.replace_substring_regex(
            column, r"^(\d{4})-(\d\d)-(\d\d)$", r"\1\2\3"
        )
    days, bad = to_time(column, "order")
    values = pc.fill_null(days, 19700101).to_numpy(zero_copy_only=False)
    month, day = values // 100 % 100, values % 100
    fits = (values >= 1_01_01) & (values <= 9999_12_31)
    fits &= (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return days, bad | ~fits


def days_of(times: np.ndarray, unit: str) -> np.ndarray:
    """Returns UTC days since 1970-01-01, int64, of times in `unit`."""
    if unit == "days":
        return times
    return times // (_SECONDS_PER_DAY * _PER_SECOND[unit])


def yyyymmdd(days: np.ndarray) -> np.ndarray:
    """Returns int32 YYYYMMDD of days since 1970-01-01 (years 1 to 9999).

    >>> yyyymmdd(np.array([0, 19_107])).tolist()
    [19700101, 20220425]
    """
    dates = days.astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    years = dates.astype("datetime64[Y]")
    year = years.astype(np.int64) + 1970
    month = (months - years.astype("datetime64[M]")).astype(np.int64) + 1
    day = (dates - months.astype("datetime64[D]")).astype(np.int64) + 1
    return (year * 10_000 + month * 100 + day).astype(np.int32)


def _plain(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_null(column.type):
        column = column.cast(pa.string())
    return column


def _float_ids(column: pa.Array) -> pa.StringArray:
    """Floats as text: integral ones in decimal, NaN as null."""
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        integral = (np.floor(values) == values) & (np.abs(values) < _INT64_LIMIT)
    whole = pa.array(np.where(integral, values, 0).astype(np.int64)).cast(pa.string())
    if integral.all():
        return whole
    text = pc.if_else(pa.array(integral), whole, column.cast(pa.string()))
    return pc.if_else(pa.array(np.isnan(values)), pa.scalar(None, pa.string()), text)


def _decode(column: pa.Array) -> pa.StringArray:
    """Bytes as text; bytes that are not UTF-8 are shown with replacement marks."""
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        encoded = pc.dictionary_encode(column.cast(pa.binary()))
        texts = [v.decode("utf-8", "replace") for v in encoded.dictionary.to_pylist()]
        return pa.array(texts, pa.string()).take(encoded.indices)


def _parse(texts: pa.StringArray) -> tuple[pa.Array, np.ndarray]:
    """Text as float64; null where missing or bad."""
    texts = pc.utf8_trim_whitespace(texts)
    missing = pc.fill_null(pc.is_in(texts, value_set=_MISSING), True)
    good = pc.fill_null(pc.match_substring_regex(texts, _NUMBER), False)
    numbers = pc.if_else(good, texts, pa.scalar(None, pa.string())).cast(pa.float64())
    bad = pc.invert(pc.or_(pc.or_(good, missing), texts.is_null()))
    return numbers, bad.to_numpy(zero_copy_only=False)


def _parse_iso(texts: pa.StringArray) -> pa.TimestampArray:
    """ISO 8601 texts as UTC times; null where a text is none, such as 2022-02-31."""
    texts = pc.utf8_trim_whitespace(texts)
    chosen = pc.match_substring_regex(texts, _ISO_TIME)
    texts = pc.if_else(chosen, texts, pa.scalar(None, pa.string()))
    # pandas makes NaT of an impossible date; Arrow's cast would refuse the batch.
    times = pd.to_datetime(
        pd.Series(texts.to_numpy(zero_copy_only=False)), errors="coerce", utc=True
    )
    return pa.array(times, pa.timestamp("us", "UTC"))


def _to_lists(lengths: np.ndarray, flat: pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, flat)


def _from_timestamp(column: pa.Array, unit: str) -> pa.Int64Array:
    if unit == "order":
        return column.cast(pa.int64())
    scale = "ms" if unit == "milliseconds" else "s"
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    times = column.cast(pa.timestamp(scale), safe=False).cast(pa.int64())
    if unit != "days":
        return times
    filled = pc.fill_null(times, 0).to_numpy(zero_copy_only=False)
    return pa.array(filled // _SECONDS_PER_DAY, mask=_nulls(times))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_nested(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) or pa.types.is_union(kind) or pa.types.is_map(kind)


def _none(column: pa.Array) -> np.ndarray:
    return np.zeros(len(column), bool)


def _nulls(column: pa.Array) -> np.ndarray:
    return column.is_null().to_numpy(zero_copy_only=False)
