"""Which rows and columns a reader was asked for, checked; no TensorFlow here."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from features.config import lookup_error
from features.dataset import Dataset
from features.schema import LABEL_PREFIX, EncodedColumn
from features.spec import SPLITS

KEY_COLUMNS = ("row_id", "user_key", "day")
ALL_HASHES = (0.0, 1.0)
_DAY_FOLDER = re.compile(r"^dt=(\d{8})$")


class NoRowsError(ValueError):
    """A request that leaves no row."""


class Request(TypedDict, total=False):
    """Which rows and columns of a data set are wanted, as all readers take it.

    Attributes:
      split: "train" (default), "validation" or "test".
      domains: Domains to keep; empty keeps all.
      tasks: Tasks, in the order of the label columns; empty gives all.
      days: First and last day to keep, as YYYYMMDD; None keeps all.
      hash_range: Keep rows whose `read.row_hash` is in [low, high): (0, 0.05) is about
        one row in twenty, the same ones in any run, and (0.05, 1) all the others.
      keys: Key columns to give as well: "row_id", "user_key", "day".
      remap_domains: Count domain indices within `domains`, in their order.
    """

    split: str
    domains: Sequence[str]
    tasks: Sequence[str]
    days: tuple[int, int] | None
    hash_range: tuple[float, float]
    keys: Sequence[str]
    remap_domains: bool


@dataclasses.dataclass(frozen=True)
class Selection:
    """A checked request for rows of one split.

    Attributes:
      split: train, validation or test.
      domains: Domain names to keep; all of them, in index order, when not filtered.
      tasks: Task names in the order of the label columns [B, T].
      days: First and last day (YYYYMMDD) to keep, or None.
      hash_range: Rows to keep by a hash of their `row_id` in [0, 1): [low, high).
      keys: Key columns to give.
      domain_map: int32 [D]: the index a domain gets, -1 to drop its rows.
      columns: Columns to parse.
      features: Names of the feature columns.
      has_weight: Whether rows carry a weight.
      paths: Files that may hold such rows, in reading order.
      max_rows: Rows that the domains have in this split (days and hashes not
        counted).
    """

    split: str
    domains: tuple[str, ...]
    tasks: tuple[str, ...]
    days: tuple[int, int] | None
    hash_range: tuple[float, float]
    keys: tuple[str, ...]
    domain_map: np.ndarray
    columns: tuple[EncodedColumn, ...]
    features: tuple[str, ...]
    has_weight: bool
    paths: tuple[pathlib.Path, ...]
    max_rows: int

    @property
    def filters_rows(self) -> bool:
        """Whether some rows of the files may be left out."""
        return self.filters_by_column or bool((self.domain_map < 0).any())

    @property
    def filters_by_column(self) -> bool:
        """Whether more than the domain decides which rows are left out."""
        return self.days is not None or self.hash_range != ALL_HASHES


def select(
    dataset: Dataset,
    *,
    split: str = "train",
    domains: Sequence[str] = (),
    tasks: Sequence[str] = (),
    days: tuple[int, int] | None = None,
    hash_range: tuple[float, float] = ALL_HASHES,
    keys: Sequence[str] = (),
    remap_domains: bool = False,
) -> Selection:
    """Returns the checked request; see `Request` for the arguments.

    Raises:
      LookupError: For an unknown split, domain, task or key, naming the nearest.
      ValueError: For names given twice, days that cannot be, or when no row is left.
    """
    info = dataset.info
    known = {c.name: c for c in info.columns}
    key_names = [k for k in KEY_COLUMNS if k in known]
    _check_names("read_stream.split", [split], SPLITS)
    _check_names("read_stream.domains", domains, info.fitted.domains)
    _check_names("read_stream.tasks", tasks, info.spec.task_names)
    _check_names("read_stream.keys", keys, key_names)
    if days is not None:
        _check_days(days, has_day="day" in known)
    _check_hash_range(hash_range)
    domains = tuple(domains) or info.fitted.domains
    tasks = tuple(tasks) or info.spec.task_names
    domain_map = np.full(len(info.fitted.domains), -1, np.int32)
    for new, name in enumerate(domains):
        old = info.fitted.domains.index(name)
        domain_map[old] = new if remap_domains else old
    extra = {*KEY_COLUMNS, "weight"}
    features = [n for n in known if n not in extra and not n.startswith(LABEL_PREFIX)]
    wanted = {*features, *(LABEL_PREFIX + t for t in tasks), *keys, "weight"}
    if days is not None:
        wanted.add("day")
    if hash_range != ALL_HASHES:
        wanted.add("row_id")
    max_rows = sum(info.num_rows(split, name) for name in domains)
    selection = Selection(
        split=split,
        domains=domains,
        tasks=tasks,
        days=days,
        hash_range=hash_range,
        keys=tuple(keys),
        domain_map=domain_map,
        columns=tuple(c for n, c in known.items() if n in wanted),
        features=tuple(features),
        has_weight="weight" in known,
        paths=tuple(p for p in dataset.files(split) if _may_hold(p, days)),
        max_rows=max_rows,
    )
    if max_rows == 0 or not selection.paths:
        raise no_rows(dataset, selection)
    return selection


def no_rows(dataset: Dataset, selection: Selection) -> NoRowsError:
    """Returns the error for a request that leaves no row."""
    counts = {
        name: dataset.info.num_rows(selection.split, name)
        for name in dataset.info.fitted.domains
    }
    days = "" if selection.days is None else f", days {selection.days}"
    if selection.hash_range != ALL_HASHES:
        days += f", hash_range {selection.hash_range}"
    return NoRowsError(
        f"read_stream must leave at least one row; split {selection.split!r}, "
        f"domains {', '.join(selection.domains)}{days} leave none "
        f"({dataset.data_dir}: rows by domain {counts}). Choose other filters, or "
        "check the split rule of the dataset spec."
    )


def _check_names(owner: str, names: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(names, str):
        raise TypeError(f"{owner} must be a list of names; got the text {names!r}.")
    for name in names:
        if name not in known:
            raise lookup_error(owner, name, known)
    twice = sorted({n for n in names if list(names).count(n) > 1})
    if twice:
        raise ValueError(f"{owner} must name each one once; got {twice} twice.")


def _check_days(days: tuple[int, int], *, has_day: bool) -> None:
    if not has_day:
        raise ValueError(
            f"read_stream.days must be None for a data set without days; got {days}. "
            "Give the spec keys.day, or a keys.time in seconds."
        )
    first, last = days
    if first > last:
        raise ValueError(
            f"read_stream.days must be (first, last) as YYYYMMDD; got {days}. "
            "Swap them."
        )


def _check_hash_range(hash_range: tuple[float, float]) -> None:
    low, high = hash_range
    if not 0 <= low < high <= 1:
        raise ValueError(
            "read_stream.hash_range must be (low, high) with 0 <= low < high <= 1; got "
            f"{hash_range}. {ALL_HASHES} keeps all rows."
        )


def _may_hold(path: pathlib.Path, days: tuple[int, int] | None) -> bool:
    """Whether a file can hold rows of these days, by its `dt=` folder."""
    match = _DAY_FOLDER.match(path.parent.name)
    if days is None or match is None:
        return True
    return days[0] <= int(match[1]) <= days[1]
