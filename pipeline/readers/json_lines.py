"""JSON lines to Arrow: a C++ fast path per block, and a path that finds bad lines."""

import json
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from pipeline.readers import base
from pipeline.readers.base import ReadError, ReadResult

MALFORMED_JSON = "malformed JSON line"
EXACT_FLOAT = 2.0**53  # integers from here on may have been rounded on the way


def read(
    path: str, columns: Collection[str] | None, block_bytes: int
) -> Iterator[ReadResult]:
    """Yields a file's rows; a line that is no JSON object is one rejected row."""
    name = pathlib.Path(path).name
    text_columns: set[str] = set()
    line = 1
    for block in _blocks(path, block_bytes):
        table = _fast(block, text_columns)
        bad: list[str] = []
        if table is None:
            table, bad = _slow(block, name, line, text_columns)
        line += block.count(b"\n")
        if columns is not None:
            have = set(table.column_names)
            table = pa.table(
                {n: table[n] if n in have else pa.nulls(len(table)) for n in columns}
            )
        if bad:
            yield ReadResult(None, base.rejected(MALFORMED_JSON, bad))
        yield from base.slices(table)


def keys(path: str, block_bytes: int) -> list[str]:
    """Returns the keys of the first rows (first block of the file), sorted.

    Raises:
      ReadError: When no line of the block is a JSON object with a key.
    """
    for block in _blocks(path, block_bytes):
        table = _fast(block, set())
        table = _slow(block, path, 1, set())[0] if table is None else table
        if table.column_names:
            return sorted(table.column_names)
        break
    raise ReadError(
        f"{path} must hold one JSON object a line; its first block has none. "
        "Check the format, or set another one in the spec."
    )


def _blocks(path: str, block_bytes: int) -> Iterator[bytes]:
    """Yields whole lines, about `block_bytes` at a time."""
    try:
        with base.byte_stream(path) as stream:
            while block := stream.read(block_bytes):
                yield block + (b"" if block.endswith(b"\n") else stream.readline())
    except (OSError, EOFError) as error:
        raise ReadError(
            f"{path} must be a whole file (gzip when it ends in .gz): {error}. "
            "Copy it or write it again."
        ) from error


def _fast(block: bytes, text_columns: set[str]) -> pa.Table | None:
    """Returns the rows, or None when a line by line look is needed.

    Args:
      block: Whole lines.
      text_columns: Columns known to look like times but to be text; added to.
    """
    try:
        table = _parse(block, text_columns)
        times = {f.name for f in table.schema if pa.types.is_timestamp(f.type)}
        if times:
            # Arrow takes ISO text for a time; an identifier stays as it is written.
            text_columns |= times
            table = _parse(block, text_columns)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    for column in table.columns:
        if pa.types.is_floating(column.type):
            largest = pc.max(pc.abs(column)).as_py()
            if largest is not None and largest >= EXACT_FLOAT:
                return None
    return table


def _parse(block: bytes, text_columns: set[str]) -> pa.Table:
    if not block.strip():
        return pa.table({})
    table = pa_json.read_json(
        pa.BufferReader(block),
        pa_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
        pa_json.ParseOptions(
            explicit_schema=pa.schema([(n, pa.string()) for n in sorted(text_columns)])
        ),
    )
    for column in table.columns:
        if pa.types.is_string(column.type):
            column.validate(full=True)  # Arrow does not check UTF-8 here by itself
    return table


def _slow(
    block: bytes, name: str, first_line: int, text_columns: set[str]
) -> tuple[pa.Table, list[str]]:
    """Returns the rows, and the malformed lines with their place."""
    lines = block.split(b"\n")
    # As fast as Arrow's parser, but it does not say which lines are wrong.
    bad = [n for n, line in enumerate(lines) if not _is_row(line)]
    texts = [
        f"{name}:{first_line + n}: {lines[n].decode('utf-8', 'replace')}" for n in bad
    ]
    for n in bad:
        lines[n] = b""
    table = _fast(b"\n".join(lines), text_columns) if bad else None
    return (_by_row(lines) if table is None else table), texts


def _is_row(line: bytes) -> bool:
    if not line.strip():
        return True
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _by_row(lines: list[bytes]) -> pa.Table:
    """Returns the rows by Python's parser, which takes what Arrow will not."""
    rows = [json.loads(line) for line in lines if line.strip()]
    names = dict.fromkeys(key for row in rows for key in row)
    return pa.table({n: _array([row.get(n) for row in rows]) for n in names})


def _array(values: list[Any]) -> pa.Array:
    """Returns the values as Arrow; unlike types become text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):
        return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)
