"""Join of side tables (users, items) to batches of the log."""

import numpy as np
import pandas as pd
import pyarrow as pa

from features import convert
from pipeline.errors import JobError


class TableIndex:
    """A side table with an index on its key, built once.

    Args:
      name: What the table is, for errors.
      table: The rows; keys must be unique.
      key: Column of the table.
      log_key: Column of the log.

    Raises:
      JobError: When a key is missing or stands twice.
    """

    def __init__(self, name: str, table: pa.Table, key: str, log_key: str) -> None:
        self.name, self.log_key = name, log_key
        if key not in table.column_names:
            raise JobError(
                f"{name}.key must be a column of the table; got {key!r}, the table "
                f"has {', '.join(table.column_names)}."
            )
        keys = table.column(key)
        self._is_integer = pa.types.is_integer(keys.type) and keys.null_count == 0
        self._index = pd.Index(_keys(keys, self._is_integer))
        if not self._index.is_unique:
            twice = self._index[self._index.duplicated()][:3].tolist()
            raise JobError(
                f"{name}.key must be unique in the table; column {key!r} has "
                f"{twice} more than once. A row of the log would match several rows."
            )
        self._values = table.drop([key]).combine_chunks()

    def join(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the table's columns; null where no key matches.

        A column that the log has already keeps the log's values.
        """
        where = batch.schema.get_field_index(self.log_key)
        if where < 0:
            raise JobError(
                f"{self.name}.log_key must be a column of the log; got "
                f"{self.log_key!r}, the log has {', '.join(batch.schema.names)}."
            )
        keys = batch.column(where)
        if self._is_integer and pa.types.is_integer(keys.type):
            found = self._index.get_indexer(
                keys.fill_null(0).to_numpy(zero_copy_only=False)
            )
            if keys.null_count:
                found[keys.is_null().to_numpy(zero_copy_only=False)] = -1
        else:
            index = self._index.astype(str) if self._is_integer else self._index
            # Few distinct keys stand for many rows: look each up once.
            coded = _text(keys).dictionary_encode()
            place = index.get_indexer(coded.dictionary.to_pandas())
            codes = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
            found = place[codes] if len(place) else np.full(len(codes), -1)
            found = np.where(
                coded.indices.is_null().to_numpy(zero_copy_only=False), -1, found
            )
        rows = pa.array(found, mask=found < 0)
        names, columns = list(batch.schema.names), list(batch.columns)
        for name in self._values.column_names:
            if name not in batch.schema.names:
                taken = self._values.column(name).take(rows)
                names.append(name)
                columns.append(pa.concat_arrays(taken.chunks))
        return pa.RecordBatch.from_arrays(columns, names)


def _keys(column: pa.ChunkedArray, is_integer: bool) -> pd.Series:
    return (column if is_integer else _text(column)).to_pandas()


def _text(values: pa.Array | pa.ChunkedArray) -> pa.StringArray:
    # Identifiers are compared as text: 7 and "7" are one.
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks or [pa.array([], values.type)])
    return convert.to_id(values)[0]
