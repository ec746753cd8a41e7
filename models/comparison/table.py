"""The comparison's numbers: means, spread over seeds, and differences with noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.comparison.experiment import Experiment
from models.metrics.auc import relaimpr
from models.metrics.compare import compare_runs
from models.training.evaluate import Scores
from models.training.result import Result

SPLIT = "test"


def summarise(
    experiment: Experiment, results: Mapping[str, Sequence[Result]]
) -> dict[str, Any]:
    """Returns a JSON-able summary of all finished runs.

    The best baseline is chosen by validation; differences are on the test split, with
    the noise of test rows (DeLong) and of seeds.
    """
    entries = {label: _entry(runs) for label, runs in results.items()}
    baselines = {
        label: values["validation_mean_auc"]
        for label, values in entries.items()
        if label != experiment.main and values["validation_mean_auc"] is not None
    }
    best = max(baselines, key=baselines.__getitem__, default=None)
    differences = {}
    if experiment.main in results:
        for role, label in (
            ("best_baseline", best),
            ("target_only", experiment.target_only),
        ):
            if label is not None and label in results and label != experiment.main:
                difference = _difference(results[experiment.main], results[label])
                differences[role] = {"label": label, **difference}
        reference = entries[best]["mean_auc"]["mean"] if best else None
        entries[experiment.main]["relaimpr"] = relaimpr(
            entries[experiment.main]["mean_auc"]["mean"], reference
        )
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "main": experiment.main,
        "entries": entries,
        "differences": differences,
    }


def _entry(runs: Sequence[Result]) -> dict[str, Any]:
    cells = [
        {(c["domain"], c["task"]): c for c in run.metrics[SPLIT]["cells"]}
        for run in runs
    ]
    speeds = [r.train_rows_per_sec for r in runs if r.train_rows_per_sec]
    validation = _stats([r.metrics["validation"]["mean_domain_auc"] for r in runs])
    return {
        "seeds": len(runs),
        "cells": [
            {
                "domain": domain,
                "task": task,
                "rows": cells[0][domain, task]["rows"],
                "auc": _stats([c[domain, task]["auc"] for c in cells]),
                "logloss": _stats([c[domain, task]["logloss"] for c in cells]),
                "pcoc": _stats([c[domain, task]["pcoc"] for c in cells]),
            }
            for domain, task in cells[0]
        ],
        "mean_auc": _stats([r.metrics[SPLIT]["mean_domain_auc"] for r in runs]),
        "mean_logloss": _stats([r.metrics[SPLIT]["mean_logloss"] for r in runs]),
        "validation_mean_auc": validation["mean"],
        "epochs": float(np.mean([r.epochs for r in runs])),
        "train_rows_per_sec": float(np.median(speeds)) if speeds else None,
        "num_parameters": runs[0].num_parameters,
        "workdirs": [str(r.workdir) for r in runs],
    }


def _stats(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "std": None}
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "std": std}


def _difference(main: Sequence[Result], other: Sequence[Result]) -> dict[str, Any]:
    ours = [Scores.load(run.scores_paths[SPLIT]) for run in main]
    theirs = [_aligned(Scores.load(run.scores_paths[SPLIT]), ours[0]) for run in other]
    count = min(len(ours), len(theirs))
    return compare_runs(
        domain=ours[0].domain,
        labels=ours[0].labels,
        label_mask=ours[0].label_mask,
        runs_a=[scores.logits for scores in ours[:count]],
        runs_b=[scores.logits for scores in theirs[:count]],
        domains=ours[0].domains,
        tasks=ours[0].tasks,
    )


def _aligned(scores: Scores, like: Scores) -> Scores:
    """Checks that two score files hold the same rows: both are sorted by row id."""
    if not np.array_equal(scores.row_id, like.row_id):
        raise ValueError(
            "compared runs must have scored the same rows; their row ids differ. Run "
            "them on the same data set."
        )
    return scores
