"""Training from files against training from one cached batch, in one run.

MMoE of 4 experts [256, 128, 64] in the project's own loop and, for the files, through
its own reader: 15 id fields, 3 numbers and a history of 20 ids a row, shuffled.
`files` decodes as it trains; `memory` is what a data set that fits into memory gets
by default.  The bar is a `ratio` of at least 0.95.
"""

import argparse
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # run as a script too

from tests.benchmarks import timing  # isort: skip

import numpy as np  # isort: skip
import pyarrow as pa  # isort: skip
import tensorflow as tf  # isort: skip

from features import dataset as dataset_lib  # isort: skip
from features.fitted import Fitted, NumericParams  # isort: skip
from features.spec import NUM_RESERVED_IDS, DatasetSpec  # isort: skip
from features.vocab import Vocab  # isort: skip
from models.method import MAIN  # isort: skip
from tfrecords_tools import encode, read  # isort: skip

IDS, NUMBERS, HISTORY, VOCABULARY, DOMAINS = 15, 3, 20, 5000, 3
SETTINGS = {"num_experts": 4, "expert_units": [256, 128, 64]}


def make_spec():
    ids = [
        {"kind": "categorical", "name": f"id{i}", "role": "item", "width": 16}
        for i in range(IDS)
    ]
    numbers = [
        {"kind": "numeric", "name": f"x{i}", "role": "item"} for i in range(NUMBERS)
    ]
    history = {
        "kind": "sequence",
        "name": "history",
        "of": "id1",
        "max_length": HISTORY,
    }
    return DatasetSpec.parse(
        {
            "name": "bench",
            "source": {"path": "log.parquet"},
            "keys": {"user": "id0", "item": "id1", "time": "time"},
            "domain": {
                "by": "value_map",
                "column": "channel",
                "domains": {f"d{i}": [f"c{i}"] for i in range(DOMAINS)},
            },
            "tasks": [{"name": f"t{i}", "column": f"y{i}"} for i in range(2)],
            "features": [*ids, *numbers, history],
            "split": {"by": "random"},
        }
    )


def make_rows(rows):
    """Returns encoded columns in the order of the record format."""
    rng = np.random.default_rng(0)

    def ids(*shape):
        return rng.integers(0, VOCABULARY, shape) + NUM_RESERVED_IDS

    columns = {f"id{i}": ids(rows) for i in range(IDS)}
    columns |= {f"x{i}": rng.normal(size=rows).astype("f") for i in range(NUMBERS)}
    columns["history"] = ids(rows, HISTORY)
    columns["domain"] = rng.integers(0, DOMAINS, rows)
    columns |= {f"label/t{i}": rng.integers(0, 2, rows) for i in range(2)}
    columns |= {"row_id": np.arange(rows), "user_key": ids(rows)}
    day = {"day": np.full(rows, 20240101)}
    columns |= day
    arrays = []
    for values in columns.values():
        array = pa.array(np.ascontiguousarray(values).ravel())
        if values.ndim == 2:
            array = pa.FixedSizeListArray.from_arrays(array, values.shape[1])
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, list(columns))


def make_dataset(data_dir, rows):
    """Writes a prepared data set with a training split only, and opens it."""
    name = "train/part-00000-of-00001.tfrecord"
    (data_dir / "train").mkdir(parents=True)
    encode.write_records(data_dir / name, make_rows(rows))
    vocabs = {f"id{i}": Vocab([f"v{j}" for j in range(VOCABULARY)]) for i in range(IDS)}
    cells = {"rows": rows, "labelled": {}, "positives": {}}
    empty = {"rows": 0, "labelled": {}, "positives": {}}
    counts = {
        "train": {"d0": cells} | {f"d{i}": empty for i in range(1, DOMAINS)},
        "validation": {},
        "test": {},
    }
    dataset_lib.DatasetInfo(
        spec=make_spec(),
        fitted=Fitted(
            domains=tuple(f"d{i}" for i in range(DOMAINS)),
            domain_values={f"c{i}": i for i in range(DOMAINS)},
            domain_default=-1,
            vocabs=vocabs,
            numeric={f"x{i}": NumericParams(0.0, 1.0) for i in range(NUMBERS)},
            popularity={},
        ),
        counts=counts,
        unknown={},
        rejected={},
        seed=0,
        record_format="block",
        block_rows=encode.DEFAULT_BLOCK_ROWS,
        compression="",
        files={"train": (name,), "validation": (), "test": ()},
    ).save(data_dir)
    (data_dir / dataset_lib.SUCCESS_FILE).touch()
    return dataset_lib.Dataset.open(data_dir)


def endless(dataset, args, *, cache):
    """Returns batches of one epoch after the other."""

    def epoch(number):
        return read.read_stream(
            dataset,
            split="train",
            batch_size=args.batch,
            shuffle_seed=1,
            epoch=number,
            cache=cache,
        )

    # Epochs enough for all timed steps and the warm-up.
    steps = (args.rounds + 1) * args.steps
    count = -(-steps * args.batch // args.rows) + 1
    stream = epoch(0)
    for number in range(1, count):
        stream = stream.concatenate(epoch(number))
    return iter(stream)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=131_072, help="in the data set")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8, help="in one timed call")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(pathlib.Path(folder) / "data", args.rows)
        schema = dataset.info.model_schema
        streams = {
            "files": endless(dataset, args, cache=False),
            "memory": endless(dataset, args, cache=True),
        }
        batch = next(endless(dataset, args, cache=True))
        streams["batch"] = iter(tf.data.Dataset.from_tensors(batch).repeat())
        # One model and one trace for all: only where rows come from differs.
        training = timing.Training(
            timing.make_method("mmoe", schema, **SETTINGS), batch
        )

        def run(name):
            result = training.loop.run({MAIN: streams[name]}, args.steps)
            if result.steps != args.steps:
                raise RuntimeError(f"{name} gave {result.steps} of {args.steps} steps")

        for name in streams:
            run(name)
        clock = timing.Clock()
        for _ in range(args.rounds):
            for name in streams:
                clock.time(name, lambda name=name: run(name))
    rows = args.batch * args.steps
    rates = {f"{name}_rows_per_sec": round(rows / clock.secs(name)) for name in streams}
    timing.print_line(
        "reader",
        rows=args.rows,
        batch=args.batch,
        **rates,
        ratio=timing.significant(clock.ratio("files", "batch")),
        cpu_ratio=timing.significant(clock.ratio("files", "batch", "cpu")),
        memory_ratio=timing.significant(clock.ratio("memory", "batch")),
    )


if __name__ == "__main__":
    main()
