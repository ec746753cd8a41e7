"""`Experiment`: which methods, in which form, on which data sets, against what."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import pydantic
from pydantic import Field

from features.config import Config, nearest
from models.training.config import Form, RunConfig

FOLDER = pathlib.Path(__file__).parent.parent / "experiments"


class Range(Config):
    """Numbers between two ends, both included."""

    low: float
    high: float
    log: bool = Field(False, description="even in the logarithm")

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                "low must be below high, and above 0 with log; got "
                f"low={self.low}, high={self.high}"
            )
        return self


Choice = list[Any] | Range  # values, or a range of numbers


class Entry(Config):
    """One row of the table: a method in a form, with its own settings."""

    method: str
    form: Form = "mdmt"
    method_config: dict[str, Any] = {}
    run: dict[str, Any] = Field({}, description="RunConfig keys that differ")
    search: dict[str, "Choice"] = Field({}, description="further keys to search")
    settings: dict[str, Any] = Field(
        {}, description="RunConfig key (a.b.c) -> value, over all others: a search's"
    )
    source: str = Field(
        "",
        description="entry whose run of the same seed is method_config.source_workdir",
    )


class Job(Config):
    """A job over the prepared data set, such as one that makes a further stream."""

    module: str = Field(description="run as python -m <module> --data_dir=...")
    arguments: list[str] = []
    makes: str = Field(description="folder below the data set; once there, it is done")


class RawData(Config):
    """A raw log, from a folder or generated, and the data set to make of it."""

    dataset: str = Field(description="name in features.registry")
    raw_dir: str = Field("", description="below the folder given by the caller")
    preset: str = Field("", description="generate this planted log as raw data instead")
    overrides: list[str] = []

    @pydantic.model_validator(mode="after")
    def _check(self) -> "RawData":
        if self.preset and self.raw_dir:
            raise ValueError(
                f"preset and raw_dir exclude each other; got {self.preset!r} and "
                f"{self.raw_dir!r}"
            )
        return self


class PreparedData(RawData):
    """One data set of an experiment."""

    jobs: list[Job] = []
    published: dict[str, list[float]] = Field(
        {}, description="label -> AUC x 100 by domain, task; for the eye only"
    )


class Experiment(Config):
    """A comparison, whole.

    `main` is compared with every other entry; `target_only` (one model per domain, no
    transfer) tells whether the other domains helped.  With `domains` only their cells
    are compared: the targets, where other domains are there to help.
    """

    name: str
    title: str
    data: dict[str, PreparedData] = Field(min_length=1)
    base: dict[str, Any] = {}
    entries: dict[str, Entry] = Field(min_length=1)
    main: str
    domains: list[str] = []
    target_only: str | None = None
    search: dict[str, Choice] = Field(
        {}, description="RunConfig key (a.b.c) -> what `compare --search` tries"
    )

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Experiment":
        for field in ("main", "target_only"):
            label = getattr(self, field)
            if label is not None and label not in self.entries:
                raise ValueError(
                    f"{field} must be an entry; got {label!r}."
                    + nearest(label, self.entries)
                )
        for label, entry in self.entries.items():
            if not entry.source:
                continue
            source = self.entries.get(entry.source)
            if source is None or source.source or source.form != "mdmt":
                raise ValueError(
                    f"entries.{label}.source must be an entry of one model without a "
                    f"source of its own; got {entry.source!r}."
                    + nearest(entry.source, self.entries)
                )
        return self

    def run_config(
        self,
        label: str,
        data_dir: str,
        seed: int,
        workdir: str | pathlib.Path = "runs",
    ) -> RunConfig:
        """Returns the run of an entry with a seed; `workdir` is the comparison's."""
        entry = self.entries[label]
        values = {
            **self.base,
            **entry.run,
            "method": entry.method,
            "form": entry.form,
            "data_dir": data_dir,
            "seed": seed,
        }
        common = self.base.get("method_config", {})
        values["method_config"] = merged(common, entry.method_config)
        if entry.source:
            source = self.run_folder(workdir, entry.source, seed)
            values["method_config"]["source_workdir"] = str(source)
        for key, value in entry.settings.items():
            *parents, last = key.split(".")
            leaf: dict[str, Any] = {last: value}
            for parent in reversed(parents):
                leaf = {parent: leaf}
            values = merged(values, leaf)
        return RunConfig.parse(values, where=f"entry {label}")

    def run_folder(
        self, workdir: str | pathlib.Path, label: str, seed: int
    ) -> pathlib.Path:
        """Returns the workdir of an entry's run with a seed.

        `<workdir>/<label>/seed<seed>`; with `settings`, its own or those of its
        source, a folder named by them lies between: runs of other settings of the
        same entry stay as they are, and one that a search has done is found again.
        """
        source = self.entries[label].source
        settings = [self.entries[name].settings for name in (label, source) if name]
        folder = pathlib.Path(workdir) / label
        if any(settings):
            text = json.dumps(settings, sort_keys=True)
            folder /= hashlib.sha256(text.encode()).hexdigest()[:12]
        return folder / f"seed{seed}"

    def with_settings(self, settings: Mapping[str, Mapping[str, Any]]) -> "Experiment":
        """Returns the experiment with settings of entries: label -> {a.b.c: value}."""
        entries = {
            label: entry.model_copy(
                update={"settings": {**entry.settings, **settings.get(label, {})}}
            )
            for label, entry in self.entries.items()
        }
        return self.model_copy(update={"entries": entries})


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Returns `base` with what `own` says otherwise, key by key at every depth."""
    result = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def is_path(name_or_path: str) -> bool:
    """Returns whether it is a YAML file's path, not the name of a built-in one."""
    return pathlib.Path(name_or_path).suffix in (".yaml", ".yml")


def experiment_names() -> list[str]:
    """Returns the names of the built-in experiments."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_experiment(
    name_or_path: str, overrides: list[str] | None = None
) -> Experiment:
    """Returns a built-in experiment by name, or the one in a YAML file.

    Raises:
      LookupError: For an unknown name.
      ConfigError: For a file that is not a valid experiment.
    """
    path = pathlib.Path(name_or_path)
    if not is_path(name_or_path):
        known = experiment_names()
        if name_or_path not in known:
            raise LookupError(
                f"experiment must be one of {', '.join(known)} or a .yaml path; got "
                f"{name_or_path!r}.{nearest(name_or_path, known)}"
            )
        path = FOLDER / f"{name_or_path}.yaml"
    return Experiment.load(path, overrides or [])
