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


def to_text(summary: Mapping[str, Any]) -> str:
    """Returns the table that is printed: AUC x 100, mean +- std over seeds."""
    entries = summary["entries"]
    if not entries:
        return "no run has finished yet"
    heads = [
        f"{c['domain']}/{c['task']}" for c in next(iter(entries.values()))["cells"]
    ]
    width = max(14, *(len(head) + 1 for head in heads))
    lines = [
        f"{'AUC x 100':18}"
        + "".join(f"{head:>{width}}" for head in heads)
        + f"{'mean':>14}{'logloss':>9}{'rows/s':>10}{'params':>10}{'seeds':>6}"
    ]
    order = sorted(entries, key=lambda k: -(entries[k]["mean_auc"]["mean"] or 0))
    for label in order:
        entry = entries[label]
        mark = "*" if label == summary["main"] else " "
        cells = "".join(f"{_shown(c['auc']):>{width}}" for c in entry["cells"])
        speed = entry["train_rows_per_sec"]
        loss = entry["mean_logloss"]["mean"]
        lines.append(
            f"{mark}{label:17}{cells}{_shown(entry['mean_auc']):>14}"
            f"{'-' if loss is None else format(loss, '.4f'):>9}"
            f"{'-' if speed is None else format(speed, ',.0f'):>10}"
            f"{entry['num_parameters']:>10,}{entry['seeds']:>6}"
        )
    for role, values in summary["differences"].items():
        mean = values["mean"]
        lines.append(
            f"{summary['main']} - {values['label']} ({role.replace('_', ' ')}): "
            f"{100 * mean['difference']:+.2f} AUC x 100, noise of test rows "
            f"{_error(mean['standard_error_rows'])}, of seeds "
            f"{_error(mean['standard_error_seeds'])}, p = {_p(mean['p_value'])}"
        )
    return "\n".join(lines)


def _shown(stats: Mapping[str, float | None]) -> str:
    if stats["mean"] is None:
        return "undefined"
    spread = "" if stats["std"] is None else f" +-{100 * stats['std']:.2f}"
    return f"{100 * stats['mean']:.2f}{spread}"


def _error(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f}"


def _p(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def to_markdown(summary: Mapping[str, Any], published: Mapping[str, Any]) -> str:
    """Returns the result page: table, differences, published numbers."""
    entries = summary["entries"]
    heads = [
        f"{c['domain']} {c['task']}" for c in next(iter(entries.values()))["cells"]
    ]
    columns = ["entry", *heads, "mean", "LogLoss", "rows/s", "seeds"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for label, entry in sorted(
        entries.items(), key=lambda item: -(item[1]["mean_auc"]["mean"] or 0)
    ):
        speed, loss = entry["train_rows_per_sec"], entry["mean_logloss"]["mean"]
        row = [
            f"**{label}**" if label == summary["main"] else label,
            *(_shown(c["auc"]) for c in entry["cells"]),
            _shown(entry["mean_auc"]),
            "-" if loss is None else f"{loss:.4f}",
            "-" if speed is None else f"{speed:,.0f}",
            str(entry["seeds"]),
        ]
        lines.append("| " + " | ".join(row) + " |")
    for label, values in published.items():
        cells = [f"{v:.2f}" for v in values]
        mean = f"{np.mean(values):.2f}"
        lines.append("| " + " | ".join([label, *cells, mean, "", "", ""]) + " |")
    text = to_text(summary).split("\n")
    notes = [line for line in text if " AUC x 100, noise" in line]
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
