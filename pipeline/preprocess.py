"""Raw logs -> a prepared data set, as a Beam job.

Flags that are not listed here are Beam's own pipeline options.
"""

import argparse
import pathlib
import resource
import sys
import time

from features.config import ConfigError
from features.dataset import Dataset
from features.registry import dataset_spec
from features.spec import SPLITS
from pipeline import launch
from pipeline.options import PreprocessOptions

SHOWN_ANOMALIES = 5  # of the summary; the report has all

EPILOG = """examples:
  python -m pipeline.preprocess --dataset synthetic --raw_dir raw --data_dir data
  python -m pipeline.preprocess --dataset movielens_1m --raw_dir raw/ml-1m \\
      --data_dir data/ml1m --no-statistics \\
      --direct_running_mode=multi_processing --direct_num_workers=2
  python -m pipeline.preprocess --dataset my_spec.yaml --raw_dir raw --data_dir out \\
      --set split.seed=3
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the job's own flags."""
    result = launch.parser("preprocess", description=__doc__, epilog=EPILOG)
    result.add_argument("--dataset", required=True, help="a name, or a spec in YAML")
    result.add_argument("--raw_dir", required=True, help="folder of the raw files")
    result.add_argument("--data_dir", required=True, help="folder to write")
    result.add_argument(
        "--set", action="append", default=[], help="a.b=value in the spec; repeatable"
    )
    result.add_argument("--seed", type=int, default=0, help="of the global shuffle")
    result.add_argument(
        "--record_format",
        choices=("block", "row"),
        default="block",
        help="many rows a record, read faster (default), or one",
    )
    result.add_argument("--block_rows", type=int, default=4096, help="default 4096")
    result.add_argument(
        "--rows_per_file", type=int, default=131_072, help="default 131072"
    )
    result.add_argument("--compression", choices=("", "GZIP"), default="")
    result.add_argument(
        "--statistics",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="TFDV statistics, schema and anomalies (most of the job's time)",
    )
    result.add_argument(
        "--statistics_sample_rate", type=float, default=1.0, help="share of rows"
    )
    result.add_argument(
        "--statistics_by_day",
        action="store_true",
        help="also compare each day with the one before",
    )
    result.add_argument(
        "--fail_on_anomalies",
        action="store_true",
        help="publish nothing when statistics break the schema, skew or drift",
    )
    result.add_argument(
        "--schema",
        dest="schema_path",
        metavar="SCHEMA",
        help="a curated schema.pbtxt (default: inferred, or the previous)",
    )
    result.add_argument(
        "--previous_data_dir",
        help="data set of the day before: continues its vocabularies and schema",
    )
    result.add_argument(
        "--overwrite", action="store_true", help="replace data_dir, at the very end"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args, beam_args = parser().parse_known_args(argv)
    start = time.monotonic()
    dataset = launch.attempt("preprocess", lambda: _run(args, beam_args))
    if dataset is None:
        return 1
    print(summary(dataset, time.monotonic() - start))
    return 0


def _run(args: argparse.Namespace, beam_args: list[str]) -> Dataset:
    """Runs the job; returns the data set."""
    # Before the imports of Beam, which take seconds: a slip is told at once.
    spec = dataset_spec(args.dataset, args.set)
    values = launch.option_values(args, beam_args)
    del values["dataset"], values["set"]
    options = PreprocessOptions.parse({**values, "spec": spec})
    if not pathlib.Path(args.raw_dir).is_dir():
        raise ConfigError(f"raw_dir must be a folder; got {args.raw_dir!r}.")
    from pipeline.jobs import preprocess

    return preprocess.run(options)


def summary(dataset: Dataset, secs: float) -> str:
    """Returns rows, positives and rejected rows in a table, time and memory."""
    info = dataset.info
    tasks = info.spec.task_names
    head = f"{'split':12}{'domain':20}{'rows':>12}"
    lines = [head + "".join(f"{t[:12] + ' %':>15}" for t in tasks)]
    total = 0
    for split in SPLITS:
        for domain in info.fitted.domains:
            cell = info.counts[split][domain]
            total += cell["rows"]
            shares = "".join(
                f"{100 * cell['positives'][t] / n:15.2f}" if n else f"{'-':>15}"
                for t in tasks
                for n in [cell["labelled"][t]]
            )
            lines.append(f"{split:12}{domain:20}{cell['rows']:12,}{shares}")
    for reason, count in info.rejected.items():
        lines.append(f"rejected: {count:,} x {reason}")
    unknown = ", ".join(
        f"{name} {count:,}" for name, count in info.unknown.get("test", {}).items()
    )
    lines.append(f"unknown ids in test: {unknown or 'none'}")
    lines += _anomaly_lines(dataset)
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    lines.append(
        f"{total:,} rows in {secs:.1f} s ({total / secs:,.0f} rows/s with start-up), "
        f"largest process {peak / 2**20:.2f} GiB"
    )
    lines.append(f"data set: {dataset.data_dir} (fingerprint {info.fingerprint})")
    return "\n".join(lines)


def _anomaly_lines(dataset: Dataset) -> list[str]:
    folder = dataset.data_dir / "anomalies"
    if not folder.exists():
        return []
    # Not at the top: without statistics nobody need wait for TFDV.
    from pipeline.validation import AnomalyReport

    report = AnomalyReport.load(dataset.data_dir)
    if report is None or not report.has_errors:
        return ["anomalies: none"]
    where = folder / "report.txt"
    shown = report.to_text(SHOWN_ANOMALIES).replace("\n", "\n  ")
    return [f"anomalies: {len(report.anomalies)}, all in {where}", f"  {shown}"]


if __name__ == "__main__":
    sys.exit(main())
