"""A small prepared data set on disk, made by hand: no Beam, no raw files.

Labels can be learnt: each user, item and genre has a hidden weight, and each domain
and task its own offset and sign for the price.
"""

import pathlib

import numpy as np
import pyarrow as pa

from features import dataset as dataset_lib
from features.fitted import Fitted, NumericParams
from features.spec import NUM_RESERVED_IDS, UNKNOWN_ID, DatasetSpec
from features.vocab import Vocab
from tfrecords_tools import encode

NUM_USERS = 40
NUM_ITEMS = 60
NUM_GENRES = 5
HISTORY_LENGTH = 4
GENRES_LENGTH = 2
FIRST_DAY = 20240101
NUM_DAYS = 4
SPLIT_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def make_spec(domains: int = 3, tasks: int = 2, *, weight: bool = False) -> DatasetSpec:
    """Returns the spec of the tiny data set."""
    return DatasetSpec.parse(
        {
            "name": "tiny",
            "source": {"path": "log.parquet"},
            "keys": {"user": "user_id", "item": "item_id", "time": "time"},
            "domain": {
                "by": "value_map",
                "column": "channel",
                "domains": {f"d{i}": [f"c{i}"] for i in range(domains)},
            },
            "tasks": [
                {"name": f"task{i}", "column": f"y{i}", "missing": "mask"}
                for i in range(tasks)
            ],
            "features": [
                {"kind": "categorical", "name": "user_id", "role": "user", "width": 8},
                {"kind": "categorical", "name": "item_id", "role": "item", "width": 8},
                {
                    "kind": "multi",
                    "name": "genres",
                    "role": "item",
                    "max_length": GENRES_LENGTH,
                    "width": 4,
                },
                {"kind": "numeric", "name": "price", "role": "item"},
                {
                    "kind": "numeric",
                    "name": "age",
                    "role": "user",
                    "transform": "bucketise",
                    "num_buckets": 4,
                    "width": 4,
                },
                {
                    "kind": "popularity",
                    "name": "item_popularity",
                    "role": "item",
                    "of": "item_id",
                },
                {
                    "kind": "sequence",
                    "name": "history",
                    "of": "item_id",
                    "max_length": HISTORY_LENGTH,
                },
                {"kind": "domain", "width": 4},
            ],
            "split": {"by": "random"},
            "weight": "weight" if weight else None,
        }
    )


def make_fitted(domains: int = 3) -> Fitted:
    """Returns fitted state that fits `make_spec` and the rows of `make_rows`."""
    vocabs = {
        name: Vocab.from_counts(
            [f"{name[0]}{i}" for i in range(count)], np.arange(count, 0, -1)
        )
        for name, count in (
            ("user_id", NUM_USERS),
            ("item_id", NUM_ITEMS),
            ("genres", NUM_GENRES),
        )
    }
    popularity = np.log1p(np.arange(NUM_ITEMS, 0, -1, dtype=np.float32))
    return Fitted(
        domains=tuple(f"d{i}" for i in range(domains)),
        domain_values={f"c{i}": i for i in range(domains)},
        domain_default=-1,
        vocabs=vocabs,
        numeric={
            "price": NumericParams(10.0, 2.0),
            "age": NumericParams(boundaries=(20.0, 30.0, 50.0)),
            "item_popularity": NumericParams(2.0, 1.0),
        },
        popularity={"item_popularity": np.append(np.zeros(2, np.float32), popularity)},
    )


def make_rows(
    rows: int,
    *,
    domains: int = 3,
    tasks: int = 2,
    seed: int = 0,
    weight: bool = False,
) -> pa.RecordBatch:
    """Returns encoded rows; domain 0 has about half of them, `row_id` is 0, 1, ..."""
    rng = np.random.default_rng(seed)
    hidden = np.random.default_rng(77)  # the same truth whatever the seed of the rows
    share = np.append(0.5, np.full(domains - 1, 0.5 / max(domains - 1, 1)))
    domain = rng.choice(domains, rows, p=share / share.sum())
    user = rng.integers(0, NUM_USERS, rows)
    item = rng.integers(0, NUM_ITEMS, rows)
    price = rng.normal(size=rows).astype(np.float32)
    genres = rng.integers(0, NUM_GENRES, (rows, GENRES_LENGTH))
    age = rng.integers(0, 4, rows)
    history = rng.integers(0, NUM_ITEMS, (rows, HISTORY_LENGTH)) + NUM_RESERVED_IDS
    length = rng.integers(0, HISTORY_LENGTH + 1, rows)
    history[np.arange(HISTORY_LENGTH) >= length[:, None]] = 0
    user_weight, item_weight = (
        hidden.normal(size=NUM_USERS),
        hidden.normal(size=NUM_ITEMS),
    )
    slope = hidden.normal(size=(domains, tasks))
    known = np.where(rng.random(rows) < 0.02, UNKNOWN_ID, user + NUM_RESERVED_IDS)
    values = {
        "user_id": known,
        "item_id": item + NUM_RESERVED_IDS,
        "genres": genres + NUM_RESERVED_IDS,
        "price": price,
        "age": age + NUM_RESERVED_IDS,
        "item_popularity": (np.log1p(NUM_ITEMS - item) - 2.0).astype(np.float32),
        "history": history,
        "domain": domain,
    }
    for task in range(tasks):
        logit = user_weight[user] + item_weight[item] + slope[domain, task] * price
        label = (rng.random(rows) < 1 / (1 + np.exp(-2 * logit))).astype(np.int64)
        if task:
            label[rng.random(rows) < 0.05] = -1
        values[f"label/task{task}"] = label
    if weight:
        values["weight"] = rng.uniform(0.5, 2, rows).astype(np.float32)
    values["row_id"] = np.arange(rows)
    values["user_key"] = user * 1000 + 7
    values["day"] = FIRST_DAY + np.arange(rows) % NUM_DAYS
    return _arrow(values)


def make_dataset(
    data_dir: str | pathlib.Path,
    *,
    rows: int = 1000,
    domains: int = 3,
    tasks: int = 2,
    seed: int = 0,
    record_format: str = "block",
    block_rows: int = 32,
    compression: str = "",
    files: int = 2,
    weight: bool = False,
) -> dataset_lib.Dataset:
    """Writes a finished data set (80 / 10 / 10 splits) and returns it opened.

    Args:
      data_dir: Folder to make.
      rows: Rows of all splits together.
      domains: D; named d0, d1, ...
      tasks: T; named task0, task1, ...; all but task0 mask 5 % of their labels.
      seed: Of the rows; users, items and their hidden tastes stay the same.
      record_format: "block" or "row".
      block_rows: Rows a block.
      compression: "" or "GZIP".
      files: Files a split.
      weight: Whether rows carry a weight.
    """
    data_dir = pathlib.Path(data_dir)
    batch = make_rows(rows, domains=domains, tasks=tasks, seed=seed, weight=weight)
    suffix = ".tfrecord.gz" if compression else ".tfrecord"
    names: dict[str, tuple[str, ...]] = {}
    counts = {}
    start = 0
    for split, share in SPLIT_SHARES.items():
        stop = rows if split == "test" else start + int(rows * share)
        part = batch.slice(start, stop - start)
        cuts = np.linspace(0, part.num_rows, files + 1).astype(int)
        (data_dir / split).mkdir(parents=True, exist_ok=True)
        names[split] = tuple(
            f"{split}/part-{i:05d}-of-{files:05d}{suffix}" for i in range(files)
        )
        for i, name in enumerate(names[split]):
            encode.write_records(
                data_dir / name,
                part.slice(cuts[i], cuts[i + 1] - cuts[i]),
                record_format=record_format,
                block_rows=block_rows,
                compression=compression,
            )
        counts[split] = count_rows(part, domains, tasks)
        start = stop
    info = dataset_lib.DatasetInfo(
        spec=make_spec(domains, tasks, weight=weight),
        fitted=make_fitted(domains),
        counts=counts,
        unknown={},
        rejected={},
        seed=seed,
        record_format=record_format,
        block_rows=block_rows if record_format == "block" else 1,
        compression=compression,
        files=names,
    )
    info.save(data_dir)
    (data_dir / dataset_lib.SUCCESS_FILE).touch()
    return dataset_lib.Dataset.open(data_dir)


def count_rows(
    batch: pa.RecordBatch, domains: int, tasks: int
) -> dict[str, dict[str, object]]:
    """Returns `DatasetInfo.counts` of one split."""
    domain = np.asarray(batch["domain"])
    counts = {}
    for d in range(domains):
        labels = {
            f"task{t}": np.asarray(batch[f"label/task{t}"])[domain == d]
            for t in range(tasks)
        }
        counts[f"d{d}"] = {
            "rows": int((domain == d).sum()),
            "labelled": {k: int((v >= 0).sum()) for k, v in labels.items()},
            "positives": {k: int((v == 1).sum()) for k, v in labels.items()},
        }
    return counts


def _arrow(values: dict[str, np.ndarray]) -> pa.RecordBatch:
    arrays = []
    for column in values.values():
        dtype = np.float32 if column.dtype == np.float32 else np.int64
        array = pa.array(np.ascontiguousarray(column, dtype).ravel())
        if column.ndim == 2:
            array = pa.FixedSizeListArray.from_arrays(array, column.shape[1])
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, list(values))
