"""Chains of days against each other: one domain's next-day AUC, day by day.

What `Experiment` is for runs on one data set, `DaysExperiment` is for chains: models
that go on from day to day, of which some read a source model that does so too.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pydantic
import yaml
from pydantic import Field

from features.config import Config, lookup_error, nearest, read_yaml
from models.comparison import prepare, table
from models.comparison.experiment import FOLDER, RawData, is_path, merged
from models.training.evaluate import Scores
from models.training.result import Result, is_finished

DAYS_FOLDER = FOLDER / "days"
RUN = "run"  # of a day, in a chain's workdir
Runs = Mapping[int, Result]  # by day


class ChainEntry(Config):
    """One chain of a comparison."""

    first_day: int | None = Field(None, description="where it begins before the others")
    source: str = Field("", description="entry whose chain is the frozen source model")
    source_mode: Literal["continual", "one_time"] = "continual"
    chain: dict[str, Any] = Field(
        {}, description="keys of a `pipeline.continual` chain"
    )


class DaysExperiment(Config):
    """A comparison of chains on the rows of one domain.

    Every day of the comparison each chain trains on the day and is tested on the next.
    The first chain prepares the days' data sets for all, so it begins first.
    """

    name: str
    title: str
    data: RawData
    domain: str
    first_day: int = Field(description="YYYYMMDD, the first day that is compared")
    last_day: int
    base: dict[str, Any] = Field({}, description="keys that all chains have")
    chains: dict[str, ChainEntry] = Field(min_length=1)
    main: str

    @pydantic.model_validator(mode="after")
    def _check(self) -> "DaysExperiment":
        if self.main not in self.chains:
            raise ValueError(
                f"main must be one of chains; got {self.main!r}."
                + nearest(self.main, self.chains)
            )
        labels = list(self.chains)
        for label, entry in self.chains.items():
            before = labels[: labels.index(label)]
            if entry.source and entry.source not in before:
                raise ValueError(
                    f"chains.{label}.source must be a chain above it; got "
                    f"{entry.source!r}." + nearest(entry.source, before)
                )
            if self.begin(label) < self.begin(labels[0]):
                raise ValueError(
                    f"chains.{label}.first_day must not be before that of "
                    f"{labels[0]!r}, which prepares the days; got {entry.first_day}"
                )
        return self

    def begin(self, label: str) -> int:
        """Returns the day with which a chain begins."""
        return self.chains[label].first_day or self.first_day


def names() -> list[str]:
    """Returns the names of the built-in comparisons of chains."""
    return sorted(path.stem for path in DAYS_FOLDER.glob("*.yaml"))


def is_days_experiment(name_or_path: str) -> bool:
    """Returns whether it is a built-in comparison of chains, or a YAML file of one.

    Raises:
      ConfigError: For a file that cannot be read.
    """
    if not is_path(name_or_path):
        return name_or_path in names()
    return "chains" in read_yaml(name_or_path)


def load(name_or_path: str) -> DaysExperiment:
    """Returns a built-in comparison by name, or the one in a YAML file.

    Raises:
      LookupError: For an unknown name.
      ConfigError: For a file that is not a valid comparison.
    """
    if is_path(name_or_path):
        return DaysExperiment.load(name_or_path, [])
    if name_or_path not in names():
        raise lookup_error("experiment", name_or_path, names())
    return DaysExperiment.load(DAYS_FOLDER / f"{name_or_path}.yaml", [])


def walk(
    experiment: DaysExperiment,
    raw_dir: pathlib.Path | None,
    folder: pathlib.Path,
    *,
    seeds: int,
) -> dict[str, list[pathlib.Path]]:
    """Walks every chain with seeds 0 .. seeds - 1, as far as it is not done.

    Args:
      experiment: The comparison.
      raw_dir: Folder of all raw data; None is enough for a generated log.
      folder: Chains lie in `<folder>/<entry>/seed<seed>`.
      seeds: At least 1.

    Returns:
      label -> workdirs in order of seed.

    Raises:
      ValueError, RuntimeError: As `prepare.prepare`; for `seeds` below 1.
    """
    if seeds < 1:
        raise ValueError(f"reproduce.seeds must be at least 1; got {seeds}.")
    raw = prepare.raw_folder(experiment.data, raw_dir, folder)
    found: dict[str, list[pathlib.Path]] = {label: [] for label in experiment.chains}
    for seed in range(seeds):
        for label, workdirs in found.items():
            workdir = folder / label / f"seed{seed}"
            settings = chain_settings(experiment, label, seed, raw, folder)
            config = workdir.with_suffix(".yaml")
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
            prepare.run_module(
                "pipeline.continual",
                f"--config={config}",
                f"--workdir={workdir}",
                f"--first_day={experiment.begin(label)}",
                f"--last_day={experiment.last_day}",
            )
            workdirs.append(workdir)
    return found


def chain_settings(
    experiment: DaysExperiment,
    label: str,
    seed: int,
    raw: pathlib.Path,
    folder: pathlib.Path,
) -> dict[str, Any]:
    """Returns the chain of an entry with a seed, as `pipeline.continual` reads it."""
    entry, data = experiment.chains[label], experiment.data
    settings = merged(experiment.base, entry.chain)
    settings |= {"dataset": data.dataset, "raw_dir": str(raw)}
    settings["overrides"] = data.overrides
    settings["run"] = {**settings.get("run", {}), "seed": seed}
    maker = folder / next(iter(experiment.chains)) / "seed0"
    if folder / label / f"seed{seed}" != maker:
        settings["data_from"] = str(maker)
    if entry.source:
        source = str(folder / entry.source / f"seed{seed}")
        settings["source"] = {"chain": source, "mode": entry.source_mode}
    return settings


def summarise(
    experiment: DaysExperiment, workdirs: Mapping[str, Sequence[pathlib.Path]]
) -> dict[str, Any]:
    """Returns a summary as `table.summarise` does, with days in place of domains.

    `differences` holds the main chain against every other, on the same rows.
    """
    days = [
        int(path.name)
        for path in sorted(workdirs[experiment.main][0].iterdir())
        if path.name.isdigit() and is_finished(path / RUN)
    ]
    days = [d for d in days if experiment.first_day <= d <= experiment.last_day]
    runs = {
        label: [
            {day: Result.load(path / str(day) / RUN) for day in days} for path in paths
        ]
        for label, paths in workdirs.items()
    }
    entries = {
        label: _entry(experiment, seeds) | {"workdirs": [str(p) for p in paths]}
        for (label, seeds), paths in zip(runs.items(), workdirs.values(), strict=True)
    }
    scores = {
        label: [_scores(experiment, by_day) for by_day in seeds]
        for label, seeds in runs.items()
    }
    ours = scores.pop(experiment.main)
    differences = {
        label: {"label": label, **table.compare_scores(ours, theirs)}
        for label, theirs in scores.items()
    }
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "main": experiment.main,
        "entries": entries,
        "differences": differences,
    }


def _entry(experiment: DaysExperiment, seeds: Sequence[Runs]) -> dict[str, Any]:
    speeds = [r.train_rows_per_sec for by_day in seeds for r in by_day.values()]
    timed = [speed for speed in speeds if speed]
    return {
        **table.over_seeds([_cells(experiment, by_day) for by_day in seeds]),
        "train_rows_per_sec": float(np.median(timed)) if timed else None,
        "num_parameters": list(seeds[0].values())[-1].num_parameters,
    }


def _cells(experiment: DaysExperiment, by_day: Runs) -> list[dict[str, Any]]:
    """Returns the cells of the domain, named by the day that was trained on."""
    return [
        {**cell, "domain": str(day)}
        for day, result in by_day.items()
        for cell in result.metrics[table.SPLIT]["cells"]
        if cell["domain"] == experiment.domain
    ]


def _scores(experiment: DaysExperiment, by_day: Runs) -> Scores:
    """Returns the domain's test rows of all days: a day in place of a domain."""
    parts = [
        Scores.load(result.scores_paths[table.SPLIT]).of_domains([experiment.domain])
        for result in by_day.values()
    ]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("row_id", "user_key", "labels", "label_mask", "weight", "logits")
    }
    index = np.repeat(np.arange(len(parts)), [part.num_rows for part in parts])
    days = tuple(map(str, by_day))
    return dataclasses.replace(parts[0], **columns, domain=index, domains=days)
