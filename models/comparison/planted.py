"""What is known of a planted log, beside what was found: best AUC, hidden groups."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features import synthetic
from features.dataset import Dataset
from models.audit import Matrix
from models.comparison import table
from models.comparison.prepare import SYNTHETIC_FILE
from models.training.result import load_matrices

BEST = "best reachable"


def best_reachable(
    raw: pathlib.Path, prepared: pathlib.Path, domains: Sequence[str] = ()
) -> list[float]:
    """Returns AUC x 100 of a generated log's true probabilities on its test rows.

    Args:
      raw: What the generator wrote.
      prepared: The data set made of it.
      domains: Whose cells, in this order; empty = all.

    Returns:
      One number per (domain, task), as a column of a comparison's table.
    """
    spec = Dataset.open(prepared).info.spec
    best = synthetic.best_auc(raw, spec.split.test_from)
    return [100 * value for name in domains or best for value in best[name].values()]


def group_agreement(summary: Mapping[str, Any], raw: pathlib.Path) -> dict[str, Any]:
    """Returns how far tables of domains by domains follow the log's hidden groups.

    Args:
      summary: What `table.summarise` gave: its entries name the folders of their runs.
      raw: What the generator wrote.

    Returns:
      label -> table -> `inside` and `across` groups: mean value over pairs of different
      domains, as mean and std over seeds.  Entries without such tables are left out;
      empty for a log of one group.
    """
    facts = json.loads((raw / SYNTHETIC_FILE).read_text("utf-8"))
    groups = dict(zip(facts["domains"], facts["groups"], strict=True))
    if len(set(groups.values())) < 2:
        return {}
    found: dict[str, Any] = {}
    for label, entry in summary["entries"].items():
        runs = [load_matrices(pathlib.Path(path)) for path in entry["workdirs"]]
        for name in runs[0]:
            sides = [_sides(run[name], groups) for run in runs if name in run]
            if None not in sides:
                inside, across = zip(*sides, strict=True)  # type: ignore[arg-type]
                found.setdefault(label, {})[name] = {
                    "inside": table.stats(inside),
                    "across": table.stats(across),
                }
    return found


def _sides(matrix: Matrix, groups: Mapping[str, int]) -> tuple[float, float] | None:
    """Returns the mean inside and across groups; None: not of domains by domains."""
    if list(matrix.rows) != list(matrix.columns) or not set(matrix.rows) <= set(groups):
        return None
    group = np.array([groups[name] for name in matrix.rows])
    same = group[:, None] == group[None, :]
    other = ~np.eye(len(group), dtype=bool)
    return (
        float(matrix.values[same & other].mean()),
        float(matrix.values[~same].mean()),
    )
