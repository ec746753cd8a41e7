"""The same job as most would write it in Beam: a dict a row, a function a row."""

import hashlib
import json
import math
import os

import apache_beam as beam
import pyarrow.parquet as pq
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from features.registry import dataset_spec

HISTORY, TAGS, FILES = 20, 3, 8
CATEGORIES = ("user_id", "segment", "item_id", "category", "hour")
NUMBERS = ("price", "position")
LABELS = ("click", "like")
SPEC = dataset_spec("synthetic")


def run(raw_dir, data_dir, beam_args=()):
    """Writes train, validation and test; returns the rows written."""
    data_dir.mkdir()
    files = sorted(str(p) for p in (raw_dir / "events").iterdir())
    with beam.Pipeline(options=PipelineOptions(list(beam_args))) as pipeline:
        sides = {
            name: beam.pvalue.AsDict(
                pipeline
                | f"List {name}" >> beam.Create([str(raw_dir / f"{name}.parquet")])
                | f"Read {name}" >> beam.FlatMap(read_rows)
                | f"Key {name}" >> beam.Map(lambda row, key: (row[key], row), key)
            )
            for name, key in (("users", "user_id"), ("items", "item_id"))
        }
        rows = (
            pipeline
            | beam.Create(files)
            | beam.Reshuffle()
            | beam.FlatMap(read_rows)
            | beam.Filter(is_good)
            | beam.Map(join, **sides)
            | beam.Map(lambda row: (row["user_id"], row))
            | "By user" >> beam.GroupByKey()
            | beam.FlatMap(with_history)
            | beam.Map(with_split)
        )
        train = rows | beam.Filter(lambda row: row["split"] == "train")
        counts = beam.pvalue.AsSingleton(
            train
            | beam.FlatMap(values)
            | "Count values" >> beam.CombinePerKey(sum)
            | "All counts" >> beam.combiners.ToList()
            | beam.Map(vocabularies)
        )
        moments = beam.pvalue.AsDict(
            train
            | "Numbers" >> beam.FlatMap(numbers)
            | "Moments" >> beam.CombinePerKey(Moments())
        )
        _ = (
            rows
            | beam.Map(encode, counts, moments)
            | "By file" >> beam.GroupByKey()
            | beam.Map(write, str(data_dir))
            | "All files" >> beam.combiners.ToList()
            | beam.Map(write_counts, str(data_dir / "counts.json"))
        )
    return sum(json.loads((data_dir / "counts.json").read_text()))


def read_rows(path):
    yield from pq.read_table(path).to_pylist()


def is_good(row):
    if any(row[name] is None for name in ("user_id", "item_id", "time")):
        return False
    if row["domain"] not in {str(v) for v in SPEC.domain.values}:
        return False
    try:
        row["position"] = float(row["position"])
    except (TypeError, ValueError):
        return False
    return all(row[task] in (0, 1) for task in LABELS)


def join(row, users, items):
    return {**users.get(row["user_id"], {}), **items.get(row["item_id"], {}), **row}


def with_history(keyed):
    rows = sorted(keyed[1], key=lambda row: row["time"])
    clicked, waiting, now = [], [], None
    for row in rows:
        if row["time"] != now:
            clicked, waiting, now = (clicked + waiting)[-HISTORY:], [], row["time"]
        if row["click"] == 1:
            waiting.append(row["item_id"])
        yield {**row, "history": clicked}


def with_split(row):
    cuts = (SPEC.split.validation_from, SPEC.split.test_from)
    names = ("train", "validation", "test")
    return {**row, "split": names[sum(row["time"] >= cut for cut in cuts)]}


def tags(row):
    return (row.get("tags") or "").split("|") if row.get("tags") else []


def values(row):
    for name in CATEGORIES:
        if row.get(name) is not None:
            yield (name, str(row[name])), 1
    for tag in tags(row):
        yield ("tags", tag), 1


def vocabularies(counted):
    found = {}
    for (name, value), count in counted:
        found.setdefault(name, []).append((-count, value))
    return {
        name: {value: (i + 2, -count) for i, (count, value) in enumerate(sorted(pairs))}
        for name, pairs in found.items()
    }


def number(name, row):
    value = row.get(name)
    if value is None or math.isnan(value):
        return None
    if name == "price":
        return math.copysign(math.log1p(abs(value)), value)
    return value


def numbers(row):
    for name in NUMBERS:
        if (value := number(name, row)) is not None:
            yield name, value


class Moments(beam.CombineFn):
    def create_accumulator(self):
        return 0, 0.0, 0.0

    def add_input(self, total, x):
        return total[0] + 1, total[1] + x, total[2] + x * x

    def merge_accumulators(self, parts):
        return tuple(map(sum, zip(*parts, strict=True)))

    def extract_output(self, total):
        n, first, second = total
        mean = first / max(n, 1)
        return mean, math.sqrt(max(second / max(n, 1) - mean**2, 0)) or 1.0


def integers(*values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def floats(*values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def encode(row, vocabularies, moments):
    def ids(name, texts, length):
        found = [vocabularies.get(name, {}).get(str(t), (1, 0))[0] for t in texts]
        return found[-length:] + [0] * (length - len(found))

    features = {name: integers(*ids(name, [row.get(name)], 1)) for name in CATEGORIES}
    features["tags"] = integers(*ids("tags", tags(row)[:TAGS], TAGS))
    features["history"] = integers(*ids("item_id", row["history"], HISTORY))
    for name in NUMBERS:
        mean, std = moments[name]
        value = number(name, row)
        features[name] = floats(0.0 if value is None else (value - mean) / std)
    count = vocabularies["item_id"].get(row["item_id"], (1, 0))[1]
    features["item_popularity"] = floats(math.log1p(count))
    domains = [str(v) for v in SPEC.domain.values]
    features["domain"] = integers(domains.index(row["domain"]))
    for name in LABELS:
        features[f"label/{name}"] = integers(int(row[name]))
    example = tf.train.Example(features=tf.train.Features(feature=features))
    data = example.SerializeToString()
    place = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    return f"{row['split']}-{place % FILES:05d}", (place, data)


def write(keyed, folder):
    name, rows = keyed
    rows = sorted(rows)
    with tf.io.TFRecordWriter(os.path.join(folder, f"{name}.tfrecord")) as writer:
        for _, data in rows:
            writer.write(data)
    return len(rows)


def write_counts(counts, path):
    with open(path, "w") as file:
        json.dump(counts, file)
