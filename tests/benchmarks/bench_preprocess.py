"""Preprocessing against a plain per-row Beam pipeline of the same job; one JSON line.

Both read the synthetic log (users and items joined, one history of 20 items, six
vocabularies, two normalised numbers, popularity) and write shuffled TFRecords.  Each
part runs in a process of its own, which first processes an almost empty log twice: once
for the imports, once for the start-up time that is subtracted.

`python -m tests.benchmarks.bench_preprocess --rows 1000000 --plain_rows 50000`
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

from features import synthetic
from features.registry import dataset_spec
from features.synthetic_world import SyntheticConfig

EMPTY_ROWS = 500
ROOT = pathlib.Path(__file__).resolve().parents[2]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--statistics_rows", type=int, default=200_000)
    parser.add_argument("--plain_rows", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2, help="1: in this process")
    parser.add_argument("--part", choices=("job", "statistics", "plain"))
    parser.add_argument("--folder", type=pathlib.Path)
    args = parser.parse_args(argv)
    if args.part:
        print(json.dumps(_measure(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        line = _compare(args, pathlib.Path(folder))
    print(json.dumps(line))


def _compare(args, folder):
    sizes = {
        "empty": EMPTY_ROWS,
        "job": args.rows,
        "statistics": args.statistics_rows,
        "plain": args.plain_rows,
    }
    for name, rows in sizes.items():
        config = SyntheticConfig(rows=rows, truth="none")
        synthetic.generate(folder / name, config)
    line = {"benchmark": "preprocess", "workers": args.workers, "history_items": 20}
    found = {}
    for part in ("job", "statistics", "plain"):
        found[part] = _child(args, folder, part)
        line |= {f"{part}_{key}": value for key, value in found[part].items()}
    for unit in ("sec", "cpu_sec"):
        ours, plain = (found[p][f"rows_per_{unit}"] for p in ("job", "plain"))
        line[f"ratio_per_{unit}"] = round(ours / plain, 1)
    line["hardware"] = f"{os.cpu_count()} x {platform.machine()}"
    line["load_average"] = round(os.getloadavg()[0], 1)  # others on the machine
    return line


def _child(args, folder, part):
    command = [sys.executable, "-m", "tests.benchmarks.bench_preprocess"]
    command += ["--part", part, "--folder", str(folder)]
    command += ["--workers", str(args.workers)]
    # Worker processes import the per-row pipeline by its name.
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, env=env, cwd=ROOT
    )
    return json.loads(done.stdout)


def _measure(args):
    run = _run_plain if args.part == "plain" else _run_job
    raw = args.folder
    run(args, raw / "empty", raw / f"{args.part}_out_warm")
    startup = _timed(lambda: run(args, raw / "empty", raw / f"{args.part}_out_empty"))
    made = []
    whole = _timed(
        lambda: made.append(run(args, raw / args.part, raw / f"{args.part}_out"))
    )
    secs, cpu = (max(a - b, 1e-9) for a, b in zip(whole, startup, strict=True))
    (rows,) = made
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "rows": rows,
        "startup_secs": round(startup[0], 2),
        "secs": round(secs, 2),
        "cpu_secs": round(cpu, 2),
        "rows_per_sec": round(rows / secs),
        "rows_per_cpu_sec": round(rows / cpu),
        "peak_mib_largest_process": round(peak / 1024),
    }


def _timed(action):
    start, cpu = time.monotonic(), _cpu_secs()
    action()
    return time.monotonic() - start, _cpu_secs() - cpu


def _cpu_secs():
    """CPU seconds of this process and of the workers that ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        for usage in [resource.getrusage(who)]
    )


def _beam_args(args):
    if args.workers == 1:
        return ()
    return (
        "--direct_running_mode=multi_processing",
        f"--direct_num_workers={args.workers}",
    )


def _run_job(args, raw_dir, data_dir):
    """Runs the project's job; returns the rows written."""
    from pipeline.jobs import preprocess
    from pipeline.options import PreprocessOptions

    dataset = preprocess.run(
        PreprocessOptions(
            spec=dataset_spec("synthetic"),
            raw_dir=str(raw_dir),
            data_dir=str(data_dir),
            statistics=args.part == "statistics",
            beam_args=_beam_args(args),
        )
    )
    return sum(dataset.info.num_rows(split) for split in dataset.info.counts)


def _run_plain(args, raw_dir, data_dir):
    from tests.benchmarks import plain_preprocess

    return plain_preprocess.run(raw_dir, data_dir, _beam_args(args))


if __name__ == "__main__":
    main()
