"""`count_rows`: how many rows of each domain a request has."""

from collections.abc import Sequence

import numpy as np

from features.dataset import Dataset
from tfrecords_tools import read
from tfrecords_tools import selection as selection_lib
from tfrecords_tools.selection import ALL_HASHES


def count_rows(
    dataset: Dataset,
    *,
    split: str,
    domains: Sequence[str] = (),
    days: tuple[int, int] | None = None,
    hash_range: tuple[float, float] = ALL_HASHES,
) -> dict[str, int]:
    """Returns the number of rows of a request by domain.

    Known without reading, except with `days` or `hash_range`: then from the files that
    may hold them.
    """
    names = tuple(domains) or dataset.info.fitted.domains
    rows = {name: dataset.info.num_rows(split, name) for name in names}
    if (days is None and hash_range == ALL_HASHES) or not any(rows.values()):
        return rows
    try:
        chosen = selection_lib.select(
            dataset, split=split, domains=domains, days=days, hash_range=hash_range
        )
    except selection_lib.NoRowsError:
        return dict.fromkeys(names, 0)
    known = dataset.info.fitted.domains
    found = np.zeros(len(known), np.int64)
    for window in read.chosen_domains(dataset, chosen):
        found += np.bincount(window, minlength=len(known))
    return {name: int(found[known.index(name)]) for name in names}
