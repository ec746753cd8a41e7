"""The graph-guided choice of rows on a synthetic click graph; one JSON line.

The graph is a prepared data set written directly: `--edges` clicks of a source domain
by users and items of Zipf-like popularity, and one target row for a hundred of them.
The job runs in a process of its own, after a run on an almost empty graph, which gives
start-up time and the memory that libraries take.

`python -m tests.benchmarks.bench_select_samples --edges 10000000`
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa

from features.dataset import SUCCESS_FILE, DatasetInfo
from features.fitted import Fitted
from features.spec import DatasetSpec

EMPTY_EDGES = 1000
CLICKS_A_USER, CLICKS_AN_ITEM, EDGES_A_TARGET_ROW = 20, 50, 100
ROWS_A_FILE = 500_000
DOMAINS = ("source", "target")
ROOT = pathlib.Path(__file__).resolve().parents[2]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", type=int, default=10_000_000)
    parser.add_argument("--hops", type=int, default=2)
    parser.add_argument("--degree_cap", type=int, default=100)
    parser.add_argument("--num_buckets", type=int, default=32)
    parser.add_argument("--similar", nargs="*", help="settings of the similar nodes")
    parser.add_argument("--workers", type=int, default=1, help="1: in this process")
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.folder:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, edges in (("empty", EMPTY_EDGES), ("graph", args.edges)):
            write_graph(folder / name, edges)
        command = [sys.executable, "-m", "tests.benchmarks.bench_select_samples"]
        command += ["--folder", str(folder)]
        for name in ("edges", "hops", "degree_cap", "num_buckets", "workers"):
            command += [f"--{name}", str(getattr(args, name))]
        if args.similar is not None:
            command += ["--similar", *args.similar]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, env=env, cwd=ROOT
        )
    line = {"benchmark": "select_samples", **json.loads(done.stdout)}
    line["hardware"] = f"{os.cpu_count()} x {platform.machine()}"
    line["load_average"] = round(os.getloadavg()[0], 1)  # others on the machine
    print(json.dumps(line))


def write_graph(folder, edges):
    """Writes a prepared data set: a click a row, two columns that say who and what."""
    from tfrecords_tools import encode

    num_users = max(edges // CLICKS_A_USER, 10)
    num_items = max(edges // CLICKS_AN_ITEM, 10)
    rows = edges + edges // EDGES_A_TARGET_ROW
    rng = np.random.default_rng(edges)
    (folder / "train").mkdir(parents=True)
    files, counts = [], np.zeros(2, np.int64)
    for start in range(0, rows, ROWS_A_FILE):
        count = min(ROWS_A_FILE, rows - start)
        target = np.arange(start, start + count) % (EDGES_A_TARGET_ROW + 1) == 0
        # The target knows a twentieth of the users and items.
        part = np.where(target, 0.05, 1.0)
        user = (rng.random(count) ** 1.5 * num_users * part).astype(np.int64)
        item = (rng.random(count) ** 3 * num_items).astype(np.int64)
        item = np.where(target, rng.integers(0, num_items, count) // 20 * 20, item)
        batch = pa.RecordBatch.from_arrays(
            [
                pa.array(item + 2),
                pa.array(target.astype(np.int64)),
                pa.array(np.ones(count, np.int64)),
                pa.array(rng.integers(0, 2**62, count)),
                pa.array(user),
            ],
            ["item_id", "domain", "label/click", "row_id", "user_key"],
        )
        files.append(f"train/part-{len(files):05d}.tfrecord")
        encode.write_records(folder / files[-1], batch)
        counts += np.bincount(target, minlength=2)
    info(num_items, files, counts).save(folder)
    (folder / SUCCESS_FILE).touch()


def info(num_items, files, counts):
    spec = DatasetSpec.parse(
        {
            "name": "graph",
            "source": {"path": "none"},
            "keys": {"user": "user", "item": "item"},
            "domain": {"by": "column", "column": "place", "values": list(DOMAINS)},
            "tasks": [{"name": "click", "column": "click"}],
            "features": [
                {
                    "kind": "categorical",
                    "name": "item_id",
                    "role": "item",
                    "column": "item",
                    "encoding": {"by": "hash", "num_buckets": num_items},
                },
                {"kind": "domain"},
            ],
            "split": {"by": "random"},
        }
    )
    cells = {
        name: {"rows": int(n), "labelled": {"click": int(n)}, "positives": {"click": 0}}
        for name, n in zip(DOMAINS, counts, strict=True)
    }
    fitted = Fitted(DOMAINS, {n: i for i, n in enumerate(DOMAINS)}, -1, {}, {}, {})
    return DatasetInfo(
        spec=spec,
        fitted=fitted,
        counts={"train": cells, "validation": {}, "test": {}},
        unknown={},
        rejected={},
        seed=0,
        record_format="block",
        block_rows=4096,
        compression="",
        files={"train": tuple(files), "validation": (), "test": ()},
    )


def measure(args):
    choose(args, "empty")
    startup = timed(lambda: choose(args, "empty"))
    before = peak_mib()
    reports = []
    secs = timed(lambda: reports.append(choose(args, "graph")))
    (report,) = reports
    net = max(secs[0] - startup[0], 1e-9)
    return {
        "edges": args.edges,
        "hops": args.hops,
        "degree_cap": args.degree_cap,
        "num_buckets": args.num_buckets,
        "workers": args.workers,
        "similar": report["settings"].get("similar"),
        "target_rows": report["target_rows"],
        "rows_found": sum(report["rows_by_hop_before_limit"].values()),
        "rows_by_hop": report["rows_by_hop"],
        "nodes": report["nodes"],
        "startup_secs": round(startup[0], 2),
        "secs": round(secs[0], 2),
        "cpu_secs": round(secs[1], 2),
        "edges_per_sec": round(args.edges / net),
        "peak_mib_libraries": round(before),
        "peak_mib_largest_process": round(peak_mib()),
    }


def choose(args, name):
    """Runs the job; returns its report."""
    from pipeline.jobs import select_samples
    from pipeline.selection import SelectOptions
    from pipeline.similarity import parse_settings

    similar = None if args.similar is None else parse_settings(args.similar)
    beam_args = ()
    if args.workers > 1:
        beam_args = (
            "--direct_running_mode=multi_processing",
            f"--direct_num_workers={args.workers}",
        )
    dataset = select_samples.run(
        SelectOptions(
            data_dir=str(args.folder / name),
            target_domains=("target",),
            hops=args.hops,
            degree_cap=args.degree_cap,
            num_buckets=args.num_buckets,
            similar=similar,
            overwrite=True,
            beam_args=beam_args,
        )
    )
    return json.loads((dataset.data_dir / select_samples.REPORT_FILE).read_text())


def timed(action):
    start, cpu = time.monotonic(), cpu_secs()
    action()
    return time.monotonic() - start, cpu_secs() - cpu


def cpu_secs():
    """CPU seconds of this process and of the workers that ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        for usage in [resource.getrusage(who)]
    )


def peak_mib():
    return max(
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


if __name__ == "__main__":
    main()
