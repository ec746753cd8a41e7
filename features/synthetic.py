"""Writes seeded raw logs with planted structure, for demos, tests and benchmarks.

Streams chunk by chunk: memory does not grow with the rows, and the bytes of a chunk
depend on the settings and its number only.  The folder then holds

  events/part-00000.parquet ...   the log (or .jsonl), in order of time
  users.parquet  items.parquet    side tables
  truth/part-00000.parquet ...    true probabilities, row by row as in events/
  truth.json                      settings, groups, conflicting domain, plants, dirt
  dataset.yaml                    the dataset spec, for --dataset
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tqdm
import yaml

from features.config import ConfigError, apply_overrides
from features.datasets import planted
from features.synthetic_config import SyntheticConfig
from features.synthetic_dirt import DIRT
from features.synthetic_presets import PRESETS
from features.synthetic_world import World

TASKS = ("click", "like")


def generate(
    out_dir: str | pathlib.Path,
    config: SyntheticConfig | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> pathlib.Path:
    """Writes the log and returns its folder, which appears whole or not at all.

    Args:
      out_dir: Folder to make.
      config: Settings; None: the defaults.
      overwrite: Whether an existing folder is replaced.
      progress: Whether to show a progress bar with rows/s.

    Raises:
      ConfigError: When the folder exists and `overwrite` is not set, or holds what
        is not a generated log.
    """
    config = SyntheticConfig() if config is None else config
    out_dir = pathlib.Path(out_dir)
    if out_dir.exists():
        _check_replaceable(out_dir, overwrite)
    work = out_dir.with_name(f".{out_dir.name}.tmp-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        _write(work, config, progress)
        if out_dir.exists():
            shutil.rmtree(out_dir)
        work.rename(out_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out_dir


def best_auc(
    data_dir: str | pathlib.Path, from_time: int | None = None
) -> dict[str, dict[str, float]]:
    """Returns domain -> task -> the AUC of the true probabilities.

    No model can be better but by luck.  NaN where rows of one class are missing.

    Args:
      data_dir: What `generate` wrote with truth "file".
      from_time: Only rows from this time (seconds) on, for example the test split.
    """
    data_dir = pathlib.Path(data_dir)
    values = json.loads((data_dir / "truth.json").read_text("utf-8"))
    parts: dict[str, list[np.ndarray]] = {}
    for path in sorted((data_dir / "truth").glob("part-*.parquet")):
        truth = pq.read_table(path)
        keep = pc.and_(truth["clean"], pc.greater_equal(truth["time"], from_time or 0))
        for name, column in zip(truth.column_names, truth.filter(keep), strict=True):
            parts.setdefault(name, []).append(column.to_numpy())
    columns = {name: np.concatenate(part) for name, part in parts.items()}
    return {
        name: {
            task: _auc(columns[f"is_{task}"][rows], columns[task][rows])
            for task in TASKS
        }
        for d, name in enumerate(values["domains"])
        for rows in [columns["domain"] == d]
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m features.synthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m features.synthetic --out raw --rows 500000\n"
        "  python -m features.synthetic --out raw --rows 10000000 --seed 7 \\\n"
        "      --format jsonl --set num_domains=12 --set dirty_rate=0.01\n"
        "  python -m features.synthetic --preset planted_ssctl --out raw --rows 50000\n"
        "settings for --set, with their defaults:\n" + _settings(),
    )
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="settings of a planted log"
    )
    parser.add_argument("--rows", type=int, help="rows of the log")
    parser.add_argument("--seed", type=int, help="same seed, same bytes")
    parser.add_argument("--format", choices=("parquet", "jsonl"), help="of the log")
    parser.add_argument(
        "--truth",
        choices=("none", "file", "column"),
        help="where the true probabilities go",
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder")
    args = parser.parse_args(argv)
    try:
        values = apply_overrides(PRESETS.get(args.preset, {}), args.set)
        for name in ("rows", "seed", "format", "truth"):
            if getattr(args, name) is not None:
                values[name] = getattr(args, name)
        config = SyntheticConfig.parse(values, where="the command line")
        out_dir = generate(args.out, config, overwrite=args.overwrite, progress=True)
    except (ConfigError, OSError) as error:
        print(f"features.synthetic: {error}", file=sys.stderr)
        return 1
    print(f"{config.rows} rows in {out_dir}; spec: {out_dir / 'dataset.yaml'}")
    return 0


def _settings() -> str:
    return "\n".join(
        f"  {name}={field.default}  {field.description or ''}".rstrip()
        for name, field in SyntheticConfig.model_fields.items()
    )


def _check_replaceable(out_dir: pathlib.Path, overwrite: bool) -> None:
    if not overwrite:
        raise ConfigError(
            f"out must be a folder that does not exist; got {str(out_dir)!r}. "
            "Choose another, or replace it with --overwrite."
        )
    if not (out_dir / "truth.json").exists():
        raise ConfigError(
            f"out must be a generated log to be replaced; {str(out_dir)!r} has no "
            "truth.json, so it is something else. Choose another folder."
        )


def _write(folder: pathlib.Path, config: SyntheticConfig, progress: bool) -> None:
    (folder / "events").mkdir(parents=True)
    if config.truth == "file":
        (folder / "truth").mkdir()
    world = World(config)
    pq.write_table(world.users(), folder / "users.parquet")
    pq.write_table(world.items(), folder / "items.parquet")
    dirty = np.zeros(len(DIRT), np.int64)
    with tqdm.tqdm(total=config.rows, unit="rows", disable=not progress) as bar:
        for index in range(config.num_chunks):
            events, truth, dirt = world.chunk(index)
            _write_events(
                folder / "events" / f"part-{index:05d}", config, events, truth, dirt
            )
            if config.truth == "file":
                table = _truth_table(config, events, truth, dirt)
                pq.write_table(table, folder / "truth" / f"part-{index:05d}.parquet")
            dirty += np.bincount(dirt[dirt >= 0], minlength=len(DIRT))
            bar.update(len(events))
    truth_values = {
        "config": config.model_dump(mode="json"),
        "domains": list(config.domains),
        "shares": config.shares.tolist(),
        "groups": list(config.groups),
        "conflict_domain": config.conflict_domain,
        "planted": world.planted(),
        "dirty_rows": dict(zip(DIRT, dirty.tolist(), strict=True)),
    }
    _write_text(folder / "truth.json", json.dumps(truth_values, indent=2) + "\n")
    spec = planted.spec_of(config)
    _write_text(
        folder / "dataset.yaml",
        yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False),
    )


def _write_text(path: pathlib.Path, text: str) -> None:
    path.write_text(text, "utf-8")


def _write_events(
    path: pathlib.Path,
    config: SyntheticConfig,
    events: pa.Table,
    truth: pa.Table,
    dirt: np.ndarray,
) -> None:
    if config.truth == "column":
        for task in TASKS:
            events = events.append_column(f"true_{task}", truth[task])
    if config.format == "parquet":
        pq.write_table(events, path.with_suffix(".parquet"))
        return
    lines = _json_lines(events)
    broken = pa.array(dirt == DIRT.index("malformed_line"))
    lines = pc.if_else(broken, pc.utf8_slice_codeunits(lines, 0, 20), lines)
    with open(path.with_suffix(".jsonl"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines.to_pylist()))
        file.write("\n")


def _json_lines(events: pa.Table) -> pa.StringArray:
    """Returns a JSON object a row; no text of ours needs escapes."""
    parts: list[pa.Array | str] = []
    for number, name in enumerate(events.column_names):
        column = events[name].combine_chunks()
        if pa.types.is_string(column.type):
            text = pc.binary_join_element_wise('"', column, '"', "")
        else:
            text = pc.replace_substring(column.cast(pa.string()), "nan", "NaN")
        parts += [f'{", " if number else "{"}"{name}": ', pc.fill_null(text, "null")]
    return pc.binary_join_element_wise(*parts, "}", "")


def _truth_table(
    config: SyntheticConfig, events: pa.Table, truth: pa.Table, dirt: np.ndarray
) -> pa.Table:
    """Returns true probabilities, and what `best_auc` needs beside them."""
    domain = pc.index_in(events["domain"], value_set=pa.array(config.domains))
    columns = {
        "time": pc.fill_null(events["time"], -1),
        "domain": pc.fill_null(domain, -1),
        "clean": pa.array(dirt < 0),
    }
    columns.update(rule=truth["rule"], flipped=truth["flipped"])
    for task in TASKS:
        columns[task] = truth[task]
        columns[f"is_{task}"] = pc.equal(events[task], 1.0)
    return pa.table(columns)


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the exact AUC, ties averaged; NaN for one class."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    # Not scipy.stats: its import takes longer than writing a small log.
    _, value, count = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2  # rank of each value, ties averaged
    ranks = middle[value][labels].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


if __name__ == "__main__":
    sys.exit(main())
