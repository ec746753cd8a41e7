"""The scoring job: raw logs or prepared rows -> scores of exported models.

read -> (histories) -> RunInference, one model after another -> score files,
histograms.  `build` is the pipeline, `run` the launcher that publishes the folder:
`scores/part-00000-of-000NN.parquet` (a part without rows has no file),
`histograms.json`, `scores.json`, `rejected/`, `_SUCCESS` last.
"""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic
from apache_beam.ml.inference.base import RunInference
from pydantic import Field

from features import canonical, hashing, layout
from features.config import Config, nearest
from features.dataset import Dataset
from features.domains import FittedDomains
from features.schema import encoded_columns
from features.spec import SPLITS, DatasetSpec
from pipeline import launch
from pipeline.errors import JobError
from pipeline.publish import Staging
from pipeline.transforms import combine, group, record_batches, scoring, scoring_rows
from pipeline.transforms.write import replacing

SCORES_DIR = "scores"
SCORES_FILE = "scores.json"
HISTOGRAMS_FILE = "histograms.json"
REJECTED_FILE = "rejected/rows.jsonl"
NUM_BINS = 20  # of a score histogram, equally wide over [0, 1]
_SUM_UNIT = 2**24  # scores are added as integers: the sum has no order


class ScoreOptions(Config):
    """Options of one run of `pipeline.jobs.batch_score`."""

    models: dict[str, str] = Field(description="model name -> exported folder")
    data_dir: str = Field(description="data set the models were trained on")
    output_dir: str
    raw_dir: str | None = Field(None, description="raw logs; else `split` is scored")
    source_path: str | None = Field(
        None, description="files below raw_dir, instead of the data set's own"
    )
    split: Literal["train", "validation", "test"] = "test"
    keys: tuple[str, ...] | None = Field(
        None, description="columns passed through; default user, item and time"
    )
    histories: Literal["compute", "column"] = "compute"
    output_format: Literal["parquet", "tfrecord"] = "parquet"
    num_shards: int = Field(8, ge=1, le=10_000)
    max_rejected_share: float | None = Field(None, ge=0, le=1)
    check_fingerprint: bool = True
    overwrite: bool = False
    user_buckets: int = Field(32, ge=1, le=65_536)
    show_progress: bool = False
    beam_args: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ScoreOptions":
        if not self.models:
            raise ValueError("models must name at least one exported model")
        bad = [name for name in self.models if not name or "/" in name]
        if bad:
            raise ValueError(f"models: a name must be a word without '/'; got {bad}")
        if self.source_path is not None and self.raw_dir is None:
            raise ValueError("source_path needs raw_dir")
        return self


def run(options: ScoreOptions) -> dict[str, Any]:
    """Runs the job, publishes the scores and returns what `scores.json` says.

    Raises:
      JobError: For a taken target, bad input, a model of another data set, or too
        many rejected rows.
      Exception: What the runner raised; `pipeline.errors.root_cause` shortens it.
    """
    dataset = Dataset.open(options.data_dir)
    models = [scoring.ExportedModel.open(*item) for item in options.models.items()]
    for model in models:
        _check_model(model, dataset, options)
    with Staging(
        options.output_dir, overwrite=options.overwrite, option="output_dir"
    ) as staging:
        with launch.beam_pipeline(
            options.beam_args, show_progress=options.show_progress
        ) as pipeline:
            build(pipeline, options, dataset, models, staging.path)
        result = _summary(options, dataset, models, staging.path)
        staging.publish()
    return result


def build(
    pipeline: beam.Pipeline,
    options: ScoreOptions,
    dataset: Dataset,
    models: Sequence[scoring.ExportedModel],
    folder: pathlib.Path,
) -> None:
    """Adds the whole job to a pipeline; it writes below `folder`."""
    record_batches.register_coder()
    inputs = scoring.raw_inputs(models)
    if options.raw_dir is None:
        rows, rejected = _encoded_rows(pipeline, options, dataset, inputs), None
    else:
        rows, rejected = _raw_rows(pipeline, options, dataset, inputs)
    for model in models:
        # Each takes what the one before gives: one pass for all of them.
        rows = rows | f"Score with {model.name}" >> RunInference(
            scoring.SavedModelHandler(model)
        )
    scored = rows | "Part unserved rows" >> beam.ParDo(
        _PartUnserved(models)
    ).with_outputs(scoring_rows.REJECTED, main=scoring_rows.ROWS)
    unserved = scored[scoring_rows.REJECTED]
    apart = [unserved] if rejected is None else [unserved, rejected]
    _ = (
        scored[scoring_rows.ROWS]
        | "Key by score file" >> beam.ParDo(_KeyByShard(options.num_shards))
        | "Gather score files" >> beam.GroupByKey()
        | "Write score files" >> beam.Map(_write_scores, folder, options, models)
    )
    _ = (
        scored[scoring_rows.ROWS]
        | "Count scores" >> beam.Map(_count_scores, models)
        | "Add up scores"
        >> beam.CombineGlobally(combine.MergePartials(combine.add_counts, {}))
        | "Write histograms" >> beam.Map(_write_histograms, folder, models)
    )
    _ = (
        apart
        | "All rejected rows" >> beam.Flatten()
        | "Key rejected rows" >> beam.Map(_with_zero)
        | "Gather rejected rows" >> beam.GroupByKey()
        | "Write rejected rows" >> beam.Map(_write_rejected, folder)
    )


def _check_model(
    model: scoring.ExportedModel, dataset: Dataset, options: ScoreOptions
) -> None:
    expected = dataset.info.fingerprint
    if options.check_fingerprint and model.fingerprint != expected:
        raise JobError(
            f"model {model.name!r} must have been trained on the data set "
            f"{dataset.data_dir} (fingerprint {expected}); it was trained on "
            f"{model.fingerprint}. Give its own data set, or pass "
            "--no-check_fingerprint when the raw columns mean the same."
        )


def _encoded_rows(
    pipeline: beam.Pipeline,
    options: ScoreOptions,
    dataset: Dataset,
    inputs: Mapping[str, scoring.Kind],
) -> beam.PCollection:
    keys = key_columns(options, dataset.info.spec)
    files = [str(path) for path in dataset.files(options.split)]
    if not dataset.info.num_rows(options.split):
        raise JobError(
            f"split must have rows to score; {options.split!r} of {dataset.data_dir} "
            f"has none. Splits: {', '.join(SPLITS)}."
        )
    return (
        pipeline
        | "List record files" >> beam.Create(files)
        | "Spread record files" >> beam.Reshuffle()
        | "Read prepared rows"
        >> beam.ParDo(scoring_rows.ReadEncodedRows(str(dataset.data_dir), inputs, keys))
    )


def _raw_rows(
    pipeline: beam.Pipeline,
    options: ScoreOptions,
    dataset: Dataset,
    inputs: Mapping[str, scoring.Kind],
) -> tuple[beam.PCollection, beam.PCollection]:
    spec, fitted = dataset.info.spec, dataset.info.fitted
    keys = key_columns(options, spec)
    if options.source_path is not None:
        source = {"path": options.source_path, "reader": "files", "format": None}
        spec = spec.model_copy(update={"source": spec.source.model_copy(update=source)})
    ready = options.histories == "column"
    raw = pipeline | "Read rows to score" >> scoring_rows.ReadRawRows(
        spec, str(options.raw_dir), fitted, keys, ready_histories=ready
    )
    rows, rejected = raw[scoring_rows.ROWS], raw[scoring_rows.REJECTED]
    if layout.computed_histories(spec) and not ready:
        plain = spec.model_copy(update={"drop_duplicates": False})
        known = FittedDomains(
            fitted.domains, fitted.domain_values, fitted.domain_default
        )
        rows = (
            rows
            | "Group users"
            >> group.GroupUsers(plain, options.user_buckets, domains=known)
        )[group.ROWS]
    rows = rows | "Take model inputs" >> beam.Map(
        scoring_rows.from_canonical, spec, inputs, keys, fitted.domains
    ).with_output_types(pa.RecordBatch)
    return rows, rejected


def key_columns(options: ScoreOptions, spec: DatasetSpec) -> tuple[str, ...]:
    """Returns the columns to pass through; `row_id` and `domain` always are.

    Raises:
      JobError: For a column that prepared rows do not hold.
    """
    wanted = (spec.keys.user, spec.keys.item, spec.keys.time)
    if options.raw_dir is not None:
        chosen = options.keys if options.keys is not None else wanted
        return tuple(dict.fromkeys(key for key in chosen if key is not None))
    known = {c.name for c in encoded_columns(spec)} - {"row_id", "domain"}
    known |= {str(f.column) for f in spec.features if getattr(f, "column", None)}
    if options.keys is None:
        return tuple(k for k in dict.fromkeys((*wanted, "user_key")) if k in known)
    for key in options.keys:
        if key not in known:
            raise JobError(
                f"keys must be columns of the prepared rows ({', '.join(sorted(known))}"
                f"); got {key!r}.{nearest(key, known)} Score the raw logs to pass any "
                "raw column through."
            )
    return tuple(dict.fromkeys(options.keys))


@beam.typehints.with_output_types(pa.RecordBatch)
class _PartUnserved(beam.DoFn):
    """Parts rows that no model serves: their domain is in none of them."""

    def __init__(self, models: Sequence[scoring.ExportedModel]) -> None:
        self._served = sorted({d for model in models for d in model.domains})

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        served = pc.is_in(batch["domain"], value_set=pa.array(self._served)).to_numpy(
            zero_copy_only=False
        )
        keep = [n for n in batch.schema.names if not n.startswith(scoring.INPUT)]
        batch = pa.RecordBatch.from_arrays([batch[n] for n in keep], keep)
        if not served.all():
            bad = np.flatnonzero(~served)
            reason = "domain must be served by a model"
            yield beam.pvalue.TaggedOutput(
                scoring_rows.REJECTED,
                canonical.rejected_rows(batch, bad, [reason] * len(bad)),
            )
            batch = batch.filter(pa.array(served))
        if batch.num_rows:
            yield batch


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch])
class _KeyByShard(beam.DoFn):
    """Rows by a hash of their content: no worker count or file order matters."""

    def __init__(self, num_shards: int) -> None:
        self._num_shards = num_shards

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        row_id = record_batches.integers(batch, "row_id").astype(np.uint64)
        shard = hashing.mix64(row_id) % np.uint64(self._num_shards)
        yield from record_batches.split_by(batch, shard.astype(np.uint16))


def _with_zero(batch: pa.RecordBatch) -> tuple[int, pa.RecordBatch]:
    return 0, batch


def _write_scores(
    keyed: tuple[int, Iterable[pa.RecordBatch]],
    folder: pathlib.Path,
    options: ScoreOptions,
    models: Sequence[scoring.ExportedModel],
) -> str:
    shard, batches = keyed
    name = (
        f"{SCORES_DIR}/part-{shard:05d}-of-{options.num_shards:05d}"
        f".{options.output_format}"
    )
    table = _output_table(list(batches), models)
    with replacing(folder / name) as path:
        if options.output_format == "parquet":
            pq.write_table(table, path)
        else:
            _write_examples(table, path)
    return name


def _output_table(
    batches: Sequence[pa.RecordBatch], models: Sequence[scoring.ExportedModel]
) -> pa.Table:
    """Returns the rows in order of `row_id` and keys, under their final names."""
    table = pa.Table.from_batches(batches)
    plain = [n for n in table.column_names if not pa.types.is_list(table[n].type)]
    table = table.sort_by([("row_id", "ascending")] + [(n, "ascending") for n in plain])
    names = [
        n.removeprefix(scoring.KEY).removeprefix(scoring.SCORE)
        for n in table.column_names
    ]
    twice = {n for n in names if names.count(n) > 1}
    # `row_id` and `domain` of the job stay; a raw column of that name steps aside.
    names = [
        old if name in twice and old.startswith(scoring.KEY) else name
        for name, old in zip(names, table.column_names, strict=True)
    ]
    table = table.rename_columns(names)
    for model in models:
        versions = pa.array(np.full(table.num_rows, model.version, np.int64))
        table = table.append_column(f"{model.name}/version", versions)
    about = [{"name": m.name, "version": m.version} for m in models]
    return table.replace_schema_metadata({"isthmus.models": json.dumps(about)})


def _write_examples(table: pa.Table, path: pathlib.Path) -> None:
    import tensorflow as tf
    from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

    encoder = RecordBatchToExamplesEncoder()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in encoder.encode(_as_lists(record_batches.one_batch(table))):
            writer.write(record)


def _as_lists(batch: pa.RecordBatch) -> pa.RecordBatch:
    arrays = []
    for column in batch.columns:
        if pa.types.is_string(column.type):
            column = column.cast(pa.binary())  # the encoder knows no texts
        elif pa.types.is_list(column.type) and pa.types.is_string(
            column.type.value_type
        ):
            column = column.cast(pa.list_(pa.binary()))
        if not pa.types.is_list(column.type):
            missing = column.is_null().to_numpy(zero_copy_only=False)
            offsets = np.concatenate([[0], np.cumsum(~missing)]).astype(np.int32)
            column = pa.ListArray.from_arrays(pa.array(offsets), column.drop_null())
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, batch.schema.names)


def _count_scores(
    batch: pa.RecordBatch, models: Sequence[scoring.ExportedModel]
) -> dict[tuple[str, str, str, int], int]:
    """Rows by (model, task, domain, bin); bin -1 holds the sum of the scores."""
    counts: dict[tuple[str, str, str, int], int] = {}
    names, codes = hashing.dictionary_codes(batch["domain"])
    for model in models:
        for task in model.tasks:
            column = batch[f"{scoring.SCORE}{model.name}/{task}"]
            scores = column.to_numpy(zero_copy_only=False)
            for index, domain in enumerate(names.to_pylist()):
                chosen = scores[(codes == index) & ~np.isnan(scores)]
                if not len(chosen):
                    continue
                bins = np.minimum((chosen * NUM_BINS).astype(np.int64), NUM_BINS - 1)
                for place, count in enumerate(np.bincount(bins, minlength=NUM_BINS)):
                    if count:
                        counts[model.name, task, domain, place] = int(count)
                total = np.round(chosen.astype(np.float64) * _SUM_UNIT).astype(np.int64)
                counts[model.name, task, domain, -1] = int(total.sum())
    return counts


def _write_histograms(
    counts: Mapping[tuple[str, str, str, int], int],
    folder: pathlib.Path,
    models: Sequence[scoring.ExportedModel],
) -> str:
    cells: dict[str, Any] = {m.name: {t: {} for t in m.tasks} for m in models}
    for model, task, domain, place in counts:
        if place >= 0:
            continue
        bins = [counts.get((model, task, domain, b), 0) for b in range(NUM_BINS)]
        mean = counts[model, task, domain, -1] / _SUM_UNIT / sum(bins)
        cells[model][task][domain] = {
            "rows": sum(bins),
            "mean": round(mean, 6),
            "counts": bins,
        }
    values = {"edges": np.linspace(0, 1, NUM_BINS + 1).round(4).tolist()}
    text = json.dumps({**values, "models": cells}, indent=1, sort_keys=True)
    with replacing(folder / HISTOGRAMS_FILE) as path:
        path.write_text(text + "\n", "utf-8")
    return HISTOGRAMS_FILE


def _write_rejected(
    keyed: tuple[int, Iterable[pa.RecordBatch]], folder: pathlib.Path
) -> str:
    """Writes every rejected row; sorted, so that the file is the same every time."""
    lines = sorted(
        json.dumps(row, sort_keys=True)
        for batch in keyed[1]
        for row in batch.to_pylist()
    )
    with replacing(folder / REJECTED_FILE) as path:
        path.write_text("\n".join(lines) + "\n", "utf-8")
    return REJECTED_FILE


def _summary(
    options: ScoreOptions,
    dataset: Dataset,
    models: Sequence[scoring.ExportedModel],
    folder: pathlib.Path,
) -> dict[str, Any]:
    """Writes `scores.json`, after the check that not too many rows were rejected."""
    cells = json.loads((folder / HISTOGRAMS_FILE).read_text("utf-8"))["models"]
    rows: dict[str, int] = {}
    for tasks in cells.values():
        for by_domain in tasks.values():
            for domain, cell in by_domain.items():
                rows[domain] = max(rows.get(domain, 0), cell["rows"])
    rejected: dict[str, int] = {}
    if (folder / REJECTED_FILE).exists():
        for line in (folder / REJECTED_FILE).read_text("utf-8").splitlines():
            reason = json.loads(line)["reason"]
            rejected[reason] = rejected.get(reason, 0) + 1
    scored, apart = sum(rows.values()), sum(rejected.values())
    limit = options.max_rejected_share
    if limit is None:
        limit = dataset.info.spec.max_rejected_share
    if not scored or apart > limit * (scored + apart):
        reasons = "; ".join(f"{n:,} x {r}" for r, n in sorted(rejected.items()))
        raise JobError(
            f"rejected rows must be at most a share of {limit:g}; got {apart:,} of "
            f"{scored + apart:,} ({reasons or 'no rows at all'}). Mend the rows, or "
            "raise --max_rejected_share."
        )
    result = {
        "rows": scored,
        "rows_by_domain": dict(sorted(rows.items())),
        "rejected": dict(sorted(rejected.items())),
        "models": [
            {"name": m.name, "version": m.version, "fingerprint": m.fingerprint}
            for m in models
        ],
        "data_dir_fingerprint": dataset.info.fingerprint,
        "source": options.source_path or options.raw_dir or options.split,
        "keys": list(key_columns(options, dataset.info.spec)),
        "format": options.output_format,
    }
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    (folder / SCORES_FILE).write_text(text, "utf-8")
    return result
