"""The general reader: Parquet, CSV and JSON lines, plain or gzip, one file or many.

Parquet is cut into shards of row groups.  A CSV or JSONL file is one shard, since a
line's number (which a rejected row carries) is known only by reading from the top:
write large logs as several files, or as Parquet.
"""

import csv
import io
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from features.spec import Source, Table
from pipeline.readers import base, json_lines
from pipeline.readers.base import Reader, ReadError, ReadResult, Shard

Format = Literal["parquet", "csv", "jsonl"]

SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
SHARD_ROWS = 262_144  # rows a Parquet shard at least, if the file has as many
BLOCK_BYTES = 8 << 20  # text parsed at a time; also the longest line of a CSV file
OPTIONS = {"encoding": "utf8", "quoted_newlines": False}
MALFORMED_CSV = "malformed CSV row"


class FileReader(Reader):
    """Reads files in a general format (`source.reader: files`).

    `source.options`: `encoding` (CSV, default utf8) and `quoted_newlines` (CSV, default
    false: a line end always ends a row, so one stray quote cannot swallow the file).
    An empty CSV cell is null.
    """

    def shards(
        self,
        source: Source,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> list[Shard]:
        """See `Reader.shards`."""
        options = base.check_options("files", source.options, OPTIONS)
        files = base.find_files(raw_dir, source.path, "source")
        elsewhere = [
            name
            for table in (source.user_table, source.item_table)
            if table is not None
            for name in self.table_columns(table, raw_dir)
        ]
        return file_shards(
            files,
            columns,
            format=source.format,
            separator=source.separator,
            elsewhere=elsewhere,
            **options,
        )

    def read(self, shard: Shard) -> Iterator[ReadResult]:
        """See `Reader.read`."""
        return read_shard(shard)

    def read_table(
        self,
        table: Table,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> pa.Table:
        """See `Reader.read_table`."""
        files = base.find_files(raw_dir, table.path, "table")
        have = self.table_columns(table, raw_dir)
        asked = table.columns if columns is None else columns
        keep = None
        if asked is not None:
            keep = [n for n in have if n == table.key or n in set(asked)]
            for name in table.columns or ():
                base.wanted_columns(have, [name], (), where=files[0])
        return read_whole(files, keep, format=table.format)

    def table_columns(self, table: Table, raw_dir: str | pathlib.Path) -> list[str]:
        """Returns the columns that a side table gives (its first file decides)."""
        path = base.find_files(raw_dir, table.path, "table")[0]
        have = column_names(path, file_format(path, table.format))
        base.wanted_columns(have, [table.key], (), where=path)
        if table.columns is None:
            return have
        return [n for n in have if n in {table.key, *table.columns}]


def file_shards(
    files: list[str],
    columns: Collection[str] | None,
    *,
    format: Format | None = None,
    separator: str = ",",
    elsewhere: Collection[str] = (),
    encoding: str = "utf8",
    quoted_newlines: bool = False,
) -> list[Shard]:
    """Returns the shards of these files; see `Reader.shards` for the errors."""
    shards: list[Shard] = []
    for path in files:
        kind = file_format(path, format)
        names = column_names(path, kind, separator=separator, encoding=encoding)
        keep = base.wanted_columns(names, columns, elsewhere, where=path)
        if kind == "parquet":
            shards += _parquet_shards(path, keep)
            continue
        options: dict[str, Any] = {"format": kind}
        if kind == "csv":
            separator_ = "\t" if _suffix(path) == ".tsv" else separator
            options |= {"separator": separator_, "encoding": encoding}
            options |= {"quoted_newlines": quoted_newlines}
        shards.append(Shard(path, 0, 0, keep, tuple(sorted(options.items()))))
    if not shards:
        raise ReadError(
            f"source must have rows; {files[0]} and {len(files) - 1} more have none. "
            "Check the job that wrote them."
        )
    return shards


def read_shard(shard: Shard) -> Iterator[ReadResult]:
    """Yields the rows of a shard of `file_shards`."""
    kind = shard.option("format", "parquet")
    if kind == "parquet":
        return _read_parquet(shard)
    if kind == "csv":
        return _read_csv(shard)
    return json_lines.read(shard.path, shard.columns, BLOCK_BYTES)


def read_whole(
    files: list[str], columns: Collection[str] | None, *, format: Format | None = None
) -> pa.Table:
    """Returns all rows of these files as one table; a malformed row is an error."""
    batches = []
    for shard in file_shards(files, columns, format=format):
        for batch, bad in read_shard(shard):
            if bad is not None:
                raise ReadError(
                    f"a side table must have no malformed row; {shard.path} has "
                    f"{bad.column(1)[0].as_py()!r} ({bad.column(0)[0].as_py()}). "
                    "Mend the row."
                )
            if batch is not None:
                batches.append(batch)
    return base.concat_tables(batches, files[0])


def file_format(path: str, format: Format | None = None) -> Format:
    """Returns the stated format, or the one that the file's suffix says."""
    if format is not None:
        return format
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        raise ReadError(
            f"format must be stated for files of suffix {suffix!r}; got {path!r}. "
            "Set format to parquet, csv or jsonl in the spec."
        )
    return SUFFIXES[suffix]


def column_names(
    path: str, format: Format, *, separator: str = ",", encoding: str = "utf8"
) -> list[str]:
    """Returns the columns of a file (JSONL: the keys in its first block)."""
    if format == "parquet":
        return list(_parquet_file(path).schema_arrow.names)
    if format == "jsonl":
        return json_lines.keys(path, BLOCK_BYTES)
    if _suffix(path) == ".tsv":
        separator = "\t"
    try:
        with base.byte_stream(path) as stream:
            line = stream.readline().decode(
                "utf-8-sig" if encoding == "utf8" else encoding
            )
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    names = next(csv.reader(io.StringIO(line), delimiter=separator), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise ReadError(
            f"{path} must start with a line of different column names; got "
            f"{line.strip()[:120]!r}. Add a header line."
        )
    return names


def _suffix(path: str) -> str:
    name = pathlib.Path(path)
    return (pathlib.Path(name.stem) if name.suffix == ".gz" else name).suffix.lower()


def _parquet_file(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ReadError(
            f"{path} must be a whole Parquet file: {error} It is truncated, still "
            "being written, or of another format: write it again."
        ) from error


def _parquet_shards(path: str, columns: tuple[str, ...] | None) -> list[Shard]:
    meta = _parquet_file(path).metadata
    shards, start, rows = [], 0, 0
    for group in range(meta.num_row_groups):
        rows += meta.row_group(group).num_rows
        if rows >= SHARD_ROWS or (rows and group + 1 == meta.num_row_groups):
            shards.append(Shard(path, start, group + 1, columns))
            start, rows = group + 1, 0
    return shards


def _read_parquet(shard: Shard) -> Iterator[ReadResult]:
    file = _parquet_file(shard.path)
    groups = list(range(shard.start, shard.stop or file.metadata.num_row_groups))
    columns = list(shard.columns) if shard.columns is not None else None
    try:
        for batch in file.iter_batches(base.BATCH_ROWS, groups, columns):
            if batch.num_rows:
                yield ReadResult(batch)
    except (pa.ArrowException, OSError) as error:
        raise ReadError(
            f"{shard.path}: row groups {shard.start} to {shard.stop} cannot be read: "
            f"{error} The file is damaged: write it again."
        ) from error


def _read_csv(shard: Shard) -> Iterator[ReadResult]:
    bad: list[str] = []
    name = pathlib.Path(shard.path).name

    def keep_bad_row(row: Any) -> str:
        bad.append(f"{name}:{row.number}: {row.text}")
        return "skip"

    reader = _open_csv(shard, keep_bad_row)
    while reader is not None:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            break
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise _unreadable(shard.path, error) from error
        if bad:
            yield ReadResult(None, base.rejected(MALFORMED_CSV, bad))
            bad.clear()
        yield from base.slices(batch)
    if bad:
        yield ReadResult(None, base.rejected(MALFORMED_CSV, bad))


def _open_csv(shard: Shard, keep_bad_row: Any) -> pa_csv.CSVStreamingReader | None:
    names = column_names(
        shard.path,
        "csv",
        separator=shard.option("separator"),
        encoding=shard.option("encoding"),
    )
    try:
        return pa_csv.open_csv(
            shard.path,
            # Serial: only then does Arrow know the line number of a malformed row.
            pa_csv.ReadOptions(
                use_threads=False,
                block_size=BLOCK_BYTES,
                encoding=shard.option("encoding"),
            ),
            pa_csv.ParseOptions(
                delimiter=shard.option("separator"),
                newlines_in_values=shard.option("quoted_newlines"),
                invalid_row_handler=keep_bad_row,
            ),
            pa_csv.ConvertOptions(
                column_types={n: pa.string() for n in names},
                include_columns=list(shard.columns or names),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise _unreadable(shard.path, error) from error


def _unreadable(path: str, error: Exception) -> ReadError:
    return ReadError(
        f"{path} must be readable text: {error}. If it is not UTF-8, set "
        "source.options.encoding (for example latin-1); if it is damaged, write it "
        "again."
    )
