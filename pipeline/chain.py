"""Continual training, day by day: what each stage of a day runs, and what it leaves.

A chain lives in a workdir: `<day>/data` (the day's data set), `<day>/run` (its training
run), `<day>/export.json` (what became of its version) and `<day>/_DONE`.  Every stage
is a command of its own, so that data jobs and training may live in different images and
any scheduler can take over.
"""

import dataclasses
import datetime
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import pydantic
import yaml
from pydantic import Field

from features import registry
from features.config import Config, ConfigError
from features.dataset import SUCCESS_FILE
from features.spec import DatasetSpec
from pipeline.selection import SelectOptions

Stage = Literal["preprocess", "select", "train", "export"]
STAGES: tuple[Stage, ...] = ("preprocess", "select", "train", "export")
DONE_FILE = "_DONE"
RESULT_FILE = "result.json"  # of a training run, written last
EXPORT_FILE = "export.json"
STREAM = "gst"
CHAIN_FILE = "chain.json"  # a chain's settings, in its workdir
_DATA_KEYS = ("dataset", "raw_dir", "overrides", "window_days")
_UNITS = {"seconds": 1, "milliseconds": 1000}


class Source(Config):
    """The frozen source model: another chain, or a folder of runs by day.

    The chain's first day starts from its weights, unless `run.method_config` says
    otherwise (`warm_start_from_source`); every other day goes on from the day before.
    """

    chain: str = Field(description="its workdir: <day>/run are the versions")
    mode: Literal["continual", "one_time"] = Field(
        "continual", description="the newest version before each day, or before day 1"
    )


class Chain(Config):
    """A chain's settings, the same for every day.

    A day's data set has as training rows those of `window_days` up to the day (they
    make vocabularies and the graph), trains on the day itself and tests on the next.
    """

    dataset: str = Field(description="name in features.registry, or a spec file")
    raw_dir: str
    overrides: list[str] = []
    data_from: str = Field(
        "",
        description="workdir of a chain of the same data, whose days' data sets are "
        "taken; empty = prepare them",
    )
    window_days: int = Field(7, ge=1)
    run: dict[str, Any] = Field(description="RunConfig of a day; one pass by default")
    select: dict[str, Any] | None = Field(
        None, description="options of pipeline.select_samples; days are set"
    )
    source: Source | None = None
    export_dir: str = Field("", description="<export>/<model name>; empty = none")
    gate: Literal["noise", "off"] = "noise"
    keep: int = Field(0, ge=0, description="exported versions to keep; 0 = all")

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Chain":
        own = {"data_dir", "train_days", "init_from", "compare_with", "form"}
        fixed = own & self.run.keys()
        if fixed:
            raise ValueError(f"run must leave to the chain: {', '.join(sorted(fixed))}")
        days = {"data_dir", "name", "cutoff_day", "first_day", "last_day"}
        given = days & (self.select or {}).keys()
        if given:
            raise ValueError(
                f"select must leave to the chain: {', '.join(sorted(given))}"
            )
        if self.select is not None:
            SelectOptions.parse({**self.select, "data_dir": "x"}, where="select")
        return self


class ChainError(RuntimeError):
    """A day that cannot be walked."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One stage of a day.

    Attributes:
      stage: Its name.
      arguments: After `python`.
      makes: What is there when it is done.
    """

    stage: Stage
    arguments: tuple[str, ...]
    makes: pathlib.Path

    @property
    def is_done(self) -> bool:
        """Whether it need not run again."""
        return self.makes.exists()


class Walk:
    """The commands of every day of a chain.

    Args:
      chain: Its settings.
      workdir: Its folder.
    """

    def __init__(self, chain: Chain, workdir: pathlib.Path):
        self.chain, self.workdir = chain, workdir
        self.spec = registry.dataset_spec(chain.dataset, chain.overrides)
        _check_spec(self.spec)
        if chain.data_from:
            _check_data_from(chain)

    def days(self, first: int, last: int) -> list[int]:
        """Returns the days that are to be walked: a missed day is caught up.

        Raises:
          ChainError: When the chain has begun with another day, or done later ones.
        """
        done = self.done()
        if done and done[0] != first:
            raise ChainError(
                f"first_day must be {done[0]}, with which the chain in {self.workdir} "
                f"began; got {first}. Choose another workdir for another chain."
            )
        return [day for day in days_between(first, last) if day not in done]

    def done(self) -> list[int]:
        """Returns the days that are done, in order."""
        found = sorted(p.parent.name for p in self.workdir.glob(f"*/{DONE_FILE}"))
        return [int(name) for name in found]

    def folder(self, day: int) -> pathlib.Path:
        """Returns the folder of a day."""
        return self.workdir / str(day)

    def data(self, day: int) -> pathlib.Path:
        """Returns the data set of a day.

        Raises:
          ChainError: When it is another chain's, which has not made it.
        """
        if not self.chain.data_from:
            return self.folder(day) / "data"
        found = pathlib.Path(self.chain.data_from) / str(day) / "data"
        if not (found / SUCCESS_FILE).exists():
            raise ChainError(
                f"data_from must be a chain that has prepared {day}; there is no "
                f"{found}. Walk that chain first."
            )
        return found

    @property
    def stream(self) -> str:
        """Name of the selected rows below a day's data set.

        In another chain's data set the name tells the settings: chains with others
        must not find these rows.
        """
        if not self.chain.data_from:
            return STREAM
        text = json.dumps(self.chain.select, sort_keys=True)
        return f"{STREAM}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def published(self, day: int) -> int | None:
        """Returns the newest day up to `day` whose version the gate let through."""
        found = [
            int(path.parent.name)
            for path in self.workdir.glob(f"*/{EXPORT_FILE}")
            if json.loads(path.read_text("utf-8"))["published"]
        ]
        return max((d for d in found if d <= day), default=None)

    def source_run(self, day: int, first: int) -> pathlib.Path | None:
        """Returns the source version that a day is pinned to.

        Raises:
          ChainError: When there is no version before that day.
        """
        source = self.chain.source
        if source is None:
            return None
        before = day if source.mode == "continual" else first
        runs = pathlib.Path(source.chain).glob(f"*/run/{RESULT_FILE}")
        versions = [p.parent for p in runs if int(p.parent.parent.name) < before]
        if not versions:
            raise ChainError(
                f"source.chain must have a finished run before {before}; "
                f"{source.chain} has none. Walk that chain first, from an earlier day."
            )
        return max(versions, key=lambda path: int(path.parent.name))

    def run_config(self, day: int, first: int) -> dict[str, Any]:
        """Returns the RunConfig of a day."""
        values: dict[str, Any] = {"max_epochs": 1, "patience": None, **self.chain.run}
        values |= {"data_dir": str(self.data(day)), "train_days": [day, day]}
        if day != first:
            before = day_after(day, -1)
            values["init_from"] = str(self.folder(before) / "run")
            published = self.published(before)
            if published not in (None, before):
                values["compare_with"] = str(self.folder(published) / "run")
        method_config = dict(values.get("method_config", {}))
        source = self.source_run(day, first)
        if source is not None:
            method_config["source_workdir"] = str(source)
            if day == first:  # so that S and T lie in like bases, as w_pow takes them
                method_config.setdefault("warm_start_from_source", True)
        if self.chain.select is not None:
            method_config["gst_path"] = f"streams/{self.stream}"
            # A day is one pass of its selected rows too, however many there are.
            method_config.setdefault("gst_share", "auto")
        return {**values, "method_config": method_config}

    def commands(self, day: int, first: int) -> list[Command]:
        """Returns the stages of a day, in order; writes nothing."""
        folder = self.folder(day)
        data, run = self.data(day), folder / "run"
        found = [] if self.chain.data_from else [self._preprocess(day, first, data)]
        if self.chain.select is not None:
            found.append(self._select(day, data))
        config = f"--config={folder / 'run.yaml'}"
        train = ("-m", "models.train", config, f"--workdir={run}")
        found.append(Command("train", train, run / RESULT_FILE))
        if self.chain.export_dir:
            arguments = ["-m", "serving.export", f"--workdir={run}"]
            arguments += [f"--export_dir={self.chain.export_dir}", f"--version={day}"]
            arguments += [f"--gate={self.chain.gate}", f"--keep={self.chain.keep}"]
            if day != first:
                arguments.append(f"--gate_scores={run / 'scores_test_before.npz'}")
            found.append(Command("export", tuple(arguments), folder / EXPORT_FILE))
        return found

    def write_config(self, day: int, first: int) -> pathlib.Path:
        """Writes the day's `run.yaml`, which pins its source version."""
        path = self.folder(day) / "run.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            text = yaml.safe_dump(self.run_config(day, first), sort_keys=False)
            path.write_text(text, "utf-8")
        return path

    def _preprocess(self, day: int, first: int, data: pathlib.Path) -> Command:
        following = day_after(day)
        split = {
            "by": "temporal",
            "column": self.spec.split_column,
            "train_from": self._moment(day_after(day, 1 - self.chain.window_days)),
            "validation_from": self._moment(following),
            "test_from": self._moment(following),
            "test_until": self._moment(day_after(following)),
        }
        arguments = ["-m", "pipeline.preprocess", f"--dataset={self.chain.dataset}"]
        arguments += [f"--raw_dir={self.chain.raw_dir}", f"--data_dir={data}"]
        arguments += [f"--set={override}" for override in self.chain.overrides]
        arguments.append(f"--set=split={json.dumps(split)}")
        if day != first:
            before = self.folder(day_after(day, -1)) / "data"
            arguments.append(f"--previous_data_dir={before}")
        return Command("preprocess", tuple(arguments), data / SUCCESS_FILE)

    def _select(self, day: int, data: pathlib.Path) -> Command:
        arguments = ["-m", "pipeline.select_samples", f"--data_dir={data}"]
        for name, value in (self.chain.select or {}).items():
            if isinstance(value, bool):
                arguments.append(f"--{'' if value else 'no-'}{name}")
            elif isinstance(value, list | tuple):
                arguments += [f"--{name}", *map(str, value)]
            elif isinstance(value, dict):
                settings = (f"{key}={json.dumps(v)}" for key, v in value.items())
                arguments += [f"--{name}", *settings]
            else:
                arguments.append(f"--{name}={value}")
        arguments += [f"--cutoff_day={day_after(day, -1)}", f"--name={self.stream}"]
        arguments += [f"--first_day={day}", f"--last_day={day}"]
        return Command(
            "select", tuple(arguments), data / "streams" / self.stream / SUCCESS_FILE
        )

    def _moment(self, day: int) -> int:
        """Returns a day's begin in the unit of the split column."""
        if self.spec.split_column == self.spec.keys.day:
            return day
        begin = to_date(day) - datetime.date(1970, 1, 1)
        return begin.days * 86_400 * _UNITS[self.spec.keys.time_unit]


def _check_spec(spec: DatasetSpec) -> None:
    by_day = spec.split.by == "temporal" and (
        spec.split_column == spec.keys.day
        if spec.keys.day is not None
        else spec.split_column == spec.keys.time and spec.keys.time_unit in _UNITS
    )
    if not by_day:
        raise ConfigError(
            f"chain.dataset must be split by time, on keys.day or on a keys.time in "
            f"seconds or milliseconds; {spec.name} is split by {spec.split.by} on "
            f"{spec.split_column!r}. Set split, or choose another data set."
        )


def _check_data_from(chain: Chain) -> None:
    path = pathlib.Path(chain.data_from) / CHAIN_FILE
    if not path.exists():
        raise ChainError(
            f"data_from must be the workdir of a chain; there is no {path}. Walk that "
            "chain first."
        )
    theirs = json.loads(path.read_text("utf-8"))
    ours = chain.model_dump(mode="json")
    for key in _DATA_KEYS:
        if theirs[key] != ours[key]:
            raise ChainError(
                f"{key} must be that of the chain in data_from, {theirs[key]!r}; got "
                f"{ours[key]!r} ({path}). Set the same, or leave out data_from."
            )


def to_date(day: int) -> datetime.date:
    """Returns YYYYMMDD as a date.

    Raises:
      ChainError: For a number that is no day.
    """
    try:
        return datetime.datetime.strptime(str(day), "%Y%m%d").date()
    except ValueError as error:
        raise ChainError(f"a day must be written YYYYMMDD; got {day}.") from error


def day_after(day: int, days: int = 1) -> int:
    """Returns the day so many days later, as YYYYMMDD."""
    return int((to_date(day) + datetime.timedelta(days=days)).strftime("%Y%m%d"))


def days_between(first: int, last: int) -> Sequence[int]:
    """Returns all days from first to last, both included."""
    if to_date(first) > to_date(last):
        raise ChainError(
            f"first_day must not be after last_day; got {first} and {last}."
        )
    found = [first]
    while found[-1] != last:
        found.append(day_after(found[-1]))
    return found
