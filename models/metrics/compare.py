"""Two methods, each with several seeds, on the same test rows: who is better."""

from collections.abc import Sequence
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
            kept = np.flatnonzero((domain == d) & mask[:, t])
            sides = [
                [
                    noise.influence(labels[kept, t], np.asarray(run)[kept, t])
                    for run in r
                ]
                for r in (runs_a, runs_b)
            ]
            if sides[0][0][0] is None:
                undefined.append({"domain": domain_name, "task": task})
                continue
            values = [np.array([value for value, _ in side]) for side in sides]
            parts = [np.mean([rows for _, rows in side], axis=0) for side in sides]
            rows = np.zeros(domain.size)
            rows[kept] = parts[0] - parts[1]
            total.append((values[0], values[1], rows))
            cells.append(
                {
                    "domain": domain_name,
                    "task": task,
                    "rows": int(kept.size),
                    **_compared(values[0], values[1], _by_unit(rows, codes)),
                }
            )
    mean = None
    if total:
        means = [np.mean(part, axis=0) for part in zip(*total, strict=True)]
        mean = _compared(means[0], means[1], _by_unit(means[2], codes))
    return {"mean": mean, "cells": cells, "undefined": undefined}


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
