"""Command line: keeps a source model's representations of rows beside them.

A run that learns from the model then reads them instead of computing them in every step
of every epoch, and needs no memory for its tables.
"""

import argparse
import logging
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from features.dataset import Dataset
from features.spec import SPLITS
from models.layers.cached_source import HAS_ITEMS
from models.layers.frozen_source import FrozenSource
from models.layers.saved_source import SavedSource
from models.method import example_features
from models.training import source as source_lib
from tfrecords_tools import read, vectors

LAYERS = ("sequence", "fields")
EPILOG = """examples:
  python -m models.represent --workdir runs/eta --data_dir data/x --out data/x/eta
  python -m models.represent --workdir runs/eta --data_dir data/x --out data/x/eta \\
      --num_workers 4 --worker_index 0

Then train with method_config.source_vectors=data/x/eta.  Each of several workers writes
its own part, on any machine that sees the folders.
"""


def represent(
    workdir: str | pathlib.Path,
    data_dir: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    split: str = "train",
    layers: Sequence[str] = ("sequence",),
    batch_size: int = 16384,
    num_workers: int = 1,
    worker_index: int = 0,
) -> int:
    """Writes one part of the vectors of a split; returns its rows.

    A part that is there already, of the same model and rows, is left as it is.

    Args:
      workdir: Finished run of `eta` or `din`, or its export.
      data_dir: Data set whose rows are represented; inputs as those of the run.
      out: Folder to write to.
      split: Whose rows.
      layers: What to keep of a row: `sequence`, `fields`.
      batch_size: Rows at a time.
      num_workers: Processes that share the rows.
      worker_index: Which of them this is.

    Raises:
      WorkdirError, TypeError: When the run is none of a source model.
      ValueError: For layers that are none, or that the model has not, or inputs that
        differ.
      VectorsError: When something else lies there.
    """
    unknown = [name for name in layers if name not in LAYERS]
    if unknown or not layers:
        raise ValueError(
            f"represent.layers must be some of {', '.join(LAYERS)}; got {layers}."
        )
    dataset = Dataset.open(data_dir)
    model = source_lib.open_source(workdir, dataset.info.model_schema)
    example = model.represent(example_features(dataset.info.model_schema))
    widths = {layer: int(getattr(example, layer).shape[1]) for layer in layers}
    empty = [layer for layer, width in widths.items() if width == 0]
    if empty:
        raise ValueError(
            f"represent.layers must be layers that the model has; {workdir} has no "
            f"{empty[0]!r}: its data set has no such feature."
        )
    info = vectors.VectorsInfo(
        dataset.info.fingerprint, split, model.version, widths | {HAS_ITEMS: 1}
    )
    there = vectors.describe(out, worker_index, num_workers)
    if there:
        rows = there.pop("rows")
        if vectors.VectorsInfo(**there) == info:
            return rows
        raise vectors.VectorsError(
            f"represent.out must be a new folder or hold the same vectors; {out} has "
            f"{there}, asked for are {info}. Choose another, or delete it."
        )
    stream = read.read_stream(
        dataset,
        split=split,
        batch_size=batch_size,
        keys=("row_id",),
        num_workers=num_workers,
        worker_index=worker_index,
    )
    return vectors.write_part(
        out,
        info,
        _batches(model, stream, layers),
        index=worker_index,
        parts=num_workers,
    )


def _batches(
    model: FrozenSource | SavedSource, stream: tf.data.Dataset, layers: Sequence[str]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    forward = tf.function(model.represent, autograph=False)
    for batch in stream:
        parts = forward(batch.features)
        kept = {layer: getattr(parts, layer) for layer in layers}
        kept[HAS_ITEMS] = tf.cast(parts.has_items, tf.float32)[:, tf.newaxis]
        real = batch.valid.numpy()
        row_ids = batch.keys["row_id"].numpy()[real]
        yield row_ids, {name: value.numpy()[real] for name, value in kept.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m models.represent",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workdir", required=True, help="finished run of eta or din, or its export"
    )
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--split", default="train", choices=SPLITS)
    parser.add_argument(
        "--layers", default="sequence", help="sequence, fields, or both"
    )
    parser.add_argument("--batch_size", type=int, default=16384)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--worker_index", type=int, default=0)
    arguments = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments["layers"] = tuple(filter(None, arguments["layers"].split(",")))
    started = time.monotonic()
    try:
        rows = represent(**arguments)
    except (ValueError, LookupError, TypeError, OSError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, LookupError) else error
        print(f"models.represent: {text}", file=sys.stderr)
        return 1
    print(f"{arguments['out']}: {rows:,} rows, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
