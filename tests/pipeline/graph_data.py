"""A sparse log of three domains and the choice of its rows by plain loops over sets."""

import collections
import math

import numpy as np
import pyarrow as pa

from features import hashing
from features.spec import NUM_RESERVED_IDS
from pipeline.selection import SelectOptions
from tests.pipeline import job_data

USERS, ITEMS, DAYS = 150, 220, 5
FIRST_DAY = 20240101
DOMAINS = ("home", "shop", "mini")  # `mini` is the target


def options_for(dataset, **changes):
    values = {
        "data_dir": str(dataset.data_dir),
        "target_domains": ["mini"],
        "max_ratio": 100.0,
        "num_buckets": 3,
        "overwrite": True,
        "rows_per_file": 20,
    }
    return SelectOptions.parse({**values, **changes})


def make_log(rows=900, seed=0):
    rng = np.random.default_rng(seed)
    mini = rng.random(rows) < 0.08
    # The target's users and items are some of the others'.
    user = np.where(mini, rng.integers(0, 30, rows), rng.integers(0, USERS, rows))
    item = np.where(mini, rng.integers(0, 40, rows), rng.integers(0, ITEMS, rows))
    # A few items are in fashion: co-clicks need them.
    item = np.where(rng.random(rows) < 0.25, rng.integers(190, 196, rows), item)
    time = job_data.FIRST_SECOND + np.sort(rng.integers(0, DAYS * 86_400, rows))
    return pa.table(
        {
            "user_id": [f"u{i}" for i in user],
            "item_id": [f"i{i}" for i in item],
            "genre": [f"g{i % 37}" for i in item],
            "city": [f"c{i % 29}" for i in user],
            "time": time,
            "place": np.where(mini, "mini", rng.choice(["home", "shop"], rows)),
            "click": (rng.random(rows) < 0.5).astype(int),
            "buy": (rng.random(rows) < 0.1).astype(int),
            "position": rng.permutation(rows) / 100,
        }
    )


def make_spec(**changes):
    values = {
        "name": "graph",
        "source": {"path": "log*.parquet"},
        "keys": {"user": "user_id", "item": "item_id", "time": "time"},
        "domain": {"by": "column", "column": "place", "values": list(DOMAINS)},
        "tasks": [
            {"name": "click", "column": "click"},
            {"name": "buy", "column": "buy"},
        ],
        "features": [
            {"kind": "categorical", "name": "user_id", "role": "user"},
            {"kind": "categorical", "name": "city", "role": "user"},
            {"kind": "categorical", "name": "item_id", "role": "item"},
            {"kind": "categorical", "name": "genre", "role": "item"},
            {"kind": "numeric", "name": "position", "role": "context"},
            {"kind": "sequence", "name": "history", "of": "item_id", "max_length": 3},
            {"kind": "domain"},
        ],
        "split": {"by": "random", "validation": 0.05, "test": 0.05},
    }
    return job_data.DatasetSpec.parse({**values, **changes})


def prepare(folder, log=None, files=2, spec=None, **options):
    raw = job_data.write_raw(folder / "raw", make_log() if log is None else log, files)
    return job_data.run(raw, folder / "data", spec or make_spec(), **options)


def plain_rows(dataset, split="train"):
    """Returns the rows of a split as dicts of plain numbers and lists."""
    lists = {c.name for c in dataset.info.columns if c.length > 1}
    return [
        {k: v if k in lists else v[0] for k, v in row.items()}
        for row in job_data.read_rows(dataset, split).to_pylist()
    ]


def few(node, others, cap):
    """Returns the `cap` of `others` with the smallest hash of (node, other)."""

    def key(other):
        mixed = hashing.mix64(np.array([node], np.uint64))
        return int(hashing.mix64(mixed ^ np.array([other], np.uint64))[0]), other

    return set(sorted(others, key=key)[:cap])


def near_nodes(dataset, options):
    """Returns hop by user and hop by item, walking edge by edge."""
    rows, domains = plain_rows(dataset), dataset.info.fitted.domains
    cutoff = options.cutoff_day or math.inf
    early = [r for r in rows if r["day"] <= cutoff]
    targets = {domains.index(d) for d in options.target_domains}
    sources = {domains.index(d) for d in options.source_domains} or (
        set(range(len(domains))) - targets
    )
    users = {r["user_key"]: 0 for r in early if r["domain"] in targets}
    items = {r["item_id"]: 0 for r in early if r["domain"] in targets}
    items = {i: 0 for i in items if i >= NUM_RESERVED_IDS}
    of_user, of_item = collections.defaultdict(set), collections.defaultdict(set)
    tasks = options.edge_tasks or ("click", "buy")
    graph_rows = [r for r in early if r["domain"] in sources]
    for r in graph_rows:
        if any(r[f"label/{task}"] == 1 for task in tasks):
            of_user[r["user_key"]].add(r["item_id"])
            of_item[r["item_id"]].add(r["user_key"])
    of_user = {u: few(u, found, options.degree_cap) for u, found in of_user.items()}
    of_item = {i: few(i, found, options.degree_cap) for i, found in of_item.items()}
    seed_users, seed_items = set(users), set(items)
    if options.hops:
        for user in seed_users & set(of_user):
            for item in of_user[user]:
                items.setdefault(item, 1)
        for item in seed_items & set(of_item):
            for user in of_item[item]:
                users.setdefault(user, 1)
    if options.hops > 1:
        together = collections.Counter(
            (far, seed)
            for found in of_user.values()
            for seed in found & seed_items
            for far in found - set(items)
        )
        for (far, _), count in together.items():
            if count >= options.min_co_clicks:
                items.setdefault(far, 2)
    for feature, nodes, key, seeds in (
        ("genre", items, "item_id", seed_items),
        ("city", users, "user_key", seed_users),
    ):
        if feature in options.cluster_features:
            members = collections.defaultdict(set)
            for r in graph_rows:
                members[r[feature]].add(r[key])
            for found in members.values():
                share = len(found & seeds) / len(found)
                if share and share >= options.cluster_min_share:
                    for node in found:
                        nodes.setdefault(node, 2)
    return users, items


def chosen_rows(dataset, options):
    """Returns (hop, row id) of the rows to choose, and the limit on their number."""
    users, items = near_nodes(dataset, options)
    rows, domains = plain_rows(dataset), dataset.info.fitted.domains
    first, last = options.row_days
    in_period = [r for r in rows if first <= r["day"] <= last]
    targets = {domains.index(d) for d in options.target_domains}
    sources = {domains.index(d) for d in options.source_domains} or set(range(3))
    limit = math.floor(
        options.max_ratio * sum(r["domain"] in targets for r in in_period)
    )
    found = []
    for r in in_period:
        if r["domain"] in targets or r["domain"] not in sources:
            continue
        hops = users.get(r["user_key"]), items.get(r["item_id"])
        if None in hops or (options.require_seed and 0 not in hops):
            continue
        found.append((max(hops), r["row_id"]))
    return found, limit
