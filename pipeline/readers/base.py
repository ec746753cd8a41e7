"""What a raw reader is: it cuts raw files into shards and reads a shard in batches.

Readers know nothing of Beam: a job sends shards to workers and calls `read` there.
A reader never casts an identifier: text columns stay text, so that "007" is not 7,
and the job's own conversion decides about numbers and times.
"""

import abc
import dataclasses
import glob
import gzip
import io
import pathlib
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from features.config import nearest
from features.spec import Source, Table

BATCH_ROWS = 65_536  # rows a batch at most: tens of MB, and slices stay in cache
REJECTED_SCHEMA = pa.schema([("reason", pa.string()), ("row", pa.string())])


class ReadError(ValueError):
    """Raw input that cannot be read; the text names file, rule and cure."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A piece of work that one worker reads in one go; small and picklable.

    Attributes:
      path: A file, or the raw data folder for readers that need all of it.
      start: First row group (Parquet).
      stop: Row group after the last one (Parquet); 0: the whole file.
      columns: Columns to read, all of which the file has; None: all.
      options: What else the reader needs, as sorted pairs.
    """

    path: str
    start: int = 0
    stop: int = 0
    columns: tuple[str, ...] | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def option(self, name: str, default: Any = None) -> Any:
        """Returns an option's value."""
        return dict(self.options).get(name, default)


class ReadResult(NamedTuple):
    """Rows that were read, rows that could not be read, or both.

    `rejected` has the columns `reason` (one of few texts, so that it can be counted)
    and `row` (`file:line: text`, so that the row can be found and mended).
    """

    batch: pa.RecordBatch | None
    rejected: pa.RecordBatch | None = None


class Reader(abc.ABC):
    """Base of every raw reader.  Readers hold no state, so they pickle freely."""

    @abc.abstractmethod
    def shards(
        self,
        source: Source,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> list[Shard]:
        """Returns the shards of the log, in a fixed order.

        Args:
          source: The spec's source.
          raw_dir: Folder that the source's paths are below.
          columns: Raw columns that the spec uses, wherever they lie: those of side
            tables may be among them.  None: all columns of the log.

        Raises:
          ReadError: For a missing or empty file, or for a column that neither the
            log nor a side table has.
        """

    @abc.abstractmethod
    def read(self, shard: Shard) -> Iterator[ReadResult]:
        """Yields the rows of a shard in batches of at most `BATCH_ROWS`, in order."""

    def tables(
        self,
        source: Source,
        raw_dir: str | pathlib.Path,  # noqa: ARG002 (a reader may look what is there)
    ) -> dict[str, Table]:
        """Returns the side tables to join, by name; in general those of the spec."""
        named = {"user_table": source.user_table, "item_table": source.item_table}
        return {name: table for name, table in named.items() if table is not None}

    @abc.abstractmethod
    def read_table(
        self,
        table: Table,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> pa.Table:
        """Returns a side table, whole, without the columns that nobody asked for.

        Args:
          table: `Source.user_table` or `Source.item_table`.
          raw_dir: Folder that the table's path is below.
          columns: Columns wanted besides the key, where the table has them; None:
            `table.columns`, or all.

        Raises:
          ReadError: For a missing or empty file, a malformed row, a missing key.
        """


def rejected(reason: str, rows: Iterable[str]) -> pa.RecordBatch | None:
    """Returns rejected rows as a batch, or None when there are none."""
    rows = list(rows)
    if not rows:
        return None
    return pa.RecordBatch.from_arrays(
        [pa.array([reason] * len(rows)), pa.array(rows, pa.string())],
        schema=REJECTED_SCHEMA,
    )


def slices(table: pa.Table | pa.RecordBatch) -> Iterator[ReadResult]:
    """Yields the rows in batches of at most `BATCH_ROWS`."""
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        if batch.num_rows:
            yield ReadResult(batch)


def find_files(raw_dir: str | pathlib.Path, pattern: str, owner: str) -> list[str]:
    """Returns the non-empty files that a path or glob below `raw_dir` names, sorted.

    Raises:
      ReadError: When there is none, or all are empty.
    """
    folder = pathlib.Path(raw_dir)
    if not pattern:
        raise ReadError(f"{owner}.path must be a path or glob below {folder}; got ''.")
    if not folder.is_dir():
        raise ReadError(
            f"raw_dir must be an existing folder; got {str(folder)!r}. "
            "Put the raw files there, or give the folder that has them."
        )
    found = sorted(glob.glob(str(folder / pattern), recursive=True))
    files = [name for name in found if pathlib.Path(name).is_file()]
    if not files:
        there = sorted(p.name for p in folder.iterdir())
        raise ReadError(
            f"{owner}.path must match a file below {folder}; got {pattern!r}, and no "
            f"such file exists.{nearest(pattern, there)} The folder holds: "
            f"{', '.join(there[:12]) or 'nothing'}."
        )
    filled = [name for name in files if pathlib.Path(name).stat().st_size]
    if not filled:
        raise ReadError(
            f"{owner}.path must match a file with rows; {files[0]!r} is empty "
            f"(0 bytes, {len(files)} such). Write the file again."
        )
    return filled


def plain_or_gz(raw_dir: str | pathlib.Path, *names: str) -> pathlib.Path | None:
    """Returns the first of these files that exists, plain before `.gz`."""
    for name in names:
        for path in (pathlib.Path(raw_dir, name), pathlib.Path(raw_dir, name + ".gz")):
            if path.is_file():
                return path
    return None


def need_file(raw_dir: str | pathlib.Path, owner: str, *names: str) -> pathlib.Path:
    """Returns the first of these files that exists, or says what is missing."""
    path = plain_or_gz(raw_dir, *names)
    if path is None:
        raise ReadError(
            f"{owner} needs {' or '.join(names)} (plain or .gz) in "
            f"{str(raw_dir)!r}; none is there. Give the folder that has it."
        )
    return path


def file_bytes(path: str | pathlib.Path) -> bytes:
    """Returns a file's content, unzipped when its name ends in `.gz`."""
    try:
        data = pathlib.Path(path).read_bytes()
        return gzip.decompress(data) if str(path).endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        raise ReadError(
            f"{path} must be a whole file (gzip when it ends in .gz): {error}. "
            "Copy or download it again."
        ) from error


def byte_stream(path: str | pathlib.Path) -> io.BufferedIOBase:
    """Returns a file opened for reading, unzipped when its name ends in `.gz`."""
    if str(path).endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return open(path, "rb")


def wanted_columns(
    have: Collection[str],
    columns: Collection[str] | None,
    elsewhere: Collection[str],
    *,
    where: str,
) -> tuple[str, ...] | None:
    """Returns the columns to read of a file, in its own order; None: all.

    Args:
      have: Columns of the file.
      columns: Columns that are wanted; None: all.
      elsewhere: Columns that side tables have, so that the file need not.
      where: File named in the error.

    Raises:
      ReadError: For a wanted column that neither has.
    """
    if columns is None:
        return None
    for name in sorted(set(columns)):
        if name not in have and name not in elsewhere:
            tables = f", side tables have {', '.join(elsewhere)}" if elsewhere else ""
            raise ReadError(
                f"column {name!r} must be in the log or a side table; {where} has "
                f"{', '.join(have)}{tables}.{nearest(name, [*have, *elsewhere])} "
                "Correct the spec's column name or add the column."
            )
    return tuple(name for name in have if name in set(columns))


def concat_tables(batches: Iterable[pa.RecordBatch], where: str) -> pa.Table:
    """Returns all batches as one table; columns of unlike types become text.

    Types can differ between blocks of text formats, where they are inferred.
    """
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    if not tables:
        raise ReadError(f"{where} must have at least one row; it has none.")
    names = list(dict.fromkeys(name for t in tables for name in t.column_names))
    columns = {}
    for name in names:
        parts = [
            t.column(name) if name in t.column_names else pa.nulls(t.num_rows)
            for t in tables
        ]
        kinds = {p.type for p in parts if not pa.types.is_null(p.type)}
        kind = kinds.pop() if len(kinds) == 1 else pa.string()
        columns[name] = pa.concat_arrays(
            [
                chunk.cast(kind)
                for part in parts
                for chunk in (
                    part.chunks if isinstance(part, pa.ChunkedArray) else [part]
                )
            ]
        )
    return pa.table(columns)


def check_options(
    owner: str, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the reader's options with defaults filled in.

    Raises:
      ReadError: For an unknown option or a value of another type than the default's.
    """
    for name, value in options.items():
        if name not in defaults:
            raise ReadError(
                f"source.options.{name} is unknown to reader {owner}; known: "
                f"{', '.join(sorted(defaults)) or 'none'}.{nearest(name, defaults)}"
            )
        kind = type(defaults[name])
        fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not fits or (kind is not bool and isinstance(value, bool)):
            raise ReadError(
                f"source.options.{name} must be {kind.__name__}; got {value!r} "
                f"(reader {owner})."
            )
    return {**defaults, **options}
