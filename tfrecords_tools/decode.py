"""From tf.Examples back to columns: tensors for the reader, Arrow for the tools."""

import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import tensorflow as tf

from features.schema import EncodedColumn
from tfrecords_tools import encode, records

_DTYPES = {"int64": tf.int64, "float32": tf.float32}
_ROWS_AT_ONCE = 65536  # rows parsed together by read_batches: bounds its memory


class DecodeError(ValueError):
    """Records that do not hold the columns expected of them."""


def parse_columns(
    serialized: tf.Tensor, columns: Sequence[EncodedColumn], record_format: str
) -> dict[str, tf.Tensor]:
    """Returns the columns of some records, rows in the order of the records.

    Works in a graph and eagerly.

    Args:
      serialized: tf.Examples, string [W].
      columns: Columns to parse; others in the records cost nothing.
      record_format: "block" or "row".

    Returns:
      By column name int64 or float32 [N] (length 1) or [N, length], N the rows in
      all W records; and for blocks `num_rows`, int64 [W].

    Raises:
      tf.errors.InvalidArgumentError: For a record that lacks a column, or holds
        another number of values than its rows need.
    """
    if record_format == "row":
        spec = {
            c.name: tf.io.FixedLenFeature(
                [] if c.length == 1 else [c.length], _DTYPES[c.dtype]
            )
            for c in columns
        }
        return tf.io.parse_example(serialized, spec)
    spec = {
        c.name: tf.io.RaggedFeature(_DTYPES[c.dtype], row_splits_dtype=tf.int64)
        for c in columns
    }
    spec[encode.NUM_ROWS] = tf.io.FixedLenFeature([], tf.int64)
    parsed = tf.io.parse_example(serialized, spec)
    num_rows = parsed.pop(encode.NUM_ROWS)
    fits = [
        tf.reduce_all(parsed[c.name].row_lengths() == num_rows * c.length)
        for c in columns
    ]
    messages = [
        f"column {c.name} must have {c.length} value(s) a row; the records hold "
        "another number. Prepare the data set again."
        for c in columns
    ]
    # One check for all: each would cost a conditional, and the tracing of one.
    check = tf.debugging.Assert(
        tf.reduce_all(fits), [tf.boolean_mask(messages, tf.logical_not(fits))]
    )
    result = {}
    with tf.control_dependencies([check] if check is not None else []):
        for c in columns:
            values = parsed[c.name].flat_values
            wide = values if c.length == 1 else tf.reshape(values, [-1, c.length])
            result[c.name] = tf.identity(wide)
    result[encode.NUM_ROWS] = num_rows
    return result


def read_batches(
    path: str | pathlib.Path,
    columns: Sequence[EncodedColumn],
    *,
    record_format: str = "block",
    compression: str = "",
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of one file in order, some ten thousands at a time.

    Args:
      path: Record file.
      columns: Columns to read; all of them for a round trip.
      record_format: "block" or "row".
      compression: "" or "GZIP".

    Raises:
      records.RecordError: For a corrupt or truncated record.
      DecodeError: For records of another schema.
    """
    stream = iter(records.read_records(path, compression))
    for first in stream:
        group = [first.data, *_take(stream, _group_size(first.data, record_format))]
        try:
            parsed = parse_columns(tf.constant(group), columns, record_format)
        except tf.errors.InvalidArgumentError as error:
            raise DecodeError(
                f"{path}: records from {first.number} on must hold the data set's "
                f"columns: {error.message}"
            ) from error
        parsed.pop(encode.NUM_ROWS, None)
        yield to_arrow({k: v.numpy() for k, v in parsed.items()}, columns)


def read_table(
    paths: str | pathlib.Path | Iterable[str | pathlib.Path],
    columns: Sequence[EncodedColumn],
    *,
    record_format: str = "block",
    compression: str = "",
    max_rows: int | None = None,
) -> pa.RecordBatch:
    """Returns the rows of some files as one record batch (`read_batches`, joined).

    Args:
      paths: One file or several.
      columns: Columns to read.
      record_format: "block" or "row".
      compression: "" or "GZIP".
      max_rows: Stop after so many rows; None reads all.
    """
    if isinstance(paths, str | pathlib.Path):
        paths = [paths]
    parts, rows = [to_arrow({}, columns)], 0
    for path in paths:
        for part in read_batches(
            path, columns, record_format=record_format, compression=compression
        ):
            parts.append(part)
            rows += part.num_rows
            if max_rows is not None and rows >= max_rows:
                break
        if max_rows is not None and rows >= max_rows:
            break
    table = pa.Table.from_batches(parts).combine_chunks()
    batch = table.to_batches()[0] if table.num_rows else parts[0]
    return batch if max_rows is None else batch.slice(0, max_rows)


def to_arrow(
    values: dict[str, np.ndarray], columns: Sequence[EncodedColumn]
) -> pa.RecordBatch:
    """Returns arrays [N] or [N, length] as a record batch; {} gives no rows."""
    arrays = []
    for c in columns:
        array = pa.array(np.asarray(values.get(c.name, []), c.dtype).ravel())
        if c.length > 1:
            array = pa.FixedSizeListArray.from_arrays(array, c.length)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, [c.name for c in columns])


def _group_size(first: bytes, record_format: str) -> int:
    """Records to add to the first one, for about `_ROWS_AT_ONCE` rows."""
    if record_format == "row":
        return _ROWS_AT_ONCE - 1
    return max(_ROWS_AT_ONCE // max(block_num_rows(first), 1), 1) - 1


def block_num_rows(block: bytes) -> int:
    """Returns the rows that one serialized block says it holds."""
    parsed = tf.io.parse_single_example(
        block, {encode.NUM_ROWS: tf.io.FixedLenFeature([], tf.int64)}
    )
    return int(parsed[encode.NUM_ROWS])


def _take(stream: Iterator[records.Record], count: int) -> list[bytes]:
    return [record.data for record in itertools.islice(stream, count)]
