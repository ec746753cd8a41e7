"""What both kinds of trial share: pruning, when to stop, the number to compare."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from models.aread import masks as masks_lib
from models.aread.config import SearchConfig
from models.aread.masks import Mask
from tfrecords_tools.batch import Batch


class Trial(Protocol):
    """Trains, prunes and measures candidate masks of one domain."""

    def run(
        self,
        domain: int,
        candidates: Sequence[Mask],
        train: Sequence[Batch],
        score: Sequence[Batch],
    ) -> tuple[list[Mask], list[float]]:
        """Returns the pruned candidates and their losses, lower is better."""


def pruned(mask: Mask, gates: Sequence[np.ndarray], config: SearchConfig) -> Mask:
    """Returns the mask after one pruning by these gates [N_{l+1}, N_l]."""
    scores = masks_lib.scores_of(gates, config.prune_rank)
    floor = masks_lib.floor_edges(mask, config.min_density)
    return masks_lib.prune(mask, scores, config.prune_rate, floor)


def is_sparse(mask: Mask, config: SearchConfig) -> bool:
    """Returns whether a candidate has come down to S, where its training ends."""
    floor = masks_lib.floor_edges(mask, config.min_density)
    return bool(masks_lib.count(mask) <= floor)


def task_sum(sums: np.ndarray) -> float:
    """Returns the sum over tasks of mean losses: [2, T] sums of losses and weights.

    A task without a labelled row counts 0.
    """
    losses, weights = np.asarray(sums, np.float64)
    safe = np.where(weights > 0, weights, 1.0)
    return float(np.sum(np.where(weights > 0, losses / safe, 0.0)))
