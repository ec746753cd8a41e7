"""Writes encoded columns as TFRecords of tf.Example, in block or row format.

*Row* format: one tf.Example a row.  *Block* format: one tf.Example holds up to
`block_rows` rows column by column (the values of a column one row after another),
and the feature `num_rows`.  Both carry the same columns
(`features.schema.encoded_columns`), so either can be had from the other.
"""

import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

NUM_ROWS = "num_rows"  # feature of a block: how many rows it holds
DEFAULT_BLOCK_ROWS = 4096  # parse speed is flat from about 1,000 rows on
COMPRESSIONS = ("", "GZIP")
RECORD_FORMATS = ("block", "row")
_ENCODE_ROWS = 65536  # rows handed to the C++ encoder at once: bounds its memory
_MAP_ENTRY = 0x0A  # wire tag of Features.feature, and of Example.features


def write_records(
    path: str | pathlib.Path,
    batch: pa.RecordBatch | pa.Table,
    *,
    record_format: str = "block",
    block_rows: int = DEFAULT_BLOCK_ROWS,
    compression: str = "",
) -> int:
    """Writes the rows of `batch` to one file; returns the number of records.

    The same rows give the same bytes, on any machine and in any process.

    Args:
      path: File to write; it is replaced.
      batch: Encoded columns, in the order of `encoded_columns`: int64 or float32,
        flat for length 1, FixedSizeList<int64>(n) for length n.  May have no rows.
      record_format: "block" or "row".
      block_rows: Rows a block holds; the last one may be shorter.  Unused by "row".
      compression: "" or "GZIP".

    Raises:
      ValueError: For an unknown format or compression, or a column with nulls.
      TypeError: For a column of another type.
    """
    import tensorflow as tf

    check_format(record_format, block_rows, compression)
    options = tf.io.TFRecordOptions(compression_type=compression)
    count = 0
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for record in encode_records(
            batch, record_format=record_format, block_rows=block_rows
        ):
            writer.write(record)
            count += 1
    return count


def encode_records(
    batch: pa.RecordBatch | pa.Table,
    *,
    record_format: str = "block",
    block_rows: int = DEFAULT_BLOCK_ROWS,
) -> Iterator[bytes]:
    """Yields the serialized tf.Examples that `write_records` would write."""
    from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

    check_format(record_format, block_rows, "")
    rows_each = block_rows if record_format == "block" else 1
    encoder = RecordBatchToExamplesEncoder()
    columns = [
        _flat_values(name, column)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    step = max(_ENCODE_ROWS // rows_each, 1) * rows_each
    for start in range(0, batch.num_rows, step):
        stop = min(start + step, batch.num_rows)
        bounds = np.append(np.arange(start, stop, rows_each), stop)
        arrays = [
            _listed(values.slice(start * n, (stop - start) * n), (bounds - start) * n)
            for values, n in columns
        ]
        names = list(batch.schema.names)
        if record_format == "block":
            names.append(NUM_ROWS)
            arrays.append(_listed(pa.array(np.diff(bounds)), np.arange(len(bounds))))
        lists = pa.RecordBatch.from_arrays(arrays, names)
        yield from map(_canonical, encoder.encode(lists))


def check_format(record_format: str, block_rows: int, compression: str) -> None:
    """Raises ValueError unless the three describe a file that can be written."""
    for name, value, known in (
        ("record_format", record_format, RECORD_FORMATS),
        ("compression", compression, COMPRESSIONS),
    ):
        if value not in known:
            raise ValueError(
                f"write_records.{name} must be one of {known}; got {value!r}."
            )
    if block_rows < 1:
        raise ValueError(
            f"write_records.block_rows must be at least 1; got {block_rows}."
        )


def _flat_values(name: str, column: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, int]:
    """Returns a column's values one after another, and how many a row has."""
    if isinstance(column, pa.ChunkedArray):
        chunks = column.chunks
        column = (
            chunks[0]
            if len(chunks) == 1
            else pa.concat_arrays(chunks)
            if chunks
            else pa.array([], column.type)
        )
    length = 1
    nulls = column.null_count
    if pa.types.is_fixed_size_list(column.type):
        length = column.type.list_size
        column = column.flatten()
        nulls += column.null_count
    if column.type not in (pa.int64(), pa.float32()):
        raise TypeError(
            f"write_records.batch column {name!r} must be int64 or float32, or a "
            f"fixed-size list of int64; got {column.type}. Cast it."
        )
    if nulls:
        raise ValueError(
            f"write_records.batch column {name!r} must have no nulls; got {nulls}. "
            "Encode missing values first (features.encode)."
        )
    return column, length


def _listed(values: pa.Array, offsets: np.ndarray) -> pa.LargeListArray:
    """Returns the list array that tfx-bsl wants: one list a record."""
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)


def _canonical(example: bytes) -> bytes:
    """Returns the same tf.Example with its features sorted.

    The encoder walks a hash map whose order differs from call to call; as map
    entries may stand in any order, sorting them makes the bytes reproducible.
    """
    _, at = _varint(example, 1)  # past the tag and length of Example.features
    ends = []
    start = at
    while at < len(example):
        if example[at] != _MAP_ENTRY:
            raise ValueError(
                "tf.Example must be features only; got wire tag "
                f"{example[at]} at byte {at}. Install the locked tfx-bsl."
            )
        length, at = _varint(example, at + 1)
        at += length
        ends.append(at)
    entries = sorted(
        example[a:b] for a, b in zip([start, *ends[:-1]], ends, strict=True)
    )
    return example[:start] + b"".join(entries)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the base-128 number at byte `at`, and the byte after it."""
    value = data[at] & 0x7F
    shift = 7
    while data[at] & 0x80:
        at += 1
        value |= (data[at] & 0x7F) << shift
        shift += 7
    return value, at + 1
