"""`count_rows`: how many rows of each domain a request has."""

from collections.abc import Sequence

import numpy as np

from features.dataset import Dataset
from tfrecords_tools import read
from tfrecords_tools import selection as selection_lib


def count_rows(
    dataset: Dataset,
    *,
    split: str,
    domains: Sequence[str] = (),
    days: tuple[int, int] | None = None,
) -> dict[str, int]:
    """Returns the number of rows of a request by domain.

    Known without reading, except with `days`: then from the files that may hold them.
    """
    names = tuple(domains) or dataset.info.fitted.domains
    rows = {name: dataset.info.num_rows(split, name) for name in names}
    if days is None or not any(rows.values()):
        return rows
    try:
        batch = read.cached_arrays(
            dataset,
            split=split,
            domains=domains,
            tasks=dataset.info.spec.task_names[:1],
            days=days,
        )
    except selection_lib.NoRowsError:
        return dict.fromkeys(names, 0)
    known = dataset.info.fitted.domains
    found = np.bincount(batch.domain, minlength=len(known))
    return {name: int(found[known.index(name)]) for name in names}
