"""Streams of batches that hold rows of one domain each.

Domains come in turns: a shuffled list with ceil(n_d / B) entries for a domain of n_d
rows, so each row comes exactly once an epoch and the last batch of every domain is
filled up with padding rows.  The order depends on (shuffle_seed, epoch) alone, and a
stream can start at any batch, as those of `read`.

A split held in memory is permuted and grouped as row numbers.  Another one is read once
for each domain, side by side: windows shrink with the number of domains, so that
memory stays what it is for one stream, but each row is parsed D times an epoch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import tensorflow as tf

from features.dataset import Dataset
from tfrecords_tools import memory, read
from tfrecords_tools import selection as selection_lib
from tfrecords_tools.order import Order
from tfrecords_tools.selection import Request, Selection


def read_one_domain(
    dataset: Dataset,
    *,
    domain_rows: Mapping[str, int],
    batch_size: int,
    shuffle_seed: int,
    epoch: int = 0,
    skip_batches: int = 0,
    cache: bool | None = None,
    **request: Unpack[Request],
) -> tf.data.Dataset:
    """Returns one epoch of batches, each of one domain: every row exactly once.

    Source: the official code of AREAD (Luo et al., AAAI 2025).
    Differs: there the rows of a domain go on where the epoch before ended.

    Args:
      dataset: An opened data set.
      domain_rows: What `count.count_rows` gives for the same request.
      batch_size: B.
      shuffle_seed: With `epoch` it fixes the order of domains and rows.
      epoch: Number of the epoch.
      skip_batches: Batches to leave out at the start.
      cache: Decode the split into memory; None decides by its size.
      **request: Which rows and columns; see `selection.Request`.

    Raises:
      LookupError: For an unknown split, domain, task or key.
      ValueError: If no row is left, or the files hold other rows than `domain_rows`.
    """
    chosen = selection_lib.select(dataset, **request)
    if cache is None:
        cache = read.decoded_bytes(chosen) <= read.CACHE_LIMIT_BYTES
    names = [name for name in chosen.domains if domain_rows[name]]
    order = Order(shuffle_seed, epoch)
    batches = [num_batches(domain_rows[name], batch_size) for name in names]
    turns = np.repeat(np.arange(len(names)), batches)
    turns = order.generator("domains").permutation(turns)
    if cache:
        table = read.load(dataset, chosen)
        rows = _grouped(table, chosen, dataset, names, order)
        _check_rows(dataset, domain_rows, names, rows)
        index = _index(turns, rows, batch_size, padding=table.num_rows)
        return read.finished(read.gathered(table, index[skip_batches:], chosen))
    return read.finished(
        _from_files(dataset, chosen, names, order, turns, batch_size, skip_batches)
    )


def num_batches(rows: int, batch_size: int) -> int:
    """Returns how many batches the rows of a domain take: ceil(n_d / B)."""
    return -(-rows // batch_size)


def _grouped(
    table: memory.Table,
    chosen: Selection,
    dataset: Dataset,
    names: Sequence[str],
    order: Order,
) -> list[np.ndarray]:
    """Returns the row numbers of each domain in a random order, int32 [n_d] each."""
    domain = memory.int_column(table, read.layout_of(chosen), "domain")
    rows = order.generator("rows").permutation(np.arange(len(domain), dtype=np.int32))
    rows = rows[np.argsort(domain[rows], kind="stable")]
    known = dataset.info.fitted.domains
    own = chosen.domain_map[[known.index(name) for name in names]]
    ends = np.cumsum(np.bincount(domain, minlength=len(known)))
    return [rows[(ends[d - 1] if d else 0) : ends[d]] for d in own]


def _check_rows(
    dataset: Dataset,
    domain_rows: Mapping[str, int],
    names: Sequence[str],
    rows: Sequence[np.ndarray],
) -> None:
    for name, own in zip(names, rows, strict=True):
        if len(own) != domain_rows[name]:
            raise ValueError(
                f"read_one_domain.domain_rows must be the rows in the files; got "
                f"{domain_rows[name]} for domain {name!r}, of which there are "
                f"{len(own)} ({dataset.data_dir}). Run python -m "
                "tfrecords_tools.verify."
            )


def _index(
    turns: np.ndarray, rows: Sequence[np.ndarray], batch_size: int, *, padding: int
) -> np.ndarray:
    """Returns the row numbers of each batch, int32 [N, B]."""
    index = np.full([len(turns), batch_size], padding, np.int32)
    for d, own in enumerate(rows):
        filled = np.pad(own, (0, -len(own) % batch_size), constant_values=padding)
        index[turns == d] = filled.reshape(-1, batch_size)
    return index


def _from_files(
    dataset: Dataset,
    chosen: Selection,
    names: Sequence[str],
    order: Order,
    turns: np.ndarray,
    batch_size: int,
    skip_batches: int,
) -> tf.data.Dataset:
    """Returns batches of one reader a domain, taken in turns."""
    window_rows = max(1, read.SHUFFLE_WINDOW_ROWS // len(names))
    order = order._replace(window_rows=window_rows)
    skipped = np.bincount(turns[:skip_batches], minlength=len(names))
    streams = [
        read.file_stream(
            dataset, _only(dataset, chosen, name), order, batch_size, int(skip), False
        )
        for name, skip in zip(names, skipped, strict=True)
    ]
    choice = tf.data.Dataset.from_tensor_slices(turns[skip_batches:].astype(np.int64))
    return tf.data.Dataset.choose_from_datasets(streams, choice)


def _only(dataset: Dataset, chosen: Selection, name: str) -> Selection:
    """Returns the same request for one of its domains, which keeps its index."""
    old = dataset.info.fitted.domains.index(name)
    domain_map = np.full_like(chosen.domain_map, -1)
    domain_map[old] = chosen.domain_map[old]
    return dataclasses.replace(
        chosen,
        domains=(name,),
        domain_map=domain_map,
        max_rows=dataset.info.num_rows(chosen.split, name),
    )
