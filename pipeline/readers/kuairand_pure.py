"""KuaiRand-Pure: logs, user and video tables, and what users watched before.

Takes the publisher's files, plain or .gz, in one folder; any subset of the logs will
do.  The log `log_standard_4_25_to_5_08_pure.csv` is a part of the publisher's
`log_standard_4_22_to_5_08_pure.csv` and is left out where that one lies beside it.
"""

import pathlib
from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from features.spec import Source, Table
from pipeline.readers import base, files
from pipeline.readers.base import Reader, ReadError, ReadResult, Shard

PART_LOG = "log_standard_4_25_to_5_08_pure.csv"
WHOLE_LOG = "log_standard_4_22_to_5_08_pure.csv"
USER_FILE = "user_features_pure.csv"
HISTORY_FILE = "user_history_until_4_24.csv"
VIDEO_FILE = "video_features_basic_pure.csv"
HISTORY_COLUMNS = (
    "history_len",
    "last_time_ms",
    "watch_seq",
    "like_seq",
    "long_watch_seq",
)


class KuaiRandReader(Reader):
    """Reads each log file as a shard.

    The user table is `user_features_pure.csv` with the columns of
    `user_history_until_4_24.csv` (watch_seq, ...) added.  Those are null where that
    file is missing, and where the folder has a log that begins before 25 April: such a
    log holds the history itself, and a list up to 24 April would lie in its future.
    Statistics files are never read: they count days after the rows.
    """

    def shards(
        self,
        source: Source,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> list[Shard]:
        """See `Reader.shards`."""
        base.check_options("kuairand_pure", source.options, {})
        elsewhere: list[str] = []
        for table in self.tables(source, raw_dir).values():
            path = base.need_file(raw_dir, "kuairand_pure", table.path)
            elsewhere += files.column_names(str(path), "csv")
            elsewhere += HISTORY_COLUMNS if table.path == USER_FILE else ()
        logs = _logs(raw_dir, source.path)
        return files.file_shards(logs, columns, elsewhere=elsewhere)

    def read(self, shard: Shard) -> Iterator[ReadResult]:
        """See `Reader.read`."""
        return files.read_shard(shard)

    def read_table(
        self,
        table: Table,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> pa.Table:
        """See `Reader.read_table`."""
        path = base.need_file(raw_dir, "kuairand_pure", table.path)
        result = files.read_whole([str(path)], None)
        base.wanted_columns(result.column_names, [table.key], (), where=str(path))
        if table.path == USER_FILE:
            result = _with_history(result, table.key, raw_dir)
        asked = table.columns if columns is None else columns
        if asked is None:
            return result
        return result.select(
            [n for n in result.column_names if n == table.key or n in set(asked)]
        )


def _logs(raw_dir: str | pathlib.Path, pattern: str) -> list[str]:
    """Returns the log files, each once: plain before .gz, whole before part."""
    by_name: dict[str, str] = {}
    for suffix in ("", ".gz"):
        try:
            found = base.find_files(raw_dir, pattern + suffix, "source")
        except ReadError:
            if suffix and not by_name:
                raise
            continue
        for path in found:
            by_name.setdefault(pathlib.Path(path).name.removesuffix(".gz"), path)
    if WHOLE_LOG in by_name:
        by_name.pop(PART_LOG, None)
    return [by_name[name] for name in sorted(by_name)]


def _with_history(users: pa.Table, key: str, raw_dir: str | pathlib.Path) -> pa.Table:
    """Returns the user table with `HISTORY_COLUMNS`, null where they cannot be."""
    path = base.plain_or_gz(raw_dir, HISTORY_FILE)
    earlier = set(_log_names(raw_dir)) - {PART_LOG}
    if path is None or earlier:
        for name in HISTORY_COLUMNS:
            users = users.append_column(name, pa.nulls(len(users), pa.string()))
        return users
    history = files.read_whole([str(path)], [key, *HISTORY_COLUMNS])
    place = pc.index_in(users[key], value_set=history[key].combine_chunks())
    for name in HISTORY_COLUMNS:
        users = users.append_column(name, history[name].take(place))
    return users


def _log_names(raw_dir: str | pathlib.Path) -> list[str]:
    found = pathlib.Path(raw_dir).glob("log_*.csv*")
    return [path.name.removesuffix(".gz") for path in found]
