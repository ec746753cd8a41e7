"""Schema and anomalies of a prepared data set, by TensorFlow Data Validation."""

import dataclasses
import json
import pathlib
from typing import Any

import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from features.schema import LABEL_PREFIX
from features.spec import DatasetSpec
from pipeline.transforms.statistics import SLICE_PREFIX

SCHEMA_FILE = "schema.pbtxt"
MAX_STRING_DOMAIN = 50  # more distinct values are identifiers: new ones are normal
SKEW_THRESHOLD = 0.2  # L-infinity of category shares between train and validation


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """One finding, in words.

    Attributes:
      split: Where it was found.
      place: "all rows" or the domain's name.
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

    def to_text(self) -> str:
        """Returns one line per finding."""
        if not self.anomalies:
            return "no anomalies"
        return "\n".join(
            f"{a.split}, {a.place}: column {a.feature!r}: {a.rule}. {a.text}"
            for a in self.anomalies
        )


def validate(
    data_dir: pathlib.Path,
    spec: DatasetSpec,
    domains: tuple[str, ...],
    *,
    schema_path: str | None = None,
    previous_data_dir: str | None = None,
) -> AnomalyReport:
    """Writes `schema.pbtxt` and `anomalies/`; returns what was found.

    The schema is the curated one (`schema_path`), else the previous data set's, else
    inferred from the training split: with environments TRAINING and SERVING (labels
    and weight are in TRAINING only), no value list for identifiers, and a skew
    comparator for the small categoricals.  Every split and every domain slice of at
    least training's columns is checked against it.
    """
    stats = {p.stem: _read(p) for p in sorted((data_dir / "stats").glob("*.pb"))}
    schema = _schema(stats["train"], spec, schema_path, previous_data_dir)
    tfdv.write_schema_text(schema, str(data_dir / SCHEMA_FILE))
    folder = data_dir / "anomalies"
    folder.mkdir(exist_ok=True)
    found: list[Anomaly] = []
    train = _slice(stats["train"], "All Examples")
    for split, statistics in stats.items():
        for data in statistics.datasets:
            is_all = not data.name.startswith(SLICE_PREFIX)
            name = "all rows" if is_all else _domain_name(data.name, domains)
            single = statistics_pb2.DatasetFeatureStatisticsList(datasets=[data])
            result = tfdv.validate_statistics(
                single,
                schema,
                environment="TRAINING",
                serving_statistics=None,
                previous_statistics=train if is_all and split != "train" else None,
            )
            found += _found(result, split, name)
            if is_all:
                text = text_format.MessageToString(result)
                (folder / f"{split}.pbtxt").write_text(text, "utf-8")
    found.sort(key=dataclasses.astuple)
    report = AnomalyReport(tuple(found))
    (folder / "report.txt").write_text(report.to_text() + "\n", "utf-8")
    values = [dataclasses.asdict(a) for a in report.anomalies]
    (folder / "report.json").write_text(json.dumps(values, indent=1), "utf-8")
    return report


def _read(path: pathlib.Path) -> Any:
    return statistics_pb2.DatasetFeatureStatisticsList.FromString(path.read_bytes())


def _slice(statistics: Any, name: str) -> Any:
    chosen = [data for data in statistics.datasets if data.name == name]
    return statistics_pb2.DatasetFeatureStatisticsList(datasets=chosen)


def _domain_name(slice_name: str, domains: tuple[str, ...]) -> str:
    return domains[int(slice_name.removeprefix(SLICE_PREFIX))]


def _schema(
    train: Any,
    spec: DatasetSpec,
    schema_path: str | None,
    previous_data_dir: str | None,
) -> schema_pb2.Schema:
    if schema_path is None and previous_data_dir is not None:
        schema_path = str(pathlib.Path(previous_data_dir) / SCHEMA_FILE)
    if schema_path is not None:
        return tfdv.load_schema_text(schema_path)
    schema = tfdv.infer_schema(
        _slice(train, "All Examples"), max_string_domain_size=MAX_STRING_DOMAIN
    )
    del schema.default_environment[:]
    schema.default_environment.extend(["TRAINING", "SERVING"])
    for feature in schema.feature:
        is_label = feature.name.startswith(LABEL_PREFIX)
        if is_label or (feature.name == "weight" and spec.weight is not None):
            feature.not_in_environment.append("SERVING")
        # A small domain need not have every value, nor every row every column.
        feature.presence.min_fraction = 0.0
        if feature.domain:
            feature.drift_comparator.infinity_norm.threshold = SKEW_THRESHOLD
            feature.distribution_constraints.min_domain_mass = 0.95
    return schema


def _found(result: anomalies_pb2.Anomalies, split: str, place: str) -> list[Anomaly]:
    return [
        Anomaly(split, place, name, info.short_description, info.description)
        for name, info in result.anomaly_info.items()
    ]
