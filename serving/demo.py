"""The main job end to end on the synthetic log, each stage as a user would run it."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

import tfrecords_tools
from features.dataset import Dataset
from models.comparison import planted
from models.training.result import Result
from serving.inputs import raw_inputs
from serving.publish import versions
from serving.samples import json_rows, raw_arrays, read_samples

ROWS = 150_000


def _stage(name: str, *arguments: str) -> None:
    print(f"\n== {name}\n$ python -m {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *arguments], check=False)
    if done.returncode != 0:
        raise RuntimeError(f"demo: stage {name!r} failed; see above.")


def run(out: pathlib.Path, rows: int) -> None:
    """Runs all stages below `out`; a second run goes on where the first one ended.

    Raises:
      RuntimeError: When a stage fails.
    """
    raw, data, runs = out / "raw", out / "data", out / "runs"
    base_dir = out / "export" / "ranker"
    if not (raw / "truth.json").exists():
        _stage(
            "raw log",
            "features.synthetic",
            f"--out={raw}",
            f"--rows={rows}",
            "--seed=0",
        )
    if not (data / "_SUCCESS").exists():
        _stage(
            "preprocess",
            "pipeline.preprocess",
            "--dataset=synthetic",
            f"--raw_dir={raw}",
            f"--data_dir={data}",
        )
    best = {planted.BEST: planted.best_reachable(raw, data)}
    (out / "best_reachable.json").write_text(json.dumps(best), "utf-8")
    _stage(
        "compare",
        "models.compare",
        "--experiment=demo",
        f"--data_dir={data}",
        f"--workdir={runs}",
        f"--references={out / 'best_reachable.json'}",
        f"--workers={len(os.sched_getaffinity(0))}",
    )
    workdir = runs / "m3oe" / "seed0"
    _stage(
        "export", "serving.export", f"--workdir={workdir}", f"--export_dir={base_dir}"
    )
    version = base_dir / str(versions(base_dir)[-1])
    _score_one(data, version, out)
    print(f"\ndata set: {data}\nworkdir:  {Result.load(workdir).workdir}")
    print(f"export:   {version}\nreport:   {runs / 'report.html'}")


def _score_one(data: pathlib.Path, version: pathlib.Path, out: pathlib.Path) -> None:
    """Scores one raw row with the artefact alone, in a fresh process."""
    dataset = Dataset.open(data)
    table = read_samples(dataset, "test", 1)
    spec = dataset.info.spec
    arrays = raw_arrays(spec, raw_inputs(spec), table)
    inputs, outputs = out / "request.npz", out / "response.npz"
    plain = {k: v.astype(str) if v.dtype == object else v for k, v in arrays.items()}
    np.savez(inputs, **plain)
    script = pathlib.Path(__file__).with_name("artefact_check.py")
    subprocess.run(
        [
            sys.executable,
            *("-I", "-W", tfrecords_tools.NO_COUNTDOWN),
            str(script),
            *(str(p.absolute()) for p in (version, inputs, outputs)),
        ],
        check=True,
    )
    (request,) = json_rows(arrays)
    with np.load(outputs) as stored:
        response = {
            k.removeprefix("tf2/"): stored[k][0].item()
            for k in stored.files
            if k.startswith("tf2/")
        }
    print(f"\n== one request through the export\nrequest:  {json.dumps(request)}")
    print(f"response: {json.dumps(response)}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m serving.demo", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo"))
    parser.add_argument("--rows", type=int, default=ROWS)
    args = parser.parse_args(argv)
    start = time.monotonic()
    try:
        run(args.out, args.rows)
    except (ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    print(f"demo: {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
