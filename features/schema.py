"""What a model and the record format need to know of a prepared data set.

`encoded_columns` lists the columns of a prepared row on disk; `ModelSchema` lists the
inputs of a model.  Both follow from the spec and the fitted sizes alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from features import spec as spec_lib
from features.spec import DatasetSpec

LABEL_PREFIX = "label/"  # + task; int64: 0, 1, or MASKED_LABEL
MASKED_LABEL = -1


@dataclasses.dataclass(frozen=True)
class EncodedColumn:
    """One column on disk: `length` values a row of one dtype."""

    name: str
    dtype: Literal["int64", "float32"]
    length: int = 1


def encoded_columns(spec: DatasetSpec) -> tuple[EncodedColumn, ...]:
    """Returns the columns of a prepared row, in the order they are written.

    Features first (in spec order, the domain indicator left out: it is `domain`),
    then `domain` (index), `label/<task>` (0, 1, -1 = masked), `weight` if the spec
    has one, `row_id` (62-bit hash of the row's content), `user_key` (62-bit hash of
    the user, to group by), and `day` (YYYYMMDD) where it is known.
    """
    columns = [c for f in spec.features if (c := _feature_column(f)) is not None]
    columns.append(EncodedColumn("domain", "int64"))
    columns += [EncodedColumn(LABEL_PREFIX + t, "int64") for t in spec.task_names]
    if spec.weight is not None:
        columns.append(EncodedColumn("weight", "float32"))
    columns += [EncodedColumn("row_id", "int64"), EncodedColumn("user_key", "int64")]
    if spec.day_source is not None:
        columns.append(EncodedColumn("day", "int64"))
    return tuple(columns)


def _feature_column(feature: Any) -> EncodedColumn | None:
    match feature:
        case spec_lib.DomainIndicator():
            return None
        case spec_lib.MultiValued() | spec_lib.Sequence():
            return EncodedColumn(feature.name, "int64", feature.max_length)
        case spec_lib.Numeric(transform="bucketise") | spec_lib.Categorical():
            return EncodedColumn(feature.name, "int64")
        case _:
            return EncodedColumn(feature.name, "float32")


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """One model input.

    Attributes:
      name: Key in `Batch.features`; the domain indicator reads key `domain`.
      role: user, item, context, domain or sequence.
      kind: `id` int32 [B]; `ids` int32 [B, length] (pooled, 0 = pad); `sequence`
        the same but ordered, oldest first; `number` float32 [B].
      table: Name of the embedding table; features that share have the same.
      num_ids: Rows of the table, reserved ids included; 0 for numbers.
      width: Embedding width; 1 for numbers.
      length: Ids a row.
    """

    name: str
    role: str
    kind: Literal["id", "ids", "sequence", "number"]
    table: str = ""
    num_ids: int = 0
    width: int = 1
    length: int = 1


@dataclasses.dataclass(frozen=True)
class ModelSchema:
    """Inputs, domains and tasks of a model."""

    features: tuple[FeatureInfo, ...]
    domains: tuple[str, ...]
    tasks: tuple[str, ...]

    @property
    def num_domains(self) -> int:
        """D."""
        return len(self.domains)

    @property
    def num_tasks(self) -> int:
        """T."""
        return len(self.tasks)

    def select(
        self,
        domains: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> "ModelSchema":
        """Returns the schema of a model over some domains and tasks only.

        The domain index of such a model counts within `domains`.
        """
        for owner, chosen, known in (
            ("domains", domains, self.domains),
            ("tasks", tasks, self.tasks),
        ):
            for name in chosen or ():
                if name not in known:
                    raise LookupError(
                        f"{owner} must be of {', '.join(known)}; got {name!r}."
                    )
        domains = tuple(domains) if domains else self.domains
        features = tuple(
            dataclasses.replace(f, num_ids=len(domains)) if f.role == "domain" else f
            for f in self.features
        )
        return ModelSchema(features, domains, tuple(tasks) if tasks else self.tasks)


def model_schema(
    spec: DatasetSpec, domains: Sequence[str], num_ids: Mapping[str, int]
) -> ModelSchema:
    """Returns the model schema.

    Args:
      spec: The dataset spec.
      domains: Domain names in index order.
      num_ids: Table size (reserved ids included) per table-owning feature.
    """
    infos = []
    for feature in spec.features:
        name, width = feature.name, getattr(feature, "width", 1)
        table = spec.table_of(name)
        match feature:
            case spec_lib.DomainIndicator():
                info = FeatureInfo(name, "domain", "id", name, len(domains), width)
            case spec_lib.MultiValued():
                info = FeatureInfo(
                    name,
                    feature.role,
                    "ids",
                    table,
                    num_ids[table],
                    spec.feature(table).width,
                    feature.max_length,
                )
            case spec_lib.Sequence():
                info = FeatureInfo(
                    name,
                    "sequence",
                    "sequence",
                    table,
                    num_ids[table],
                    spec.feature(table).width,
                    feature.max_length,
                )
            case spec_lib.Numeric(transform="bucketise") | spec_lib.Categorical():
                width = spec.feature(table).width
                info = FeatureInfo(
                    name, feature.role, "id", table, num_ids[table], width
                )
            case _:
                info = FeatureInfo(name, feature.role, "number")
        infos.append(info)
    return ModelSchema(tuple(infos), tuple(domains), spec.task_names)
