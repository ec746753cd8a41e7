"""Streams of batches from record files: all the tf.data code of the project.

Two ways to read, with the same rows and the same `Batch`:

*Cached*: the split is decoded once into memory; an epoch is a full permutation of
its rows, gathered batch by batch.  Taken by itself for splits under
`CACHE_LIMIT_BYTES`.

*Streamed*: blocks in a seeded order; windows of `SHUFFLE_WINDOW_ROWS` rows are parsed
at once, permuted, and cut into batches across window borders.  Rows were shuffled
over the whole split when they were written, so a window is a fair sample already.

Nothing is done row by row, and the order depends on (shuffle_seed, epoch) alone.
"""

import functools
from collections.abc import Iterator
from typing import Unpack

import numpy as np
import tensorflow as tf

from features.dataset import Dataset, DatasetInfo
from features.schema import LABEL_PREFIX
from tfrecords_tools import decode, memory, plan, records
from tfrecords_tools import selection as selection_lib
from tfrecords_tools.batch import Batch
from tfrecords_tools.order import Order
from tfrecords_tools.selection import ALL_HASHES, Request, Selection

CACHE_LIMIT_BYTES = 512 * 2**20  # of one split, decoded; MovieLens-1M takes 50 MB
SHUFFLE_WINDOW_ROWS = 131_072  # 32 blocks of 4,096: about 20 MB at 40 columns
PLAIN_WINDOW_ROWS = 16_384  # without a shuffle: large enough for fast parsing
_READ_BUFFER_BYTES = 1 << 20
_PARSE_CALLS = 2  # windows parsed at once; more only steals cores from the step
_PREFETCH_BATCHES = 4
_HASH_SALT = 0x9B05688C2B3E6C1F  # any constant: fraction of sqrt(11)


def read_stream(
    dataset: Dataset,
    *,
    batch_size: int,
    shuffle_seed: int | None = None,
    epoch: int = 0,
    skip_batches: int = 0,
    num_workers: int = 1,
    worker_index: int = 0,
    drop_remainder: bool = False,
    cache: bool | None = None,
    **request: Unpack[Request],
) -> tf.data.Dataset:
    """Returns one epoch of batches: every row of the request exactly once.

    The last batch is filled up with rows of weight 0, mask 0 and `valid` False, so
    that all shapes are static.

    Args:
      dataset: An opened data set.
      batch_size: B, at least 1.
      shuffle_seed: None reads in file order; a number shuffles.
      epoch: Number of the epoch; with the seed it fixes the order.
      skip_batches: Batches to leave out at the start: the stream is the suffix of
        the full one.  Free when cached; when streamed without filters from plain
        files, whole windows are never opened; else the rows are read and dropped.
      num_workers: Workers that share the rows.
      worker_index: Which of them this is.
      drop_remainder: Leave out the last batch if it is not full.
      cache: Decode the split into memory; None decides by `CACHE_LIMIT_BYTES`.
      **request: Which rows and columns; see `selection.Request`.

    Raises:
      LookupError: For an unknown split, domain, task or key.
      ValueError: For an argument out of range, or if no row is left.
      records.RecordError: For a truncated file.
    """
    _check_range("batch_size", batch_size, 1)
    _check_range("epoch", epoch, 0)
    _check_range("skip_batches", skip_batches, 0)
    _check_range("num_workers", num_workers, 1)
    _check_range("worker_index", worker_index, 0, num_workers - 1)
    chosen = selection_lib.select(dataset, **request)
    if cache is None:
        cache = decoded_bytes(chosen) <= CACHE_LIMIT_BYTES
    order = Order(shuffle_seed, epoch, num_workers, worker_index)
    make = _cached_stream if cache else file_stream
    return finished(
        make(dataset, chosen, order, batch_size, skip_batches, drop_remainder)
    )


def finished(stream: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a stream of batches, prefetched and with the options of the project."""
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF  # num_workers does it
    )
    return stream.prefetch(_PREFETCH_BATCHES).with_options(options)


def cached_arrays(dataset: Dataset, **request: Unpack[Request]) -> Batch:
    """Returns all rows of a request in one `Batch` of numpy arrays, in file order.

    Arguments and errors as `read_stream`, which shares the decoded rows.
    """
    chosen = selection_lib.select(dataset, **request)
    batch = memory.unpack(load(dataset, chosen), layout_of(chosen))
    return tf.nest.map_structure(lambda tensor: tensor.numpy()[:-1], batch)


def decoded_bytes(chosen: Selection) -> int:
    """Returns about how many bytes the rows of a request take in memory."""
    values = sum(c.length for c in chosen.columns) + 2 * len(chosen.tasks)
    return 4 * values * max(chosen.max_rows, 1)


def row_hash(row_id: tf.Tensor) -> tf.Tensor:
    """Returns a number in [0, 1) for each row, float64 [B]; equal ids, equal numbers.

    The salt makes it another hash than those that splits and orders were drawn by.

    Args:
      row_id: int64 [B], >= 0.
    """
    shift, xor = tf.bitwise.right_shift, tf.bitwise.bitwise_xor
    x = tf.bitcast(row_id, tf.uint64) + tf.constant(_HASH_SALT, tf.uint64)
    # The finaliser of splitmix64.
    for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = xor(x, shift(x, tf.constant(bits, tf.uint64)))
        x *= tf.constant(factor, tf.uint64)
    x = xor(x, shift(x, tf.constant(31, tf.uint64)))
    # 53 bits, which a float64 holds exactly: never rounded up to 1.
    return tf.cast(shift(x, tf.constant(11, tf.uint64)), tf.float64) * 2.0**-53


def explain_data_loss(dataset: Dataset, split: str, error: Exception) -> Exception:
    """Returns an error that names the damaged file and record behind `error`.

    TensorFlow's reader says only that a record is corrupt.  All files of the split
    are checked; without a finding the error returned repeats `error`.

    Example:
      try: ...
      except tf.errors.DataLossError as error:
          raise read.explain_data_loss(dataset, split, error) from error
    """
    for path in dataset.files(split):
        try:
            for _ in records.read_records(path, dataset.info.compression):
                pass
        except records.RecordError as found:
            return found
        except OSError as found:
            return records.RecordError(path, 0, 0, f"it cannot be read: {found}")
    return ValueError(
        f"Reading split {split!r} of {dataset.data_dir} failed though every record "
        f"passes its checksum now: {error}. The storage may be unreliable; run "
        "python -m tfrecords_tools.verify, then start again to resume."
    )


def _check_range(name: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        rule = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"read_stream.{name} must be {rule}; got {value}.")


# --------------------------------------------------------------------- cached


def _cached_stream(
    dataset: Dataset,
    chosen: Selection,
    order: Order,
    batch_size: int,
    skip_batches: int,
    drop_remainder: bool,
) -> tf.data.Dataset:
    table = load(dataset, chosen)
    rows = np.arange(table.num_rows, dtype=np.int32)
    if order.shuffle_seed is not None:
        rows = order.generator("rows").permutation(rows)
    rows = rows[order.worker_index :: order.num_workers]
    if drop_remainder:
        rows = rows[: len(rows) // batch_size * batch_size]
    rows = rows[skip_batches * batch_size :]
    # Row number `num_rows` is the padding row.
    rows = np.pad(rows, (0, -len(rows) % batch_size), constant_values=table.num_rows)
    return gathered(table, rows.reshape(-1, batch_size), chosen)


def gathered(
    table: memory.Table, rows: np.ndarray, chosen: Selection
) -> tf.data.Dataset:
    """Returns batches of the rows of a table: int32 [N, B], `num_rows` for padding."""
    with tf.device("CPU:0"):
        index = tf.constant(rows)

    def gather(at: tf.Tensor) -> Batch:
        here = tf.gather(index, at)
        picked = tf.nest.map_structure(lambda values: tf.gather(values, here), table)
        return memory.unpack(picked, layout_of(chosen))

    return tf.data.Dataset.range(len(rows)).map(gather)


def load(dataset: Dataset, chosen: Selection) -> memory.Table:
    """Returns the rows of a request, from memory if they are there."""
    versions = tuple(
        (str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in chosen.paths
    )
    request = (
        chosen.tasks,
        chosen.days,
        chosen.hash_range,
        chosen.keys,
        chosen.domain_map.tobytes(),
    )
    return memory.remembered(
        (dataset.info.fingerprint, versions, request),
        lambda: _decode(dataset, chosen),
        limit_bytes=2 * CACHE_LIMIT_BYTES,
    )


def _decode(dataset: Dataset, chosen: Selection) -> memory.Table:
    windows, _ = _windows(dataset, chosen, Order(None), skip_rows=0)
    parts = list(windows.prefetch(2).as_numpy_iterator())
    if not any(len(part.weight) for part in parts):
        raise selection_lib.no_rows(dataset, chosen)
    padding = tf.nest.map_structure(lambda t: t.numpy(), _padding(chosen, 1))
    return memory.pack([*parts, padding], layout_of(chosen))


def layout_of(chosen: Selection) -> memory.Layout:
    """Returns where the columns of a request stand in its table."""
    features = [c for c in chosen.columns if c.name in chosen.features]
    return memory.Layout(
        tuple((c.name, c.length) for c in features if c.dtype == "int64"),
        tuple(c.name for c in features if c.dtype == "float32"),
        len(chosen.tasks),
    )


# ------------------------------------------------------------------- streamed


def file_stream(
    dataset: Dataset,
    chosen: Selection,
    order: Order,
    batch_size: int,
    skip_batches: int,
    drop_remainder: bool,
) -> tf.data.Dataset:
    """Returns the batches of a request, read from its files as they come."""
    if chosen.filters_by_column and not any(map(len, chosen_domains(dataset, chosen))):
        raise selection_lib.no_rows(dataset, chosen)
    windows, skipped = _windows(
        dataset, chosen, order, skip_rows=skip_batches * batch_size
    )
    if not drop_remainder and batch_size > 1:
        # B - 1 padding rows fill the last batch up, or are dropped themselves.
        padding = _padding(chosen, batch_size - 1)
        windows = windows.concatenate(tf.data.Dataset.from_tensors(padding))
    stream = windows.rebatch(batch_size, drop_remainder=True)
    return stream.skip(skip_batches - skipped // batch_size)


def _windows(
    dataset: Dataset, chosen: Selection, order: Order, *, skip_rows: int
) -> tuple[tf.data.Dataset, int]:
    """Returns windows as a `Batch` of any number of rows each, and rows skipped.

    The rows skipped are `skip_rows`, or 0 where that cannot be done without reading.
    """
    info = dataset.info
    shuffles = order.shuffle_seed is not None
    window_rows = SHUFFLE_WINDOW_ROWS if shuffles else PLAIN_WINDOW_ROWS
    window_rows = order.window_rows or window_rows
    is_block = info.record_format == "block"
    window = _records_of(info, window_rows)
    first = before = 0
    if is_block and not info.compression:
        blocks = plan.shard_blocks(
            plan.find_blocks(chosen.paths), order.num_workers, order.worker_index
        )
        if shuffles:
            blocks = blocks.take(
                order.generator("blocks").permutation(len(blocks.rows))
            )
        if not chosen.filters_rows:
            first, before = plan.first_window(blocks.rows, window, skip_rows)
        serialized = _read_blocks(blocks.take(slice(first * window, None)))
    else:
        serialized = _read_in_order(dataset, chosen, order)
        if not is_block and not chosen.filters_rows:
            first = skip_rows // window
            before = first * window
            serialized = serialized.skip(before)
    skips = not chosen.filters_rows and (not is_block or not info.compression)
    trim = skip_rows - before if skips else 0
    parse = functools.partial(
        _parse_window, dataset, chosen, order, first=first, trim=trim
    )
    windows = serialized.batch(window).enumerate(start=first)
    # No Python branch in it hangs on a tensor; converting it would double the tracing.
    windows = windows.map(
        tf.autograph.experimental.do_not_convert(
            lambda number, serialized: parse(number, serialized)
        ),
        num_parallel_calls=_PARSE_CALLS,
        deterministic=True,
    )
    return windows, skip_rows if skips else 0


def _records_of(info: DatasetInfo, rows: int) -> int:
    """Returns how many records hold about so many rows; at least one."""
    return max(rows // info.block_rows, 1) if info.record_format == "block" else rows


def _read_blocks(blocks: plan.Blocks) -> tf.data.Dataset:
    """Returns serialized blocks in the order given: each read where it lies."""
    names = tf.constant([str(path) for path in blocks.paths], tf.string)
    index = tf.data.Dataset.from_tensor_slices((blocks.path_index, blocks.offsets))

    def read(path_index: tf.Tensor, offset: tf.Tensor) -> tf.data.Dataset:
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=tf.gather(names, [path_index]),
            compression_type="",
            buffer_size=_READ_BUFFER_BYTES,
            byte_offsets=[offset],
        )
        found = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
        return found.take(1)

    return index.flat_map(read)


def _read_in_order(
    dataset: Dataset, chosen: Selection, order: Order
) -> tf.data.Dataset:
    """Returns serialized records, file after file; files in a seeded order."""
    paths = list(chosen.paths)
    by_file = len(paths) >= order.num_workers
    if by_file:
        paths = paths[order.worker_index :: order.num_workers]
    if order.shuffle_seed is not None:
        shuffled = order.generator("files").permutation(len(paths))
        paths = [paths[i] for i in shuffled]
    serialized = tf.data.TFRecordDataset(
        [str(path) for path in paths],
        compression_type=dataset.info.compression,
        buffer_size=_READ_BUFFER_BYTES,
    )
    if not by_file:
        serialized = serialized.shard(order.num_workers, order.worker_index)
    return serialized


def _parse_window(
    dataset: Dataset,
    chosen: Selection,
    order: Order,
    number: tf.Tensor,
    serialized: tf.Tensor,
    *,
    first: int,
    trim: int,
) -> Batch:
    """Returns the rows of some records: filtered, permuted and cast."""
    parsed = decode.parse_columns(
        serialized, chosen.columns, dataset.info.record_format
    )
    domain = _mapped_domain(chosen, parsed["domain"])
    rows = _chosen_rows(chosen, order, number, domain, parsed)
    if trim:
        rows = tf.range(tf.size(domain)) if rows is None else rows
        rows = rows[tf.where(number == first, trim, 0) :]
    batch = _to_batch(chosen, parsed, domain)
    if rows is not None:
        batch = tf.nest.map_structure(lambda values: tf.gather(values, rows), batch)
    return batch


def _mapped_domain(chosen: Selection, old: tf.Tensor) -> tf.Tensor:
    """Returns the index that each row's domain has in the request, -1 to drop it."""
    last = len(chosen.domain_map) - 1
    check = tf.debugging.Assert(
        tf.reduce_all((old >= 0) & (old <= last)),
        [f"column domain must be 0 to {last}; got", old],
    )
    with tf.control_dependencies([check] if check is not None else []):
        return tf.gather(chosen.domain_map, old)


def _chosen_rows(
    chosen: Selection,
    order: Order,
    number: tf.Tensor,
    domain: tf.Tensor,
    parsed: dict[str, tf.Tensor],
) -> tf.Tensor | None:
    """Returns the positions of the rows to give, in order; None for all as they lie."""
    rows = None
    if chosen.filters_rows:
        keep = domain >= 0
        if chosen.days is not None:
            day = parsed["day"]
            keep &= (day >= chosen.days[0]) & (day <= chosen.days[1])
        if chosen.hash_range != ALL_HASHES:
            low, high = chosen.hash_range
            hashes = row_hash(parsed["row_id"])
            keep &= (hashes >= low) & (hashes < high)
        rows = tf.where(keep)[:, 0]
    if order.shuffle_seed is None:
        return rows
    seed = order.generator("windows").integers(2**31)
    count = tf.size(domain if rows is None else rows)
    noise = tf.random.stateless_uniform([count], [seed, number], None, None, tf.int32)
    permutation = tf.argsort(noise, stable=True)
    return permutation if rows is None else tf.gather(rows, permutation)


def _to_batch(
    chosen: Selection, parsed: dict[str, tf.Tensor], domain: tf.Tensor
) -> Batch:
    features = {
        name: parsed[name]
        if parsed[name].dtype == tf.float32
        else tf.cast(parsed[name], tf.int32)
        for name in chosen.features
    }
    features["domain"] = domain
    labels = tf.stack([parsed[LABEL_PREFIX + t] for t in chosen.tasks], axis=1)
    ones = tf.ones_like(domain, tf.float32)
    return Batch(
        features=features,
        labels=tf.cast(tf.maximum(labels, 0), tf.float32),
        label_mask=tf.cast(labels >= 0, tf.float32),
        weight=parsed["weight"] if chosen.has_weight else ones,
        valid=tf.cast(ones, tf.bool),
        keys={name: parsed[name] for name in chosen.keys},
    )


def _padding(chosen: Selection, rows: int) -> Batch:
    """Returns a batch of padding rows only."""
    parsed = {}
    for c in chosen.columns:
        shape = [rows] if c.length == 1 else [rows, c.length]
        parsed[c.name] = tf.zeros(shape, c.dtype)
    for task in chosen.tasks:
        parsed[LABEL_PREFIX + task] -= 1
    batch = _to_batch(chosen, parsed, tf.zeros([rows], tf.int32))
    return batch._replace(weight=tf.zeros([rows]), valid=tf.zeros([rows], tf.bool))


def chosen_domains(dataset: Dataset, chosen: Selection) -> Iterator[np.ndarray]:
    """Yields the domain index of each row of a request, window by window.

    Reads the columns that decide which rows those are, and no others.
    """
    info, order = dataset.info, Order(None)
    deciding = ("domain", "day", "row_id")
    columns = [c for c in chosen.columns if c.name in deciding]
    windows = _read_in_order(dataset, chosen, order).batch(
        _records_of(info, PLAIN_WINDOW_ROWS)
    )
    for number, serialized in enumerate(windows):
        parsed = decode.parse_columns(serialized, columns, info.record_format)
        domain = _mapped_domain(chosen, parsed["domain"])
        rows = _chosen_rows(chosen, order, number, domain, parsed)
        yield (domain if rows is None else tf.gather(domain, rows)).numpy()
