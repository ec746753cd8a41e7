"""Families of runs: one model per domain, per task, or per cell, shown as one."""

import functools
import pathlib
from collections.abc import Callable

from features.dataset import Dataset
from models.metrics.table import MetricsTable
from models.training import evaluate, measure, trainer
from models.training import workdir as workdir_lib
from models.training.config import RunConfig
from models.training.evaluate import Scores
from models.training.result import Result, is_finished, scores_path

RUNS_DIR = "runs"


def expand(config: RunConfig, dataset: Dataset) -> dict[str, RunConfig]:
    """Returns the single runs of a family by folder name; one for `mdmt`.

    The seed is the same in all: their models differ in shape or rows anyway.
    """
    schema = dataset.info.model_schema.select(config.domains, config.tasks)
    domains, tasks = list(schema.domains), list(schema.tasks)
    match config.form:
        case "mdmt":
            cells = {"": (config.domains, config.tasks)}
        case "mtl":
            cells = {d: ([d], tasks) for d in domains}
        case "mdl":
            cells = {t: (domains, [t]) for t in tasks}
        case _:
            cells = {f"{d}.{t}": ([d], [t]) for d in domains for t in tasks}
    return {
        name: config.model_copy(
            update={"form": "mdmt", "domains": chosen[0], "tasks": chosen[1]}
        )
        for name, chosen in cells.items()
    }


def train_family(config: RunConfig, dataset: Dataset, workdir: pathlib.Path) -> Result:
    """Trains every run of the family in a folder of its own and merges the scores.

    Each run stops on its own metric over its own rows.
    """
    schema = trainer.run_schema(config, dataset)
    measure.check_metric(config.metric, schema.domains, schema.tasks)
    results = {}
    for name, single in expand(config, dataset).items():
        folder = workdir / RUNS_DIR / name
        folder.mkdir(parents=True, exist_ok=True)
        workdir_lib.claim(folder, workdir_lib.describe(single, dataset))
        results[name] = (
            Result.load(folder)
            if is_finished(folder)
            else trainer.train_one(single, dataset, folder)
        )
    tables = {}
    for split in trainer.SPLITS_MEASURED:
        scores = merge(
            config,
            dataset,
            functools.partial(_load_scores, workdir, split),
        )
        scores.save(scores_path(workdir, split))
        tables[split] = measure.metrics_of(scores)
    result = _merged(workdir, config, results, tables)
    result.save()
    return result


def merge(
    config: RunConfig, dataset: Dataset, scores_of: Callable[[str], Scores]
) -> Scores:
    """Returns the scores of a family as one, like those of a single model.

    Args:
      config: Of the family.
      dataset: Its data set.
      scores_of: Gives the scores of a run by name.
    """
    singles = expand(config, dataset)
    if config.form in ("mdmt", "mdl"):
        return evaluate.join_tasks([scores_of(name) for name in singles])
    by_domain: dict[str, list[Scores]] = {}
    for name, single in singles.items():
        by_domain.setdefault(single.domains[0], []).append(scores_of(name))
    return evaluate.join_domains(
        [evaluate.join_tasks(parts) for parts in by_domain.values()]
    )


def _merged(
    workdir: pathlib.Path,
    config: RunConfig,
    results: dict[str, Result],
    tables: dict[str, MetricsTable],
) -> Result:
    rates = [r.train_rows_per_sec for r in results.values() if r.train_rows_per_sec]
    return Result(
        workdir=workdir,
        metrics={split: table.to_json() for split, table in tables.items()},
        metric=config.metric,
        best_metric=tables["validation"].scalars()[config.metric],
        best_step=None,
        best_epoch=None,
        steps=sum(r.steps for r in results.values()),
        epochs=max(r.epochs for r in results.values()),
        stop_reason="every run of the family has ended",
        # The runs share the machine one after the other: the mean run's rate.
        train_rows_per_sec=sum(rates) / len(rates) if rates else None,
        secs=sum(r.secs for r in results.values()),
        num_parameters=sum(r.num_parameters for r in results.values()),
        peak_rss_bytes=max(r.peak_rss_bytes for r in results.values()),
        runs={name: r.to_json() for name, r in results.items()},
    )


def _load_scores(workdir: pathlib.Path, split: str, name: str) -> Scores:
    return Scores.load(scores_path(workdir / RUNS_DIR / name, split))
