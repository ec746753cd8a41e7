"""Rows to score: raw logs, or the encoded rows of a prepared data set."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features import canonical, domains, encode, layout
from features import spec as spec_lib
from features.config import nearest
from features.dataset import Dataset
from features.fitted import Fitted
from features.schema import encoded_columns
from features.spec import UNKNOWN_ID, DatasetSpec
from pipeline import registry
from pipeline.errors import JobError
from pipeline.transforms import record_batches
from pipeline.transforms.scoring import INPUT, KEY, Kind
from tfrecords_tools import decode

REJECTED = "rejected"
ROWS = "rows"
EXTRA = "scoring_key_"  # prefix of features made for key columns the spec has not


def scoring_spec(
    spec: DatasetSpec,
    columns: Sequence[str],
    keys: Sequence[str],
    *,
    ready_histories: bool,
) -> DatasetSpec:
    """Returns the spec by which rows to score are read.

    Labels may be missing, duplicates stay, and where the log lacks columns that only
    training needs (split, weight, masks), the spec does without them.

    Args:
      spec: Of the data set that the models were trained on.
      columns: Columns of the raw rows.
      keys: Columns to pass through, in the spec or not.
      ready_histories: Whether histories are list columns of the raw rows.
    """
    update: dict[str, Any] = {"drop_duplicates": False, "partition_by_day": False}
    tasks = [t.model_copy(update={"missing": "mask"}) for t in spec.tasks]
    if any(column not in columns for column in layout.raw_columns(spec)):
        tasks = [t.model_copy(update={"mask_column": None}) for t in tasks]
        update["weight"] = None
        update["split"] = spec_lib.RandomSplit(by="random")
        update["keys"] = spec.keys.model_copy(update={"day": None})
    features = list(spec.features)
    if ready_histories:
        plain: dict[str, Any] = {"initial_column": None, "only_positive_of": None}
        plain |= {"per_domain": False, "domains": []}
        features = [
            f.model_copy(update={"column": f.name, **plain})
            if isinstance(f, spec_lib.Sequence) and f.column is None
            else f
            for f in features
        ]
    known = layout.raw_columns(spec)
    features += [
        spec_lib.Categorical(name=f"{EXTRA}{i}", column=key, role="context")
        for i, key in enumerate(keys)
        if key not in known
    ]
    return spec.model_copy(update={**update, "tasks": tasks, "features": features})


class ReadRawRows(beam.PTransform):
    """Raw files -> canonical `rows` with `domain` (index), and `rejected`.

    Args:
      spec: Of the data set; `source` says where the raw rows are.
      raw_dir: Folder of the raw files.
      fitted: Its domains.
      keys: Columns to pass through.
      ready_histories: See `scoring_spec`.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        raw_dir: str,
        fitted: Fitted,
        keys: tuple[str, ...],
        *,
        ready_histories: bool,
    ) -> None:
        super().__init__()
        self.spec, self.raw_dir, self.fitted = spec, raw_dir, fitted
        self.keys, self.ready_histories = keys, ready_histories

    def expand(self, begin: beam.pvalue.PBegin) -> Any:
        """Adds the steps; the list of shards is made in the launcher."""
        reader = registry.reader(self.spec.source.reader)
        shards = list(reader.shards(self.spec.source, self.raw_dir))
        return (
            begin
            | "List shards" >> beam.Create(shards)
            | "Spread shards" >> beam.Reshuffle()
            | "Read raw rows"
            >> beam.ParDo(
                _ReadShard(
                    self.spec,
                    self.raw_dir,
                    self.fitted,
                    self.keys,
                    self.ready_histories,
                )
            ).with_outputs(REJECTED, main=ROWS)
        )


@beam.typehints.with_output_types(pa.RecordBatch)
class _ReadShard(beam.DoFn):
    def __init__(
        self,
        spec: DatasetSpec,
        raw_dir: str,
        fitted: Fitted,
        keys: tuple[str, ...],
        ready_histories: bool,
    ) -> None:
        self._spec, self._raw_dir, self._keys = spec, raw_dir, keys
        self._values, self._default = dict(fitted.domain_values), fitted.domain_default
        self._ready_histories = ready_histories

    def setup(self) -> None:
        from pipeline.transforms.join import TableIndex

        self._reader = registry.reader(self._spec.source.reader)
        self._indexes = [
            TableIndex(
                f"source.{name}",
                self._reader.read_table(table, self._raw_dir),
                table.key,
                table.log_key or table.key,
            )
            for name, table in sorted(
                self._reader.tables(self._spec.source, self._raw_dir).items()
            )
        ]

    def process(self, shard: Any) -> Iterator[Any]:
        for result in self._reader.read(shard):
            if result.rejected is not None and result.rejected.num_rows:
                yield beam.pvalue.TaggedOutput(REJECTED, result.rejected)
            if result.batch is not None and result.batch.num_rows:
                yield from self._rows(result.batch)

    def _rows(self, batch: pa.RecordBatch) -> Iterator[Any]:
        for index in self._indexes:
            batch = index.join(batch)
        spec = scoring_spec(
            self._spec,
            batch.schema.names,
            self._keys,
            ready_histories=self._ready_histories,
        )
        batch = _with_absent_labels(spec, batch)
        _check_keys(self._keys, batch)
        rows, rejected = canonical.canonicalise(spec, _texts_of_extra(spec, batch))
        if rejected.num_rows:
            yield beam.pvalue.TaggedOutput(REJECTED, rejected)
        domain = domains.assign_domains(self._values, self._default, spec, rows)
        if (domain < 0).any():
            bad = np.flatnonzero(domain < 0)
            reason = f"{spec.domain.column} must be a value of a domain"
            yield beam.pvalue.TaggedOutput(
                REJECTED, canonical.rejected_rows(rows, bad, [reason] * len(bad))
            )
            rows = rows.filter(pa.array(domain >= 0))
        if rows.num_rows:
            yield pa.RecordBatch.from_arrays(
                [*rows.columns, pa.array(domain[domain >= 0])],
                [*rows.schema.names, "domain"],
            )


def _with_absent_labels(spec: DatasetSpec, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Adds a null column for each label the log lacks: nobody scores known labels."""
    names, columns = list(batch.schema.names), list(batch.columns)
    needed = {
        f.only_positive_of
        for f in layout.computed_histories(spec)
        if f.only_positive_of
    }
    for task in spec.tasks:
        if task.column in names:
            continue
        if task.name in needed:
            raise JobError(
                f"column {task.column!r} must be in the raw rows: a history counts "
                f"only rows with {task.name} = 1. Add it, or give the histories as "
                "list columns with --histories column."
            )
        names.append(task.column)
        columns.append(pa.nulls(batch.num_rows, pa.float64()))
    return pa.RecordBatch.from_arrays(columns, names)


def _check_keys(keys: Sequence[str], batch: pa.RecordBatch) -> None:
    for key in keys:
        if key not in batch.schema.names:
            known = batch.schema.names
            raise JobError(
                f"keys must be columns of the raw rows ({', '.join(known)}); got "
                f"{key!r}.{nearest(key, known)}"
            )


def _texts_of_extra(spec: DatasetSpec, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Makes pass-through columns text, so that none of their values is rejected."""
    extra = {f.column for f in spec.features if f.name.startswith(EXTRA)}
    columns = [
        _to_text(column) if name in extra else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _to_text(column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None if v is None else str(v) for v in column.to_pylist()])


def from_canonical(
    batch: pa.RecordBatch,
    spec: DatasetSpec,
    inputs: Mapping[str, Kind],
    keys: Sequence[str],
    domain_names: Sequence[str],
) -> pa.RecordBatch:
    """Returns canonical rows (with `domain`) as a scoring batch.

    Args:
      batch: Rows [B].
      spec: Of the data set (not the scoring spec: names are the same).
      inputs: Kind by raw input.
      keys: Columns to pass through.
      domain_names: By index.
    """
    batch = record_batches.plain(batch)
    names = layout.layout(spec)
    columns = {
        # A computed history has no raw column: it is named by its feature.
        INPUT + name: batch[names.get((name, kind), name)]
        for name, kind in inputs.items()
    }
    for key in keys:
        kinds = [k for k in ("id", "time", "number", "ids") if (key, k) in names]
        held = [names[key, k] for k in kinds if names[key, k] in batch.schema.names]
        columns[KEY + key] = batch[held[0] if held else key]
    return _scoring_batch(columns, batch, domain_names)


def from_encoded(
    batch: pa.RecordBatch,
    spec: DatasetSpec,
    fitted: Fitted,
    inputs: Mapping[str, Kind],
    keys: Sequence[str],
) -> pa.RecordBatch:
    """Returns encoded rows as a scoring batch: raw values that encode to the same.

    Unknown ids become a text that no vocabulary has; a bucket becomes a number in it.

    Args:
      batch: Columns of `encoded_columns(spec)` [B].
      spec: The dataset spec.
      fitted: What it was encoded with.
      inputs: Kind by raw input.
      keys: Encoded columns, or raw columns of features, to pass through.
    """
    readable = encode.decode(spec, fitted, batch)
    raw = _RawValues(spec, fitted, batch, readable)
    columns = {INPUT + name: raw.column(name, kind) for name, kind in inputs.items()}
    by_column = {
        spec_lib.raw_column(f): f.name
        for f in spec.features
        if isinstance(f, spec_lib.Categorical | spec_lib.MultiValued)
    }
    for key in keys:
        columns[KEY + key] = readable[by_column.get(key, key)]
    return _scoring_batch(columns, batch, fitted.domains)


def _scoring_batch(
    columns: dict[str, pa.Array], batch: pa.RecordBatch, names: Sequence[str]
) -> pa.RecordBatch:
    columns["row_id"] = batch["row_id"]
    columns["domain"] = pa.array(names).take(batch["domain"].cast(pa.int64()))
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


class _RawValues:
    """Raw inputs that encode to the given rows."""

    def __init__(
        self,
        spec: DatasetSpec,
        fitted: Fitted,
        batch: pa.RecordBatch,
        readable: pa.RecordBatch,
    ) -> None:
        self.spec, self.fitted = spec, fitted
        self.batch, self.readable = batch, readable

    def column(self, name: str, kind: Kind) -> pa.Array:
        """Returns the raw column of one input."""
        readers = [f for f in self.spec.features if _reads(f, name)]
        texts = [f for f in readers if not isinstance(f, spec_lib.Numeric)]
        # A number is known exactly unless it was cut into buckets.
        numbers = sorted(
            (f for f in readers if isinstance(f, spec_lib.Numeric)),
            key=lambda f: f.transform == "bucketise",
        )
        if kind == "number":
            return self._number(numbers[0])
        found = self._text(texts[0]) if texts else None
        if found is None and numbers:
            found = _number_texts(self._number(numbers[0]))
        if name == self.spec.domain.column:
            own = self._domain_values()
            if found is None:
                return own
            known = domains.assign_domains(
                self.fitted.domain_values,
                self.fitted.domain_default,
                self.spec,
                pa.RecordBatch.from_arrays(
                    [found], [layout.canonical_name(self.spec, name, "id")]
                ),
            )
            right = known == record_batches.integers(self.batch, "domain")
            found = pc.if_else(pa.array(right), found, own)
        if found is None:
            raise LookupError(f"input {name!r} is read by no feature of the data set")
        return found

    def _text(self, feature: Any) -> pa.Array:
        check_has_texts(self.spec, self.fitted, feature)
        return self.readable[feature.name]

    def _number(self, feature: spec_lib.Numeric) -> pa.Array:
        if feature.transform != "bucketise":
            return self.readable[feature.name]
        edges = np.array(self.fitted.numeric[feature.name].boundaries)
        inner = (edges[:-1] + edges[1:]) / 2
        ends = (edges[:1] - 1, edges[-1:] + 1) if len(edges) else ([0.0], [])
        inside = np.concatenate([ends[0], inner, ends[1]])
        ids = record_batches.integers(self.batch, feature.name)
        values = inside[np.maximum(ids - spec_lib.NUM_RESERVED_IDS, 0)]
        return pa.array(values, mask=ids == UNKNOWN_ID)

    def _domain_values(self) -> pa.Array:
        """Returns one raw value of the row's domain; for the rest, one of no other."""
        by_index = {i: v for v, i in reversed(list(self.fitted.domain_values.items()))}
        others = self.fitted.domain_default
        if others >= 0:
            by_index.setdefault(others, encode.UNKNOWN_TEXT)
        values = [by_index.get(i) for i in range(len(self.fitted.domains))]
        return pa.array(values, pa.string()).take(self.batch["domain"])


def _reads(feature: Any, name: str) -> bool:
    match feature:
        case spec_lib.DomainIndicator() | spec_lib.Popularity():
            return False
        case spec_lib.Sequence():
            return (feature.column or feature.name) == name
        case _:
            return spec_lib.raw_column(feature) == name


def check_has_texts(spec: DatasetSpec, fitted: Fitted, feature: Any) -> None:
    """Raises when encoded ids of a feature have no way back to raw values."""
    if spec.table_of(feature.name) not in fitted.vocabs:
        raise JobError(
            f"features.{feature.name} must have a vocabulary to score prepared rows; "
            "it is hashed, and a hash has no way back. Score the raw logs instead "
            "(--raw_dir)."
        )


def _number_texts(values: pa.Array) -> pa.Array:
    """Numbers as ids write them: 25.0 is "25"; float32 noise is rounded away."""
    numbers = np.round(values.to_numpy(zero_copy_only=False), 5)
    texts = [str(int(v)) if v == int(v) else repr(v) for v in np.nan_to_num(numbers)]
    return pa.array(texts, mask=np.isnan(numbers))


@beam.typehints.with_output_types(pa.RecordBatch)
class ReadEncodedRows(beam.DoFn):
    """Record file of a prepared data set -> scoring batches.

    Args:
      data_dir: The data set.
      inputs: Kind by raw input.
      keys: See `from_encoded`.
    """

    def __init__(
        self, data_dir: str, inputs: Mapping[str, Kind], keys: Sequence[str]
    ) -> None:
        self._data_dir, self._inputs, self._keys = data_dir, dict(inputs), tuple(keys)

    def setup(self) -> None:
        """Opens the data set once a worker."""
        self._info = Dataset.open(self._data_dir).info

    def process(self, path: str) -> Iterator[pa.RecordBatch]:
        """Yields the rows of one file."""
        info = self._info
        for batch in decode.read_batches(
            pathlib.Path(path),
            encoded_columns(info.spec),
            record_format=info.record_format,
            compression=info.compression,
        ):
            if batch.num_rows:
                yield from_encoded(
                    batch, info.spec, info.fitted, self._inputs, self._keys
                )
