"""Small raw logs and a spec that uses every part of the preprocessing job."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.spec import DatasetSpec
from pipeline.jobs import preprocess
from pipeline.options import PreprocessOptions

USERS, ITEMS, DAYS = 17, 29, 5
FIRST_SECOND = 1_704_067_200  # 2024-01-01 UTC


def make_log(rows, *, bad=0, seed=0):
    """Returns a log; the first `bad` rows have no user."""
    rng = np.random.default_rng(seed)
    users = [f"u{i}" for i in rng.integers(0, USERS, rows)]
    users[:bad] = [None] * bad
    return pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            "item_id": rng.integers(0, ITEMS, rows),
            "time": FIRST_SECOND + np.sort(rng.integers(0, DAYS * 86_400, rows)),
            "channel": rng.choice(["home", "video", "shop"], rows, p=[0.7, 0.2, 0.1]),
            "click": rng.integers(0, 2, rows),
            "position": rng.permutation(rows) / 100,  # tells rows apart
        }
    )


def make_spec(**changes):
    values = {
        "name": "small",
        "source": {
            "path": "log*.parquet",
            "user_table": {"path": "users.parquet", "key": "user_id"},
            "item_table": {
                "path": "items.parquet",
                "key": "item",
                "log_key": "item_id",
            },
        },
        "keys": {"user": "user_id", "item": "item_id", "time": "time"},
        "domain": {"by": "top_k", "column": "channel", "k": 2},
        "tasks": [{"name": "click", "column": "click"}],
        "features": [
            {"kind": "categorical", "name": "user_id", "role": "user"},
            {"kind": "categorical", "name": "city", "role": "user"},
            {"kind": "categorical", "name": "item_id", "role": "item"},
            {"kind": "multi", "name": "tags", "role": "item", "max_length": 2},
            {"kind": "numeric", "name": "position", "role": "context"},
            {"kind": "popularity", "name": "pop", "role": "item", "of": "item_id"},
            {"kind": "sequence", "name": "history", "of": "item_id", "max_length": 4},
            {"kind": "domain"},
        ],
        "split": {"by": "random", "stratify": True},
    }
    return DatasetSpec.parse({**values, **changes})


def write_raw(folder, log, files=1, order=None):
    """Writes the log as `files` files; `order` permutes the files' contents."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = np.linspace(0, log.num_rows, files + 1).astype(int)
    parts = [log.slice(a, b - a) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    for name, index in enumerate(order or range(files)):
        pq.write_table(parts[index], folder / f"log{name}.parquet")
    users = {
        "user_id": [f"u{i}" for i in range(USERS - 1)],  # the last has no row
        "city": [f"c{i % 3}" for i in range(USERS - 1)],
    }
    pq.write_table(pa.table(users), folder / "users.parquet")
    items = {"item": range(ITEMS), "tags": [f"t{i % 4}|t{i % 7}" for i in range(ITEMS)]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


def run(raw_dir, data_dir, spec=None, **options):
    options = {"statistics": False, "user_buckets": 4, "rows_per_file": 70} | options
    return preprocess.run(
        PreprocessOptions(
            spec=spec or make_spec(),
            raw_dir=str(raw_dir),
            data_dir=str(data_dir),
            **options,
        )
    )


def content(data_dir):
    """Returns path -> hash of every file."""
    return {
        str(path.relative_to(data_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data_dir.rglob("*"))
        if path.is_file()
    }


def read_rows(dataset, split):
    """Returns the rows of a split as a table, in file order, by tf.train.Example."""
    import tensorflow as tf

    parts = []
    for path in dataset.files(split):
        for record in tf.data.TFRecordDataset(
            str(path), dataset.info.compression
        ).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            rows = len(features["row_id"].int64_list.value)
            columns = {}
            for name in (c.name for c in dataset.info.columns):
                kind = features[name].WhichOneof("kind")
                values = np.array(getattr(features[name], kind).value)
                columns[name] = values.reshape(rows, -1).tolist()
            parts.append(pa.table(columns))
    return pa.concat_tables(parts)
