"""`Order`: what fixes the order of rows of an epoch."""

import hashlib
from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
    """What fixes the order of rows, and whose share they are.

    Attributes:
      shuffle_seed: None for file order.
      epoch: Number of the epoch.
      num_workers: Workers that share the rows.
      worker_index: Which of them this is.
      window_rows: Rows parsed and permuted at once; 0 for the reader's own number.
    """

    shuffle_seed: int | None
    epoch: int = 0
    num_workers: int = 1
    worker_index: int = 0
    window_rows: int = 0

    def generator(self, purpose: str) -> np.random.Generator:
        """Returns a random generator: a pure function of seed, epoch, purpose."""
        text = f"{self.shuffle_seed}/{self.epoch}/{purpose}"
        digest = hashlib.sha256(text.encode()).digest()
        return np.random.Generator(
            np.random.Philox(int.from_bytes(digest[:8], "little"))
        )
