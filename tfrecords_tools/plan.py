"""Where the blocks of uncompressed block files lie, and how many rows each holds.

With this a reader may take blocks in any order, share them out among workers, and
skip without reading.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from tfrecords_tools import decode, records


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Some blocks, in reading order.

    Attributes:
      paths: Files.
      path_index: File of each block, int32 [N].
      offsets: Byte where it begins, int64 [N].
      rows: Rows in it, int64 [N].
    """

    paths: tuple[pathlib.Path, ...]
    path_index: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray

    def take(self, which: np.ndarray | slice) -> "Blocks":
        """Returns some of the blocks, in the order given."""
        return Blocks(
            self.paths, self.path_index[which], self.offsets[which], self.rows[which]
        )


def find_blocks(paths: Sequence[pathlib.Path]) -> Blocks:
    """Returns all blocks of some files, file after file.

    Raises:
      records.RecordError: For a truncated file or a damaged header.
    """
    found = []
    for path in paths:
        stat = path.stat()
        found.append(_file_blocks(path, stat.st_size, stat.st_mtime_ns))
    counts = [len(rows) for _, rows in found]
    return Blocks(
        tuple(paths),
        np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        np.concatenate([np.empty(0, np.int64), *(o for o, _ in found)]),
        np.concatenate([np.empty(0, np.int64), *(r for _, r in found)]),
    )


@functools.lru_cache(maxsize=4096)
def _file_blocks(
    path: pathlib.Path,
    size: int,  # noqa: ARG001 (with mtime_ns it tells versions of a file apart)
    mtime_ns: int,  # noqa: ARG001
) -> tuple[np.ndarray, np.ndarray]:
    """Returns offsets and row counts, int64 [N] each.

    `write_records` fills every block but the last, so two blocks tell all counts.
    """
    offsets = records.record_offsets(path)[:-1]
    rows = np.zeros(len(offsets), np.int64)
    if len(offsets):
        rows[:] = _num_rows(path, 0, int(offsets[0]))
        rows[-1] = _num_rows(path, len(offsets) - 1, int(offsets[-1]))
    return offsets, rows


def _num_rows(path: pathlib.Path, number: int, offset: int) -> int:
    try:
        return decode.block_num_rows(records.record_at(path, number, offset))
    except ValueError as error:
        raise records.RecordError(
            path, number, offset, f"it is no block of rows: {error}"
        ) from error


def shard_blocks(blocks: Blocks, num_workers: int, worker_index: int) -> Blocks:
    """Returns a worker's share: whole files if there are enough, else single blocks."""
    if len(blocks.paths) >= num_workers:
        return blocks.take(blocks.path_index % num_workers == worker_index)
    return blocks.take(slice(worker_index, None, num_workers))


def first_window(rows: np.ndarray, window: int, skip_rows: int) -> tuple[int, int]:
    """Returns the first window of `window` blocks that is not skipped whole.

    Args:
      rows: Rows of the blocks in reading order, int64 [N].
      window: Blocks in a window.
      skip_rows: Rows to skip.

    Returns:
      Its number, and the rows in the windows before it.
    """
    ends = np.append(0, np.cumsum(rows))[window::window]
    first = int(np.searchsorted(ends, skip_rows, side="right"))
    return first, int(ends[first - 1]) if first else 0
