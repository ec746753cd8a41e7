"""Training with glibc's own handling of large tensors against keeping freed memory.

Each side is a process of its own, in turn: `models/training/allocator.py` cannot be
undone.  M3oE at the shapes of `bench_m3oe.py`; CPU seconds, user and system.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # run as a script too


def child(keep, batch_size, steps):
    """Trains and prints the CPU seconds of `steps` steps."""
    if keep:
        from models.training import allocator

        assert allocator.keep_freed_memory()
    from tests.benchmarks import bench_m3oe, timing

    schema = timing.make_schema(bench_m3oe.NUM_IDS, 3, 2, numbers=1)
    batch = timing.make_batch(schema, batch_size, shares=bench_m3oe.SHARES)
    training = timing.Training(timing.make_method("m3oe", schema), batch)
    training.run(3)
    before = os.times()
    training.run(steps)
    after = os.times()
    print(json.dumps([after.user - before.user, after.system - before.system]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8192, 40960])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        keep, batch_size, steps = map(int, args.child)
        return child(bool(keep), batch_size, steps)
    rows = []
    for batch_size in args.batch_sizes:
        steps = max(1, args.rows // batch_size)
        secs = {0: [], 1: []}
        for _ in range(args.rounds):
            for keep in (0, 1):
                command = [sys.executable, "-m", "tests.benchmarks.bench_allocator"]
                command += ["--child", str(keep), str(batch_size), str(steps)]
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True
                )
                secs[keep].append(json.loads(done.stdout.splitlines()[-1]))
        own, kept = (np.min(secs[keep], axis=0) for keep in (0, 1))
        rows.append(
            {
                "batch_size": batch_size,
                "steps": steps,
                "glibc_user_secs": round(own[0], 2),
                "glibc_system_secs": round(own[1], 2),
                "kept_user_secs": round(kept[0], 2),
                "kept_system_secs": round(kept[1], 2),
                "ratio": round(own.sum() / kept.sum(), 3),
            }
        )
    print(json.dumps({"benchmark": "allocator", "rows": rows}))
    return None


if __name__ == "__main__":
    main()
