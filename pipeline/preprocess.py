"""Raw logs -> a prepared data set, as a Beam job.

Flags that are not listed here are Beam's own pipeline options.
"""

import argparse
import logging
import pathlib
import resource
import sys
import time
import traceback

from features.config import ConfigError
from features.dataset import Dataset
from features.registry import dataset_spec
from features.spec import SPLITS
from pipeline.errors import is_user_error, root_cause
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
    result = argparse.ArgumentParser(
        prog="python -m pipeline.preprocess",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
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
        "--schema", help="a curated schema.pbtxt (default: inferred, or the previous)"
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
    logging.getLogger().setLevel(logging.WARNING)
    start = time.monotonic()
    try:
        # Before the imports of Beam, which take seconds: a slip is told at once.
        spec = dataset_spec(args.dataset, args.set)
        check_beam_args(beam_args)
        options = PreprocessOptions.parse(
            {
                "spec": spec,
                "raw_dir": args.raw_dir,
                "data_dir": args.data_dir,
                "seed": args.seed,
                "record_format": args.record_format,
                "block_rows": args.block_rows,
                "rows_per_file": args.rows_per_file,
                "compression": args.compression,
                "statistics": args.statistics,
                "statistics_sample_rate": args.statistics_sample_rate,
                "statistics_by_day": args.statistics_by_day,
                "fail_on_anomalies": args.fail_on_anomalies,
                "schema_path": args.schema,
                "previous_data_dir": args.previous_data_dir,
                "overwrite": args.overwrite,
                "show_progress": True,
                "beam_args": tuple(beam_args),
            }
        )
        if not pathlib.Path(args.raw_dir).is_dir():
            raise ConfigError(f"raw_dir must be a folder; got {args.raw_dir!r}.")
        # What a worker logs on failure comes again, shorter, as the error below.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        from pipeline.jobs import preprocess

        dataset = preprocess.run(options)
    except Exception as error:  # runners raise anything
        if not is_user_error(error):
            traceback.print_exc()
        print(f"preprocess failed: {root_cause(error)}", file=sys.stderr)
        return 1
    print(summary(dataset, time.monotonic() - start))
    return 0


def check_beam_args(beam_args: list[str]) -> None:
    """Refuses flags that neither this job nor Beam knows: a slip must not vanish."""
    if not beam_args:
        return
    from apache_beam.options.pipeline_options import PipelineOptions

    beam_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for cls in PipelineOptions.__subclasses__():
        cls._add_argparse_args(_Unique(beam_parser))
    unknown = [
        a for a in beam_parser.parse_known_args(beam_args)[1] if a.startswith("--")
    ]
    if unknown:
        raise ConfigError(
            f"flags must be of this job or of Beam; got {' '.join(unknown)}. "
            "See --help."
        )


class _Unique:
    """Takes each of Beam's flags once: two of its option classes may share one."""

    def __init__(self, wrapped: argparse.ArgumentParser) -> None:
        self._wrapped = wrapped

    def add_argument(self, *names: str, **settings: object) -> object:
        known = self._wrapped._option_string_actions
        new = [n for n in names if n not in known]
        return self._wrapped.add_argument(*new, **settings) if new else None  # type: ignore[arg-type]

    def add_value_provider_argument(self, *names: str, **settings: object) -> object:
        return self.add_argument(*names, **settings)

    def add_mutually_exclusive_group(self, **_: object) -> "_Unique":
        return self


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
