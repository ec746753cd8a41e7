"""Global seeded shuffle: the place of a row follows from its content and the seed.

All rows of a split (of a day, with daily partitions) are sorted by a 64-bit mix of
seed and row id, and cut into files at equal steps of that number.  So the order does
not depend on workers, and `rows_per_file` only moves the cuts.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from features.spec import SPLITS
from pipeline.transforms import record_batches

NO_DAY = 0
_HALF = np.uint64(32)  # order keys are cut by their upper half: products fit 64 bits


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """How many files each split (and day) has.

    Attributes:
      num_files: (split index, day or NO_DAY) -> files, at least 1.
    """

    num_files: Mapping[tuple[int, int], int]

    @classmethod
    def from_rows(
        cls, rows: Mapping[tuple[int, int], int], rows_per_file: int
    ) -> "ShardPlan":
        """Returns the plan for row counts by (split index, day or NO_DAY)."""
        return cls({k: max(-(-n // rows_per_file), 1) for k, n in rows.items()})

    def path(self, split: int, day: int, index: int) -> str:
        """Returns the path of a file below the data folder, without suffix."""
        folder = SPLITS[split] + (f"/dt={day:08d}" if day != NO_DAY else "")
        return f"{folder}/part-{index:05d}-of-{self.num_files[split, day]:05d}"

    def divide(
        self, split: int, batch: pa.RecordBatch, days: np.ndarray, seed: int
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Yields path and rows for each file that rows of the batch belong to.

        Args:
          split: Index of the split of all rows.
          batch: B rows with `row_id`.
          days: [B] int64, day or NO_DAY.
          seed: Of the shuffle.
        """
        keys = record_batches.order_keys(record_batches.integers(batch, "row_id"), seed)
        distinct, codes = np.unique(days, return_inverse=True)
        counts = np.array([self.num_files[split, int(day)] for day in distinct])
        starts = np.cumsum(counts) - counts
        index = (keys >> _HALF) * counts[codes].astype(np.uint64) >> _HALF
        slots = starts[codes] + index.astype(np.int64)
        for slot, piece in record_batches.split_by(batch, slots):
            code = int(np.searchsorted(starts, slot, side="right")) - 1
            yield (
                self.path(split, int(distinct[code]), slot - int(starts[code])),
                piece,
            )
