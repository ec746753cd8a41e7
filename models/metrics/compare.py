"""Two methods, each with several seeds, on the same test rows: who is better."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.metrics import noise

Array = np.ndarray


def compare_runs(
    *,
    domain: Any,
    labels: Any,
    runs_a: Sequence[Any],
    runs_b: Sequence[Any],
    domains: Sequence[str],
    tasks: Sequence[str],
    label_mask: Any = None,
    units: Any = None,
    by_rows: bool = False,
) -> dict[str, Any]:
    """Returns AUC differences a - b with both kinds of noise, by cell and on average.

    Noise over test rows is DeLong's for the mean over seeds (the row influences of the
    seeds averaged, then summed by unit and over cells); noise over seeds is a t test.
    `standard_error` joins them, `sqrt(rows^2 + seeds^2)`, and `p_value` is its z test.

    Args:
      domain: [N] domain index.
      labels: [N, T] 0 or 1.
      runs_a: Scores [N, T] of method a, one entry a seed.
      runs_b: The same of method b; equal numbers of seeds are paired in order.
      domains: D names.
      tasks: T names.
      label_mask: [N, T], nonzero where the label counts; None = all.
      units: [N] ids of what is drawn (users); None = rows.
      by_rows: Whether `mean` weighs the cells of a task by their rows (DomainAUC), and
        tasks the same; False: all cells the same.

    Returns:
      JSON-able: `mean` (over cells defined) and `cells` (in order of domain, task);
      each with `auc_a`, `auc_b` (mean over seeds, None = undefined), `std_a`,
      `std_b`, `difference`, `standard_error_rows`, `p_rows`, `standard_error_seeds`,
      `p_seeds`, `standard_error`, `p_value`.  `undefined` lists the other cells.
    """
    if not len(runs_a) or not len(runs_b):
        raise ValueError(
            "compare_runs.runs must hold at least one seed of each method; got "
            f"{len(runs_a)} and {len(runs_b)}."
        )
    domain, labels = np.asarray(domain), np.asarray(labels)
    mask = (
        np.ones(labels.shape, bool)
        if label_mask is None
        else np.asarray(label_mask) > 0
    )
    codes = None if units is None else np.unique(units, return_inverse=True)[1]
    cells, undefined, total = [], [], []
    for d, domain_name in enumerate(domains):
        for t, task in enumerate(tasks):
            place = {"domain": domain_name, "task": task}
            kept = np.flatnonzero((domain == d) & mask[:, t])
            found = _influences(labels[:, t], runs_a, runs_b, kept, t)
            if found is None:
                undefined.append(place)
                continue
            a, b, rows = found
            total.append(found)
            compared = _compared(a, b, _by_unit(rows, codes))
            cells.append({**place, "rows": int(kept.size), **compared})
    mean = None
    if total:
        shares = cell_shares(cells, by_rows=by_rows)
        mean = _compared(*_mean_of_cells(total, shares, codes))
    return {"mean": mean, "cells": cells, "undefined": undefined}


def _influences(
    labels: Array, runs_a: Sequence[Any], runs_b: Sequence[Any], kept: Array, t: int
) -> tuple[Array, Array, Array] | None:
    """AUCs [seeds] of a and of b on the rows kept, influence [N] of each row on a - b.

    None where the AUC is undefined.
    """
    sides = [
        [noise.influence(labels[kept], np.asarray(run)[kept, t]) for run in runs]
        for runs in (runs_a, runs_b)
    ]
    if sides[0][0][0] is None:
        return None
    a, b = (np.array([value for value, _ in side]) for side in sides)
    mean_a, mean_b = (np.mean([rows for _, rows in side], axis=0) for side in sides)
    result = np.zeros(labels.shape)
    result[kept] = mean_a - mean_b
    return a, b, result


def cell_shares(cells: Sequence[Mapping[str, Any]], *, by_rows: bool) -> Array:
    """Returns what each cell counts in a mean over cells, [cells], sum 1.

    Args:
      cells: With `task` and `rows`.
      by_rows: As in `compare_runs`.
    """
    if not by_rows:
        return np.full(len(cells), 1 / len(cells))
    tasks = [cell["task"] for cell in cells]
    rows = np.array([cell["rows"] for cell in cells], float)
    of_task = np.array([[t == task for t in tasks] for task in tasks], float)
    return rows / (of_task @ rows) / len(set(tasks))


def _mean_of_cells(
    total: Sequence[tuple[Array, Array, Array]], shares: Array, codes: Array | None
) -> tuple[Array, Array, Array]:
    """Returns `shares` of what `_influences` gave for each cell."""
    a, b, rows = (
        np.tensordot(shares, np.array(part), axes=1)
        for part in zip(*total, strict=True)
    )
    return a, b, _by_unit(rows, codes)


def _by_unit(rows: Array, codes: Array | None) -> Array:
    return rows if codes is None else np.bincount(codes, weights=rows)


def _compared(a: Array, b: Array, rows: Array) -> dict[str, Any]:
    stats_a, stats_b = noise.seed_stats(a), noise.seed_stats(b)
    by_rows = noise.normal_test(stats_a.mean - stats_b.mean, rows)
    by_seeds = noise.seed_test(a, b)
    errors = [by_rows.standard_error, by_seeds.standard_error]
    joint = noise.combine(stats_a.mean - stats_b.mean, errors)
    return {
        "auc_a": stats_a.mean,
        "auc_b": stats_b.mean,
        "std_a": stats_a.std,
        "std_b": stats_b.std,
        "difference": by_rows.difference,
        "standard_error_rows": by_rows.standard_error,
        "p_rows": by_rows.p_value,
        "standard_error_seeds": by_seeds.standard_error,
        "p_seeds": by_seeds.p_value,
        "standard_error": joint.standard_error,
        "p_value": joint.p_value,
    }
