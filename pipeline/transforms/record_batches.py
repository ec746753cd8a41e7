"""`pa.RecordBatch` as a Beam element: coder, and the row operations jobs share."""

from collections.abc import Iterable

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features import hashing


class RecordBatchCoder(beam.coders.Coder):
    """Arrow IPC stream of one batch.

    Pickle, the default, writes the whole parent of a slice; IPC only the slice, and
    it reads without a copy.  No compression: between local processes lz4 costs more
    than it saves.
    """

    def encode(self, value: pa.RecordBatch) -> bytes:
        """Returns the batch as one IPC stream."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """Returns the batch; its columns are views of `encoded`."""
        return pa.ipc.open_stream(pa.py_buffer(encoded)).read_next_batch()

    def is_deterministic(self) -> bool:
        """Returns True: equal batches of equal layout give equal bytes."""
        return True

    def to_type_hint(self) -> type:
        """Returns the type this coder is for."""
        return pa.RecordBatch


def register_coder() -> None:
    """Makes `RecordBatchCoder` the coder of every `pa.RecordBatch` element."""
    beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)


def concat(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """Returns all rows as one batch, in the given order."""
    return one_batch(pa.Table.from_batches(list(batches)))


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Returns the rows of a table as one contiguous batch."""
    columns = [_one_chunk(column) for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    # Not combine_chunks(): the result of that is chunked or not by version.
    return pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def split_by(
    batch: pa.RecordBatch, group: np.ndarray
) -> list[tuple[int, pa.RecordBatch]]:
    """Returns the rows of each group, groups ascending, row order kept.

    Args:
      batch: B rows.
      group: [B] integers.
    """
    if not len(group):
        return []
    order = np.argsort(group, kind="stable")
    ranked = group[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    if len(starts) == 1:
        return [(int(ranked[0]), batch)]
    moved = take(batch, order)
    ends = np.r_[starts[1:], len(group)]
    return [
        (int(ranked[a]), moved.slice(a, b - a))
        for a, b in zip(starts, ends, strict=True)
    ]


def take(batch: pa.RecordBatch, order: np.ndarray) -> pa.RecordBatch:
    """Returns the rows at the positions in `order`."""
    rows = pa.array(order)
    columns = [_take(column, rows, order) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _take(column: pa.Array, rows: pa.Array, order: np.ndarray) -> pa.Array:
    if not pa.types.is_fixed_size_list(column.type) or column.null_count:
        return column.take(rows)
    # Arrow's take builds fixed-size lists value by value; NumPy copies whole rows.
    width = column.type.list_size
    values = column.flatten()
    moved = values.to_numpy(zero_copy_only=False).reshape(-1, width)[order]
    return pa.FixedSizeListArray.from_arrays(
        pa.array(moved.reshape(-1), values.type), width
    )


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the batch with texts for dictionary-encoded texts in lists."""
    arrays = []
    for column in batch.columns:
        kind = column.type
        if pa.types.is_list(kind) and pa.types.is_dictionary(kind.value_type):
            lengths = hashing.list_lengths(column)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            texts = column.flatten().dictionary_decode()
            column = pa.ListArray.from_arrays(pa.array(offsets), texts)
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, batch.schema.names)


def integers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Returns a column of integers without nulls as a NumPy array (a view), [B]."""
    column = batch.column(batch.schema.get_field_index(name))
    return column.to_numpy(zero_copy_only=False)


def order_keys(row_id: np.ndarray, seed: int) -> np.ndarray:
    """Returns the place of each row in the global shuffle, as a 64-bit number.

    Args:
      row_id: [B] int64, the hash of the row's content.
      seed: Another seed gives an unrelated order.

    Returns:
      [B] uint64.
    """
    salt = hashing.mix64(np.array([seed], np.uint64))
    return hashing.mix64(row_id.astype(np.uint64) + salt)
