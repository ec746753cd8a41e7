"""The dataset spec: what a data set is, before any job has touched it.

A spec names the raw columns, the rule that puts a row into a *domain*, the binary
*tasks*, the *features* with their role and encoding, and the *split* rule.  All
else follows from it: bytes on disk, parse spec, embedding tables, validation
schema and serving signature.  See `features/datasets/` for complete examples.

Raw values have one of three raw types.  Identifiers (categorical features, keys,
domain columns) are compared as *strings*: integers are written in decimal, so `7`
and `"7"` are the same id.  Numbers are float64; times are int64.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from features.config import Config, nearest

PAD_ID = 0  # fills sequences and multi-valued features; its embedding is never used
UNKNOWN_ID = 1  # missing, rare (below min_count) or never seen in training
NUM_RESERVED_IDS = 2  # the first id that stands for a value

FORMAT_VERSION = 1  # raise it when the same spec gives other bytes on disk
SPLITS = ("train", "validation", "test")

Role = Literal["user", "item", "context", "domain", "sequence"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

RESERVED_NAMES = ("domain", "row_id", "user_key", "time", "day", "weight", "valid")


class Vocabulary(Config):
    """Ids from a vocabulary fitted on training rows, most frequent value first."""

    by: Literal["vocab"] = "vocab"
    min_count: int = Field(1, ge=1, description="rarer values get UNKNOWN_ID")
    max_size: int | None = Field(None, ge=1, description="values kept at most")


class Hashing(Config):
    """Ids by FarmHash fingerprint64 modulo `num_buckets`, plus the reserved ids."""

    by: Literal["hash"]
    num_buckets: int = Field(ge=1)


Encoding = Annotated[Vocabulary | Hashing, Field(discriminator="by")]


class Categorical(Config):
    """One identifier a row.  On disk int64 [1]."""

    kind: Literal["categorical"] = "categorical"
    name: Name
    role: Literal["user", "item", "context"]
    column: str = ""  # default: the feature's name
    encoding: Encoding = Vocabulary()
    shares: str | None = None  # take ids and table of this categorical feature
    width: int = Field(16, ge=1, description="embedding width; not part of the bytes")


class MultiValued(Config):
    """Several identifiers a row: a list column or text with `separator`.

    On disk int64 [max_length], padded with PAD_ID; values past `max_length` are
    dropped (the first ones stay).
    """

    kind: Literal["multi"]
    name: Name
    role: Literal["user", "item", "context"]
    column: str = ""
    separator: str | None = "|"
    max_length: int = Field(ge=1)
    encoding: Encoding = Vocabulary()
    shares: str | None = None
    width: int = Field(16, ge=1)


class Numeric(Config):
    """One number a row.

    `standardise` gives (x - mean) / std, `minmax` (x - min) / (max - min), both over
    training rows; `log` gives sign(x) log(1 + |x|), then standardises; `none` keeps
    x.  On disk float32 [1]; a missing value becomes 0 after normalisation.
    `bucketise` cuts at `num_buckets` training quantiles instead; then the feature is
    on disk as int64 [1] (UNKNOWN_ID when missing) and gets an embedding.
    """

    kind: Literal["numeric"]
    name: Name
    role: Literal["user", "item", "context"]
    column: str = ""
    transform: Literal["standardise", "minmax", "log", "none", "bucketise"] = (
        "standardise"
    )
    num_buckets: int = Field(10, ge=2)
    width: int = Field(16, ge=1, description="used by bucketise only")


class Popularity(Config):
    """log(1 + count of this row's value of `of` among training rows), standardised.

    Derived from training rows only.  At serving it is looked up from the value of
    `of`, so a caller never sends it.
    """

    kind: Literal["popularity"]
    name: Name
    role: Literal["user", "item", "context"]
    of: str


class Sequence(Config):
    """Ids of earlier rows (or of a list column), sharing the table of feature `of`.

    On disk int64 [max_length]: oldest first, the latest `max_length` kept, padded on
    the right with PAD_ID.  With `column` unset the sequence is the user's *history*:
    values of `of` in rows of the same user with a strictly smaller time.

    Rows of every domain enter it, and it stands on rows of every domain; `per_domain`
    keeps to the row's own domain, `domains` to those named, whatever the row's own: so
    a row of one domain can hold the user's history in another beside its own.
    """

    kind: Literal["sequence"]
    name: Name
    role: Literal["sequence"] = "sequence"
    of: str
    max_length: int = Field(ge=1)
    column: str | None = None  # a ready list column instead of a computed history
    initial_column: str | None = None  # what the user did before the log began
    separator: str = " "
    only_positive_of: str | None = None  # keep rows whose label of this task is 1
    per_domain: bool = False  # only rows of the same domain
    domains: list[Name] = []  # only rows of these domains; none named = of all


class DomainIndicator(Config):
    """The domain index as a feature with an embedding of its own."""

    kind: Literal["domain"]
    name: Name = "domain_indicator"
    role: Literal["domain"] = "domain"
    width: int = Field(16, ge=1)


Feature = Annotated[
    Categorical | MultiValued | Numeric | Popularity | Sequence | DomainIndicator,
    Field(discriminator="kind"),
]


class ValueMapDomain(Config):
    """Domain by a map from domain name to the raw values that belong to it."""

    by: Literal["value_map"]
    column: str
    domains: dict[Name, list[str | int]]
    unmapped: str = "reject"  # or the name of the domain that takes the rest

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ValueMapDomain":
        if not self.domains:
            raise ValueError("needs at least one domain")
        seen: dict[str, str] = {}
        for name, values in self.domains.items():
            if not values and name != self.unmapped:
                raise ValueError(f"domain {name!r} has no raw value")
            for value in map(str, values):
                if value in seen:
                    raise ValueError(
                        f"raw value {value!r} is in {seen[value]!r} and {name!r}; "
                        "a row has one domain"
                    )
                seen[value] = name
        if self.unmapped != "reject" and self.unmapped not in self.domains:
            raise ValueError(
                f"unmapped must be 'reject' or a domain; got {self.unmapped!r}."
                + nearest(self.unmapped, self.domains)
            )
        return self


class ColumnDomain(Config):
    """Every value of a column is a domain; `values` fixes which and their order.

    Without `values` the domains are those with at least `min_rows` rows, in natural
    order (numbers by value, then text).  Rows of other values are rejected.
    """

    by: Literal["column"]
    column: str
    values: list[str | int] | None = None
    min_rows: int = Field(1, ge=1)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ColumnDomain":
        if self.values is not None:
            if not self.values:
                raise ValueError("values must name at least one; leave it out for all")
            _unique("values", [str(value) for value in self.values])
        return self


class TopKDomain(Config):
    """The `k` most frequent values are domains; all other values are `rest`."""

    by: Literal["top_k"]
    column: str
    k: int = Field(ge=1)
    rest: Name = "rest"


DomainRule = Annotated[
    ValueMapDomain | ColumnDomain | TopKDomain, Field(discriminator="by")
]


class Task(Config):
    """One binary label: `column` itself (0 or 1), or `column` compared with `value`."""

    name: Name
    column: str
    compare: Literal["gt", "ge", "lt", "le", "eq"] | None = None
    value: float | None = None
    mask_column: str | None = None  # label counts only where this is non-zero
    missing: Literal["reject", "mask"] = "reject"  # what a null or NaN label means

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Task":
        if (self.compare is None) != (self.value is None):
            raise ValueError("compare and value go together")
        return self


class RandomSplit(Config):
    """Rows at random, by a seeded hash of the row's content.

    With `stratify` every domain is cut at these fractions on its own.
    """

    by: Literal["random"]
    validation: Fraction = 0.1
    test: Fraction = 0.1
    seed: int = 0
    stratify: bool = False


class TemporalSplit(Config):
    """By time: validation from `validation_from` on, test from `test_from` on.

    Rows before `train_from` and from `test_until` on are in no split: they are read
    for histories and left out.
    """

    by: Literal["temporal"]
    column: str = ""  # default: keys.time
    validation_from: int
    test_from: int
    train_from: int | None = None
    test_until: int | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> "TemporalSplit":
        given = (self.train_from, self.validation_from, self.test_from, self.test_until)
        times = [time for time in given if time is not None]
        if times != sorted(times):
            raise ValueError(
                "train_from, validation_from, test_from and test_until must not go "
                f"back in time; got {given}"
            )
        return self


class PerUserTemporalSplit(Config):
    """Each user's last `test_last` rows test, the `validation_last` before validate.

    A user with too few rows to leave one for training is all training.
    """

    by: Literal["per_user_temporal"]
    validation_last: int = Field(1, ge=0)
    test_last: int = Field(1, ge=0)


class PublishedOrderSplit(Config):
    """Cut at fractions of a position column (0 .. rows - 1) that the reader gives."""

    by: Literal["published_order"]
    column: str = "published_position"
    validation: Fraction = 0.1
    test: Fraction = 0.1


class ColumnSplit(Config):
    """By the value of a column."""

    by: Literal["by_column"]
    column: str
    train: list[str | int]
    validation: list[str | int]
    test: list[str | int]


SplitRule = Annotated[
    RandomSplit
    | TemporalSplit
    | PerUserTemporalSplit
    | PublishedOrderSplit
    | ColumnSplit,
    Field(discriminator="by"),
]


class Table(Config):
    """A side table that is joined to every row on `key`; rows without one keep nulls.

    Columns of the log win over columns of the same name in a table.
    """

    path: str  # below the raw data folder; may be a glob
    key: str  # column of the table; also the column of the log unless log_key
    log_key: str | None = None
    format: Literal["parquet", "csv", "jsonl"] | None = None  # default: by suffix
    columns: list[str] | None = None  # default: those that the spec uses


class Source(Config):
    """Where the raw rows are: files in a general format, or a named raw reader."""

    reader: str = "files"  # a name of pipeline.registry.READERS
    path: str = ""  # for files: below the raw data folder; may be a glob
    format: Literal["parquet", "csv", "jsonl"] | None = None
    separator: str = ","
    user_table: Table | None = None
    item_table: Table | None = None
    options: dict[str, str | int | float | bool] = {}  # for the named reader


class Keys(Config):
    """Columns that say who, what and when."""

    user: str
    item: str
    time: str | None = None
    time_unit: Literal["seconds", "milliseconds", "days", "order"] = "seconds"
    day: str | None = None  # a YYYYMMDD column; default: from time (UTC), if it can


class DatasetSpec(Config):
    """A data set, whole.  See the module's docstring."""

    name: Name
    description: str = ""
    source: Source
    keys: Keys
    domain: DomainRule
    tasks: list[Task] = Field(min_length=1)
    features: list[Feature] = Field(min_length=1)
    split: SplitRule
    weight: str | None = None
    drop_duplicates: bool = False  # rows equal in every used column count once
    max_rejected_share: float = Field(0.01, ge=0, le=1)
    partition_by_day: bool = False  # train/dt=YYYYMMDD/ folders

    @pydantic.model_validator(mode="after")
    def _check(self) -> "DatasetSpec":
        _unique("tasks", [t.name for t in self.tasks])
        _unique("features", [f.name for f in self.features])
        by_name = {f.name: f for f in self.features}
        for feature in self.features:
            if feature.name in RESERVED_NAMES:
                raise ValueError(
                    f"features.{feature.name}: the name is reserved "
                    f"({', '.join(RESERVED_NAMES)}); choose another"
                )
            for field in ("of", "shares"):
                target = getattr(feature, field, None)
                if target is None:
                    continue
                where = f"features.{feature.name}.{field}"
                found = by_name.get(target)
                if found is None:
                    raise ValueError(
                        f"{where} must name a feature; got {target!r}."
                        + nearest(target, by_name)
                    )
                if not isinstance(found, Categorical) or found.shares:
                    raise ValueError(
                        f"{where} must name a categorical feature with ids of its "
                        f"own; {target!r} is {found.kind}"
                        + (f" and shares {found.shares!r}" if _shares(found) else "")
                    )
            if isinstance(feature, Sequence):
                self._check_sequence(feature)
        if isinstance(self.split, PerUserTemporalSplit) and self.keys.time is None:
            raise ValueError("split.by=per_user_temporal needs keys.time")
        if isinstance(self.split, TemporalSplit) and not self.split_column:
            raise ValueError("split.by=temporal needs split.column or keys.time")
        if isinstance(self.split, RandomSplit | PublishedOrderSplit):
            held_out = self.split.validation + self.split.test
            if held_out >= 1:
                raise ValueError(
                    "split.validation + split.test must be below 1, to leave rows to "
                    f"train on; got {held_out:g}"
                )
        if self.partition_by_day and self.day_source is None:
            raise ValueError("partition_by_day needs keys.day, or a time in seconds")
        return self

    def _check_sequence(self, feature: Sequence) -> None:
        where = f"features.{feature.name}"
        tasks = [t.name for t in self.tasks]
        if feature.column is not None:
            for field in ("initial_column", "only_positive_of"):
                if getattr(feature, field) is not None:
                    raise ValueError(f"{where}: {field} is for computed histories")
            for field in ("per_domain", "domains"):
                if getattr(feature, field):
                    raise ValueError(f"{where}: {field} is for computed histories")
        elif self.keys.time is None:
            raise ValueError(f"{where}: a computed history needs keys.time")
        self._check_history_domains(feature, where)
        if feature.only_positive_of not in (None, *tasks):
            raise ValueError(
                f"{where}.only_positive_of must be a task; "
                f"got {feature.only_positive_of!r}."
                + nearest(str(feature.only_positive_of), tasks)
            )

    def _check_history_domains(self, feature: Sequence, where: str) -> None:
        if feature.domains and feature.per_domain:
            raise ValueError(
                f"{where} must have per_domain or domains, not both; got domains "
                f"{', '.join(feature.domains)}. Make a history of each."
            )
        _unique(f"{where}.domains", list(feature.domains))
        if isinstance(self.domain, ValueMapDomain):  # others: once rows were counted
            for name in feature.domains:
                if name not in self.domain.domains:
                    raise ValueError(
                        f"{where}.domains must name domains; got {name!r}."
                        + nearest(name, self.domain.domains)
                    )

    def feature(self, name: str) -> Any:
        """Returns the feature of this name."""
        for feature in self.features:
            if feature.name == name:
                return feature
        known = [f.name for f in self.features]
        raise LookupError(
            f"DatasetSpec {self.name} has no feature {name!r}; known: "
            f"{', '.join(known)}.{nearest(name, known)}"
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(task.name for task in self.tasks)

    @property
    def split_column(self) -> str | None:
        """Raw column that the split rule reads, if any."""
        column = getattr(self.split, "column", "")
        if isinstance(self.split, TemporalSplit):
            return column or self.keys.time
        return column or None

    @property
    def day_source(self) -> Literal["column", "time"] | None:
        """How a row's day is known: its own column, the time, or not at all."""
        if self.keys.day is not None:
            return "column"
        if self.keys.time is not None and self.keys.time_unit != "order":
            return "time"
        return None

    def table_of(self, name: str) -> str:
        """Returns the feature whose ids and embedding table feature `name` uses."""
        feature = self.feature(name)
        return getattr(feature, "of", None) or _shares(feature) or name

    def fingerprint(self) -> str:
        """Returns 16 hex digits over everything that changes the bytes on disk."""
        values = self.model_dump(mode="json")
        values.pop("description")
        for feature in values["features"]:
            feature.pop("width", None)
            if not feature.get("domains", True):  # not given = as before it existed
                del feature["domains"]
        for name in ("train_from", "test_until"):  # not given = as before they existed
            if values["split"].get(name, 0) is None:
                del values["split"][name]
        values["format_version"] = FORMAT_VERSION
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def raw_column(feature: Any) -> str:
    """Returns the raw column a categorical, multi-valued or numeric feature reads."""
    return feature.column or feature.name


def _shares(feature: Any) -> str | None:
    return getattr(feature, "shares", None)


def _unique(owner: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{owner}: names must differ; {twice} stand twice")
