"""MovieLens-1M, with the row order of M3oE's published file.

Takes the publisher's `ratings.dat`, `users.dat`, `movies.dat` (`A::B::C` lines in
latin-1), plain or gzip, or in place of `ratings.dat` a `ratings.csv` with the columns
user_id, movie_id, rating, timestamp and maybe order_in_user in the same row order.
"""

import pathlib
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from features.spec import Source, Table
from pipeline.readers import base, files
from pipeline.readers.base import Reader, ReadError, ReadResult, Shard

DAT_COLUMNS = {
    "ratings.dat": ("user_id", "movie_id", "rating", "timestamp"),
    "users.dat": ("user_id", "gender", "age", "occupation", "zip"),
    "movies.dat": ("movie_id", "title", "genres"),
}
# What the reader adds: to the ratings, and to the movies.
POSITION, FIRST_GENRE = "published_position", "first_genre"
MALFORMED = "malformed rating"


class MovieLensReader(Reader):
    """Reads the ratings as one shard, since their published order needs all of them.

    Columns of the log: user_id, movie_id, rating, timestamp (epoch seconds, maybe
    empty), order_in_user (0, 1, ... by time; ties in file order), published_position.
    Tables: `users.dat` and `movies.dat`, the latter with first_genre added.
    """

    def shards(
        self,
        source: Source,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> list[Shard]:
        """See `Reader.shards`."""
        base.check_options("movielens_1m", source.options, {})
        path = base.need_file(raw_dir, "movielens_1m", "ratings.dat", "ratings.csv")
        elsewhere = [c for n in ("users.dat", "movies.dat") for c in DAT_COLUMNS[n]]
        have = (*DAT_COLUMNS["ratings.dat"], "order_in_user", POSITION)
        keep = base.wanted_columns(
            have, columns, [*elsewhere, FIRST_GENRE], where=str(path)
        )
        return [Shard(str(path), columns=keep)]

    def read(self, shard: Shard) -> Iterator[ReadResult]:
        """See `Reader.read`."""
        bad: list[str] = []
        ratings = _ratings(shard.path, bad)
        if bad:
            yield ReadResult(None, base.rejected(MALFORMED, bad))
        users, movies = (ratings[name].to_numpy() for name in ("user_id", "movie_id"))
        ratings = ratings.append_column(
            POSITION, pa.array(published_position(users, movies))
        )
        if shard.columns is not None:
            ratings = ratings.select(list(shard.columns))
        yield from base.slices(ratings)

    def read_table(
        self,
        table: Table,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> pa.Table:
        """See `Reader.read_table`."""
        if table.path not in ("users.dat", "movies.dat"):
            raise ReadError(
                "source.user_table.path and item_table.path must be users.dat and "
                f"movies.dat; got {table.path!r} (reader movielens_1m)."
            )
        path = base.need_file(raw_dir, "movielens_1m", table.path)
        bad: list[str] = []
        result = _dat(path, DAT_COLUMNS[table.path], bad)
        if bad:
            raise ReadError(f"{path} must have whole lines A::B::C; got {bad[0]!r}.")
        if table.path == "movies.dat":
            genres = pc.list_element(pc.split_pattern(result["genres"], "|"), 0)
            result = result.append_column(FIRST_GENRE, genres)
        asked = table.columns if columns is None else columns
        if asked is None:
            return result
        return result.select(
            [n for n in result.column_names if n == table.key or n in set(asked)]
        )


def published_position(users: np.ndarray, movies: np.ndarray) -> np.ndarray:
    """Returns the position, int64 [B], of each rating in M3oE's published file.

    Movies are ranked by their first appearance among the ratings.  Ratings sorted by
    (movie rank, user id) list the users by first appearance; the file holds user by
    user in that order, and inside a user the movies by rank.

    Source: Zhang et al., M3oE, SIGIR 2024; the order of the published sample.
    Differs: none (a join of an old pandas made that order; this builds it).

    Args:
      users: User ids, int64 [B], in the order of ratings.dat.
      movies: Movie ids, int64 [B].

    >>> users, movies = np.array([1, 1, 2, 3, 3]), np.array([9, 4, 4, 7, 9])
    >>> published_position(users, movies).tolist()
    [0, 1, 4, 3, 2]
    """
    movie_rank = _rank_by_first(movies)
    order = np.lexsort((users, movie_rank))
    user_rank = np.empty(len(users), np.int64)
    user_rank[order] = _rank_by_first(users[order])
    position = np.empty(len(users), np.int64)
    position[np.lexsort((movie_rank, user_rank))] = np.arange(len(users))
    return position


def _rank_by_first(values: np.ndarray) -> np.ndarray:
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _ratings(path: str, bad: list[str]) -> pa.Table:
    """Returns the ratings with integer columns; appends bad lines to `bad`."""
    if ".csv" in pathlib.Path(path).suffixes:
        table = _csv(path, bad)
    else:
        table = _dat(pathlib.Path(path), DAT_COLUMNS["ratings.dat"], bad)
    good = pc.and_(_is_integer(table["user_id"]), _is_integer(table["movie_id"]))
    wrong = table.filter(pc.invert(good)).to_pylist()
    bad += [f"{pathlib.Path(path).name}: {row}" for row in wrong]
    table = table.filter(good)
    if not len(table):
        raise ReadError(f"{path} must have ratings; it has none that can be read.")
    for name in ("user_id", "movie_id"):
        where = table.column_names.index(name)
        table = table.set_column(where, name, table[name].cast(pa.int64()))
    if "order_in_user" not in table.column_names:
        table = table.append_column("order_in_user", _order_in_user(table))
    return table


def _csv(path: str, bad: list[str]) -> pa.Table:
    needed = DAT_COLUMNS["ratings.dat"]
    names = files.column_names(path, "csv")
    base.wanted_columns(names, needed, (), where=path)
    names = [n for n in (*needed, "order_in_user") if n in names]
    batches = []
    for shard in files.file_shards([path], names):
        for batch, rejected in files.read_shard(shard):
            bad += rejected.column(1).to_pylist() if rejected is not None else []
            batches += [batch] if batch is not None else []
    return base.concat_tables(batches, path).select(names)


def _dat(path: pathlib.Path, names: tuple[str, ...], bad: list[str]) -> pa.Table:
    """Returns a `::` separated file as text columns; appends bad lines to `bad`."""
    # Arrow takes one character only; no field of these files holds a tab.
    text = base.file_bytes(path).decode("latin-1").replace("::", "\t")

    def keep_bad_row(row: pa_csv.InvalidRow) -> str:
        bad.append(f"{path.name}:{row.number}: {row.text}")
        return "skip"

    try:
        return pa_csv.read_csv(
            pa.BufferReader(text.encode()),
            pa_csv.ReadOptions(use_threads=False, column_names=list(names)),
            pa_csv.ParseOptions(
                delimiter="\t", quote_char=False, invalid_row_handler=keep_bad_row
            ),
            pa_csv.ConvertOptions(
                column_types={n: pa.string() for n in names},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except pa.ArrowException as error:
        raise ReadError(f"{path} must hold lines A::B::C: {error}.") from error


def _is_integer(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(pc.match_substring_regex(column, r"^[0-9]{1,18}$"), False)


def _order_in_user(table: pa.Table) -> pa.Array:
    """Returns 0, 1, ... by time inside each user; null where the time is missing."""
    times = table["timestamp"].to_pandas()
    times = np.array([int(t) if t and t.isdigit() else -1 for t in times])
    users = table["user_id"].to_numpy()
    order = np.lexsort((times, users))  # stable: ties stay in file order
    starts = np.flatnonzero(np.r_[True, np.diff(users[order]) != 0])
    lengths = np.diff(np.r_[starts, len(order)])
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    return pa.array(place, mask=times < 0)
