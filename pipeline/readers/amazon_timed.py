"""Amazon purchases of two domains with times, and sampled negatives.

Takes `<pair>.csv` (plain or .gz; columns user, item, domain, timestamp) or ABXI's own
files of the pair, `<abbr>_50_preprocessed.txt`, `map_item_50.txt`, `map_user_50.txt`.

Negatives: each positive gets `negatives` rows of the same user, domain and time whose
item the user never bought in the whole log, and that somebody had bought by then
(`candidates: seen`): an item of the test period that is a negative of the training
period would teach that nobody wants what is about to be bought, and give AUCs below
one half.  With `recent` it is the item of one of the domain's latest purchases up to
then, so that new items are negatives as often as positives: of `seen` items few are
new, and a model could tell a purchase by that (or, where new items share one untrained
vector, by chance).  The item is a function of (seed, user, item, domain, time, number
of the negative) and of the whole log: file order and splits of the work change nothing,
and a negative lies in the same split as its positive whenever the split goes by time.
"""

import json
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features import hashing
from features.spec import Source, Table
from pipeline.readers import base, files
from pipeline.readers.base import Reader, ReadError, ReadResult, Shard

COLUMNS = ("user", "item", "domain", "timestamp")
LABEL = "click"  # 1: bought, 0: sampled
OPTIONS = {
    "pair": "food_kitchen",
    "negatives": 1,
    "sampling": "uniform",
    "candidates": "seen",
    "seed": 0,
}
SAMPLING = {"uniform": 0.0, "popularity": 0.75}  # chance ~ count ** exponent
CANDIDATES = ("seen", "recent", "all")
# So many of a domain's latest purchases are `recent`.
RECENT = 2000
# So many of the first items count as seen from the start, when little is on record.
MIN_SEEN = 100
# Name of a pair: (ABXI's abbreviation, names of its domains 0 and 1).
PAIRS = {
    "food_kitchen": ("afk", ("food", "kitchen")),
    "beauty_electronics": ("abe", ("beauty", "electronics")),
}
MAX_ATTEMPTS = 1000  # draws for one negative before the user counts as owning all


class AmazonTimedReader(Reader):
    """Reads a pair as one shard, since a negative needs all of a user's purchases.

    Columns: user, item, domain, timestamp (seconds), click (1 or 0).
    `source.options`: pair (food_kitchen, beauty_electronics), negatives (rows a
    positive, 0 or more), sampling (uniform, or popularity: chance ~ count ** 0.75 over
    the whole log), candidates (seen: items bought by anybody up to then; recent: items
    of the domain's latest 2,000 purchases up to then, as often as they sold; all: items
    of the whole log, later ones too), seed.
    """

    def shards(
        self,
        source: Source,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> list[Shard]:
        """See `Reader.shards`."""
        options = base.check_options("amazon_timed", source.options, OPTIONS)
        choices: dict[str, Collection[str]] = {
            "pair": PAIRS,
            "sampling": SAMPLING,
            "candidates": CANDIDATES,
        }
        for name, known in choices.items():
            if options[name] not in known:
                raise ReadError(
                    f"source.options.{name} must be one of {', '.join(known)}; got "
                    f"{options[name]!r} (reader amazon_timed)."
                )
        if options["candidates"] == "recent" and options["sampling"] != "uniform":
            raise ReadError(
                "source.options.sampling must be uniform with candidates=recent, which "
                f"follow sales already; got {options['sampling']!r} (amazon_timed)."
            )
        if options["negatives"] < 0:
            raise ReadError(
                "source.options.negatives must be at least 0; got "
                f"{options['negatives']} (reader amazon_timed)."
            )
        path = _pair_file(raw_dir, options["pair"])
        keep = base.wanted_columns((*COLUMNS, LABEL), columns, (), where=str(path))
        return [Shard(str(path), columns=keep, options=tuple(sorted(options.items())))]

    def read(self, shard: Shard) -> Iterator[ReadResult]:
        """See `Reader.read`."""
        bad: list[str] = []
        path = pathlib.Path(shard.path)
        if ".csv" in path.suffixes:
            rows = _csv(path, bad)
        else:
            rows = _abxi(path, PAIRS[shard.option("pair")][1], bad)
        if bad:
            yield ReadResult(None, base.rejected("malformed purchase", bad))
        table = with_negatives(
            rows,
            negatives=shard.option("negatives"),
            sampling=shard.option("sampling"),
            candidates=shard.option("candidates"),
            seed=shard.option("seed"),
        )
        yield from base.slices(table.select(list(shard.columns or (*COLUMNS, LABEL))))

    def read_table(
        self,
        table: Table,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> pa.Table:
        """See `Reader.read_table`; the publisher has none, a general file will do."""
        return files.FileReader().read_table(table, raw_dir, columns)


def with_negatives(
    rows: pa.Table,
    *,
    negatives: int,
    sampling: str,
    seed: int,
    candidates: str = "seen",
) -> pa.Table:
    """Returns the positives (click 1) followed by their negatives (click 0).

    Args:
      rows: user, item, domain, timestamp, without nulls.
      negatives: Rows a positive.
      sampling: "uniform" over the items of the domain, or "popularity".
      seed: Any integer.
      candidates: "seen" up to the row's time, "recent" purchases up to then, or "all"
        of the log.

    Raises:
      ReadError: When a user bought (nearly) all candidates of a domain.
    """
    codes = {n: rows[n].combine_chunks().dictionary_encode() for n in COLUMNS[:3]}
    users, items, domains = (
        codes[n].indices.to_numpy().astype(np.int64) for n in COLUMNS[:3]
    )
    item_names = codes["item"].dictionary
    bought = np.unique(users * len(item_names) + items)
    times = rows["timestamp"].to_numpy()
    base_hash = _row_hash(rows, seed)
    parts = [rows.append_column(LABEL, pa.array(np.ones(len(rows), np.int8)))]
    for number in range(negatives):
        chosen = np.empty(len(rows), np.int64)
        keys = hashing.mix64(base_hash + np.uint64(number))
        for domain in np.unique(domains):
            own = np.flatnonzero(domains == domain)
            draw: _Draw | _Recent
            if candidates == "recent":
                draw = _Recent(items[own], times[own], item_names)
                open_to = draw.seen(times[own])
            else:
                draw = _Draw(items[own], times[own], item_names, SAMPLING[sampling])
                open_to = draw.seen(times[own] if candidates == "seen" else None)
            chosen[own] = _unbought(draw, keys[own], open_to, users[own], bought)
        part = rows.set_column(
            rows.column_names.index("item"), "item", item_names.take(pa.array(chosen))
        )
        parts.append(part.append_column(LABEL, pa.array(np.zeros(len(rows), np.int8))))
    return pa.concat_tables(parts)


class _Draw:
    """Items of a domain by a 64-bit number, in the order of their first purchases.

    Items of one first time stand by name, so that no file order changes it.
    """

    def __init__(
        self, items: np.ndarray, times: np.ndarray, names: pa.Array, exponent: float
    ) -> None:
        codes, place, counts = np.unique(items, return_inverse=True, return_counts=True)
        first = np.full(len(codes), np.iinfo(np.int64).max)
        np.minimum.at(first, place, times)
        by_name = pc.rank(names.take(pa.array(codes))).to_numpy()
        order = np.lexsort([by_name, first])
        self.codes, self._first = codes[order], first[order]
        weights = counts[order].astype(np.float64) ** exponent
        self._ends = np.cumsum(weights)
        self.num_names = len(names)

    def seen(self, times: np.ndarray | None) -> np.ndarray:
        """Returns how many of the first items are open to a row, int64 [B] or [1]."""
        if times is None:
            return np.array([len(self.codes)])
        known = np.searchsorted(self._first, times, side="right")
        return np.clip(known, min(MIN_SEEN, len(self.codes)), None)

    def __call__(self, keys: np.ndarray, open_to: np.ndarray) -> np.ndarray:
        """Returns item codes int64 [B] of keys uint64 [B], of the first `open_to`."""
        unit = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1)
        ends = self._ends[open_to - 1]
        place = np.searchsorted(self._ends, unit * ends, side="right")
        return self.codes[np.minimum(place, open_to - 1)]


class _Recent:
    """Items of a domain's purchases by a 64-bit number, in the order of their times.

    Purchases of one time stand by item name, so that no file order changes it.
    """

    def __init__(self, items: np.ndarray, times: np.ndarray, names: pa.Array) -> None:
        order = np.lexsort([pc.rank(names).to_numpy()[items], times])
        self._items, self._times = items[order], times[order]
        self.num_names = len(names)

    def seen(self, times: np.ndarray) -> np.ndarray:
        """Returns how many purchases lie before the end of a row's time, int64 [B]."""
        known = np.searchsorted(self._times, times, side="right")
        return np.clip(known, min(MIN_SEEN, len(self._times)), None)

    def __call__(self, keys: np.ndarray, open_to: np.ndarray) -> np.ndarray:
        """Returns item codes int64 [B] of keys uint64 [B], of the latest `RECENT`."""
        unit = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1)
        window = np.minimum(open_to, RECENT)
        back = np.minimum((unit * window).astype(np.int64), window - 1)
        return self._items[open_to - 1 - back]


def _unbought(
    draw: _Draw | _Recent,
    keys: np.ndarray,
    open_to: np.ndarray,
    users: np.ndarray,
    bought: np.ndarray,
) -> np.ndarray:
    """Returns an item for each key that its user has not bought: draws until it fits.

    Args:
      draw: Items of the domain.
      keys: uint64 [B].
      open_to: Items that may be drawn, [B] or [1].
      users: User codes, int64 [B].
      bought: Sorted codes user * num_names + item of all purchases.
    """
    open_to = np.broadcast_to(open_to, keys.shape)
    chosen = draw(keys, open_to)
    open_rows = np.arange(len(keys))
    for _ in range(MAX_ATTEMPTS):
        pairs = users[open_rows] * draw.num_names + chosen[open_rows]
        place = np.minimum(np.searchsorted(bought, pairs), len(bought) - 1)
        open_rows = open_rows[bought[place] == pairs]
        if not len(open_rows):
            return chosen
        keys[open_rows] = hashing.mix64(keys[open_rows])
        chosen[open_rows] = draw(keys[open_rows], open_to[open_rows])
    raise ReadError(
        "amazon_timed.negatives must find an item that the user never bought; "
        f"{len(open_rows)} rows found none in {MAX_ATTEMPTS} draws, so their users "
        "bought nearly all items of a domain. Leave those users out."
    )


def _row_hash(rows: pa.Table, seed: int) -> np.ndarray:
    """Returns uint64 [B], a function of the seed and the row's four values."""
    total = np.full(len(rows), seed % 2**64, np.uint64)
    for name in COLUMNS:
        text = rows[name].combine_chunks().cast(pa.string())
        total = hashing.mix64(total ^ hashing.hash_text(text))
    return total


def _pair_file(raw_dir: str | pathlib.Path, pair: str) -> pathlib.Path:
    short = PAIRS[pair][0]
    original = f"{short}_50_preprocessed.txt"
    return base.need_file(
        raw_dir, "amazon_timed", f"{pair}.csv", original, f"{short}/{original}"
    )


def _csv(path: pathlib.Path, bad: list[str]) -> pa.Table:
    base.wanted_columns(
        files.column_names(str(path), "csv"), COLUMNS, (), where=str(path)
    )
    batches = []
    for shard in files.file_shards([str(path)], COLUMNS):
        for batch, rejected in files.read_shard(shard):
            bad += rejected.column(1).to_pylist() if rejected is not None else []
            batches += [batch] if batch is not None else []
    table = base.concat_tables(batches, str(path)).select(list(COLUMNS))
    number = pc.match_substring_regex(table["timestamp"], r"^-?[0-9]{1,18}$")
    good = pc.fill_null(number, False)
    for name in COLUMNS[:3]:
        good = pc.and_(good, table[name].is_valid())
    wrong = table.filter(pc.invert(good)).to_pylist()
    bad += [f"{path.name}: {json.dumps(row)}" for row in wrong]
    table = table.filter(good)
    if not len(table):
        raise ReadError(f"{path} must have purchases; it has none that can be read.")
    where = table.column_names.index("timestamp")
    return table.set_column(where, "timestamp", table["timestamp"].cast(pa.int64()))


def _abxi(path: pathlib.Path, names: tuple[str, str], bad: list[str]) -> pa.Table:
    """Returns purchases of lines `user item|time item|time ...` of numbers."""
    users = _json(path, "map_user_50.txt")
    items = _json(path, "map_item_50.txt")
    user_of = {number: user for user, number in users.items()}
    item_of = {number: (item, names[d]) for item, (number, d) in items.items()}
    rows: list[tuple[str, str, str, int]] = []
    for number, line in enumerate(base.file_bytes(path).decode().splitlines(), 1):
        try:
            first, *purchases = line.split()
            pairs = [tuple(map(int, p.split("|"))) for p in purchases]
            rows += [(user_of[int(first)], *item_of[i], t) for i, t in pairs]
        except (ValueError, KeyError):
            bad.append(f"{path.name}:{number}: {line}")
    if not rows:
        raise ReadError(f"{path} must have purchases; it has none that can be read.")
    columns = zip(*rows, strict=True)
    return pa.table({n: list(c) for n, c in zip(COLUMNS, columns, strict=True)})


def _json(path: pathlib.Path, name: str) -> dict[str, Any]:
    short = path.name.split("_")[0]
    file = base.need_file(path.parent, "amazon_timed", name, f"{short}_{name}")
    try:
        return json.loads(base.file_bytes(file))
    except json.JSONDecodeError as error:
        raise ReadError(f"{file} must be JSON: {error}.") from error
