"""Schema and anomalies of a prepared data set, by TensorFlow Data Validation."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from features.spec import SPLITS, DatasetSpec
from pipeline import quiet
from pipeline.transforms.statistics import DAY_PREFIX, SLICE_PREFIX
from pipeline.validation.schema import SCHEMA_FILE, find_schema

ALL_ROWS = "all rows"
_ALL_EXAMPLES = "All Examples"  # TFDV's name of the slice that holds every row


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """One finding, in words.

    Attributes:
      split: Where it was found.
      place: "all rows", the domain's name, or what the rows were compared with.
      feature: Raw column.
      rule: What TFDV calls it.
      text: Its description, with the numbers behind.
    """

    split: str
    place: str
    feature: str
    rule: str
    text: str


@dataclasses.dataclass(frozen=True)
class AnomalyReport:
    """All findings, in order of split, place and feature."""

    anomalies: tuple[Anomaly, ...]

    @property
    def has_errors(self) -> bool:
        """Whether anything was found."""
        return bool(self.anomalies)

    def to_text(self, limit: int | None = None) -> str:
        """Returns one line per finding, the first `limit` of them."""
        if not self.anomalies:
            return "no anomalies"
        lines = [
            f"{a.split}, {a.place}: column {a.feature!r}: {a.rule}. {a.text}"
            for a in self.anomalies[:limit]
        ]
        if len(lines) < len(self.anomalies):
            lines.append(f"and {len(self.anomalies) - len(lines)} more")
        return "\n".join(lines)

    @classmethod
    def load(cls, data_dir: pathlib.Path) -> "AnomalyReport | None":
        """Returns the report of a data set; None if it has no statistics."""
        path = data_dir / "anomalies" / "report.json"
        if not path.exists():
            return None
        values = json.loads(path.read_text("utf-8"))
        return cls(tuple(Anomaly(**value) for value in values))


def validate(
    data_dir: pathlib.Path,
    spec: DatasetSpec,
    domains: tuple[str, ...],
    *,
    schema_path: str | None = None,
    previous_data_dir: str | None = None,
) -> AnomalyReport:
    """Writes `schema.pbtxt` and `anomalies/`; returns what was found.

    Every split and every domain of it is checked against the schema
    (`validation.schema`); validation and test rows against training rows (skew); and
    against the day before (drift): training rows against those of
    `previous_data_dir`, and each day against the one before where the statistics
    have slices by day.

    Args:
      data_dir: Data folder with `stats/`.
      spec: The dataset spec.
      domains: Domain names by index.
      schema_path: A curated schema.
      previous_data_dir: Data set of the day before.
    """
    stats = _split_statistics(data_dir)
    train = _slice(stats["train"], _ALL_EXAMPLES)
    schema = find_schema(
        train, spec, schema_path=schema_path, previous_data_dir=previous_data_dir
    )
    quiet.tfdv().write_schema_text(schema, str(data_dir / SCHEMA_FILE))
    found: list[Anomaly] = []
    for split, statistics in stats.items():
        for data in statistics.datasets:
            if not data.name.startswith(DAY_PREFIX):
                place = _place(data.name, domains)
                found += _check(schema, _one(data), split, place)
    for split in SPLITS[1:]:
        other = _slice(stats[split], _ALL_EXAMPLES) if split in stats else None
        if other is not None and other.datasets:
            place = "against training rows"
            found += _check(schema, train, split, place, serving_statistics=other)
    if previous_data_dir is not None:
        earlier = _split_statistics(pathlib.Path(previous_data_dir))
        if "train" in earlier:
            before = _slice(earlier["train"], _ALL_EXAMPLES)
            place = f"against {previous_data_dir}"
            found += _check(schema, train, "train", place, previous_statistics=before)
    for split, day, before, statistics, previous in _successive_days(stats):
        place = f"day {day} against day {before}"
        found += _check(schema, statistics, split, place, previous_statistics=previous)
    found = list(dict.fromkeys(sorted(found, key=_order)))
    report = AnomalyReport(tuple(found))
    _write(data_dir / "anomalies", report)
    return report


def _order(anomaly: Anomaly) -> tuple[Any, ...]:
    place = (anomaly.place != ALL_ROWS, anomaly.place)
    return SPLITS.index(anomaly.split), place, anomaly.feature, anomaly.rule


def _write(folder: pathlib.Path, report: AnomalyReport) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "report.txt").write_text(report.to_text() + "\n", "utf-8")
    values = [dataclasses.asdict(a) for a in report.anomalies]
    (folder / "report.json").write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def _check(
    schema: Any, statistics: Any, split: str, place: str, **compared_with: Any
) -> Iterator[Anomaly]:
    """Yields what breaks the schema; or, compared, only what the comparison found."""
    result = quiet.tfdv().validate_statistics(
        statistics, schema, environment="TRAINING", **compared_with
    )
    for name, info in sorted(result.anomaly_info.items()):
        for reason in info.reason:
            is_comparison = "COMPARATOR" in _reason_name(reason)
            if is_comparison == bool(compared_with):
                rule, text = _words(reason)
                yield Anomaly(split, place, name, rule, text)
    # What concerns the data as a whole: no rows, too few ...
    for reason in result.dataset_anomaly_info.reason:
        if not compared_with:
            yield Anomaly(split, place, "", *_words(reason))


def _words(reason: Any) -> tuple[str, str]:
    """Returns rule and description; `place` says what was compared with what."""
    rule, text = reason.short_description, reason.description
    # TFDV calls any two sets "training and serving", or "current and previous".
    for wrong in (" between training and serving", " between current and previous"):
        rule, text = rule.replace(wrong, ""), text.replace(wrong, "")
    text = text.replace(" (up to six significant digits)", "")
    if "COMPARATOR_L_INFTY" in _reason_name(reason):
        rule = "shares of the values differ"
    elif "COMPARATOR_JENSEN" in _reason_name(reason):
        rule = "numbers are spread differently"
    return rule.rstrip("."), text.strip()


def _reason_name(reason: Any) -> str:
    from tensorflow_metadata.proto.v0 import anomalies_pb2

    return anomalies_pb2.AnomalyInfo.Type.Name(reason.type)


def _successive_days(stats: Any) -> Iterator[tuple[str, str, str, Any, Any]]:
    """Yields (split, day, day before, statistics, statistics before).

    A split's first day follows the last day of the splits before it, when those end
    earlier (a split by time).
    """
    last: tuple[str, Any] | None = None
    for split in SPLITS:
        days = sorted(
            (data.name.removeprefix(DAY_PREFIX), data)
            for data in (stats[split].datasets if split in stats else ())
            if data.name.startswith(DAY_PREFIX)
        )
        before = last if last and days and last[0] < days[0][0] else None
        for day, data in days:
            if before is not None:
                yield split, day, before[0], _one(data), _one(before[1])
            before = (day, data)
        last = before or last


def _split_statistics(data_dir: pathlib.Path) -> dict[str, Any]:
    from tensorflow_metadata.proto.v0 import statistics_pb2

    kind = statistics_pb2.DatasetFeatureStatisticsList
    paths = {split: data_dir / "stats" / f"{split}.pb" for split in SPLITS}
    return {
        split: kind.FromString(path.read_bytes())
        for split, path in paths.items()
        if path.exists()
    }


def _one(data: Any) -> Any:
    from tensorflow_metadata.proto.v0 import statistics_pb2

    return statistics_pb2.DatasetFeatureStatisticsList(datasets=[data])


def _slice(statistics: Any, name: str) -> Any:
    from tensorflow_metadata.proto.v0 import statistics_pb2

    # Without slice functions TFDV leaves the name empty.
    chosen = [data for data in statistics.datasets if data.name in (name, "")]
    return statistics_pb2.DatasetFeatureStatisticsList(datasets=chosen)


def _place(slice_name: str, domains: tuple[str, ...]) -> str:
    if not slice_name.startswith(SLICE_PREFIX):
        return ALL_ROWS
    return domains[int(slice_name.removeprefix(SLICE_PREFIX))]
