"""The comparison's numbers: means, spread over seeds, and differences with noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features.config import lookup_error
from models.comparison.experiment import Experiment
from models.metrics.auc import relaimpr, rimp
from models.metrics.compare import cell_shares, compare_runs
from models.training.evaluate import Scores
from models.training.result import Result

SPLIT = "test"
SIGNIFICANT = 0.05
# The two averages over cells: all the same, or domains weighed by their rows.
MEAN, DOMAIN_AUC = "mean_auc", "domain_auc"


def summarise(
    experiment: Experiment, results: Mapping[str, Sequence[Result]]
) -> dict[str, Any]:
    """Returns a JSON-able summary of all finished runs.

    The best baseline is chosen by validation; differences are on the test split, with
    the noise of test rows (DeLong) and of seeds.  Both average over cells as the runs
    do that stop on it: by rows where `metric` is `domain_auc`.  Where some entries
    serve fewer domains than others, the cells are those that all have, and `wide` is
    the same summary of the entries that serve the most.
    """
    domains = _domains(experiment, results)
    metrics = {run.metric for runs in results.values() for run in runs}
    average = DOMAIN_AUC if metrics == {DOMAIN_AUC} else MEAN
    entries = {label: _entry(runs, domains, average) for label, runs in results.items()}
    best = _best_baseline(experiment, entries)
    transfer = _transfer(experiment, results, domains, average)
    differences = {}
    if experiment.main in results:
        for role, label in (
            ("best_baseline", best),
            ("target_only", experiment.target_only),
        ):
            if label is not None and label in results and label != experiment.main:
                difference = _difference(
                    results[experiment.main], results[label], domains, average
                )
                differences[role] = {"label": label, **difference}
        if "target_only" in differences and experiment.main in transfer:
            differences["target_only"]["alarm"] = transfer[experiment.main]["alarm"]
        reference = entries[best][average]["mean"] if best else None
        entries[experiment.main]["relaimpr"] = relaimpr(
            entries[experiment.main][average]["mean"], reference
        )
    summary = {
        "experiment": experiment.name,
        "title": experiment.title,
        "main": experiment.main,
        "average": average,
        "entries": entries,
        "differences": differences,
        "transfer": transfer,
    }
    wide = _wide(results)
    if not experiment.domains and len(wide) < len(results):
        summary["wide"] = summarise(experiment, wide)
    return summary


def _transfer(
    experiment: Experiment,
    results: Mapping[str, Sequence[Result]],
    domains: Sequence[str],
    average: str,
) -> dict[str, dict[str, Any]]:
    """Returns what every entry gains over the target-only one, and where it hurts.

    Returns:
      label -> `mean` (of `compare_runs`), `alarm` and `rimp`, the ratio of the two
      average AUCs less 1 (SSCTL's RImp).  Empty without a target-only entry.
    """
    reference = experiment.target_only
    found: dict[str, dict[str, Any]] = {}
    if reference is None or reference not in results:
        return found
    for label, runs in results.items():
        if label == reference:
            continue
        gain = _difference(runs, results[reference], domains, average)
        if gain["mean"]:
            ours, theirs = gain["mean"]["auc_a"], gain["mean"]["auc_b"]
            found[label] = {
                "mean": gain["mean"],
                "alarm": alarm(gain),
                "rimp": rimp(ours, theirs),
            }
    return found


def _wide(results: Mapping[str, Sequence[Result]]) -> dict[str, Sequence[Result]]:
    """Returns the entries that serve the most domains."""
    counts = {k: len(runs[0].metrics[SPLIT]["cells"]) for k, runs in results.items()}
    most = max(counts.values(), default=0)
    return {label: results[label] for label, count in counts.items() if count == most}


def alarm(difference: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns whether transfer helped each domain and task, by the noise of its rows.

    Args:
      difference: Of a transfer method to a target-only model, as `compare_runs` gives.

    Returns:
      `hurt` (the negative-transfer alarm), `helped` and `unclear`: "<domain>/<task>".
    """
    found: dict[str, list[str]] = {"hurt": [], "helped": [], "unclear": []}
    for cell in difference["cells"]:
        known = cell["p_value"] is not None and cell["p_value"] <= SIGNIFICANT
        side = "helped" if cell["difference"] > 0 else "hurt"
        found[side if known else "unclear"].append(f"{cell['domain']}/{cell['task']}")
    return found


def _domains(
    experiment: Experiment, results: Mapping[str, Sequence[Result]]
) -> list[str]:
    """Returns the domains whose cells are compared: those that every entry scored."""
    served = [
        [cell["domain"] for cell in runs[0].metrics[SPLIT]["cells"]]
        for runs in results.values()
    ]
    common = [
        name
        for name in dict.fromkeys(served[0] if served else [])
        if all(name in names for names in served)
    ]
    for name in experiment.domains:
        if served and name not in common:
            raise lookup_error("experiment.domains", name, common)
    return experiment.domains or common


def _cells(run: Result, split: str, domains: Sequence[str]) -> list[dict[str, Any]]:
    cells = run.metrics[split]["cells"]
    by_domain = [[c for c in cells if c["domain"] == name] for name in domains]
    return [cell for part in by_domain for cell in part]


def _entry(
    runs: Sequence[Result], domains: Sequence[str], average: str
) -> dict[str, Any]:
    cells = [_cells(run, SPLIT, domains) for run in runs]
    speeds = [r.train_rows_per_sec for r in runs if r.train_rows_per_sec]
    validation = [_mean(_cells(r, "validation", domains), "auc", average) for r in runs]
    return {
        **over_seeds(cells),
        "validation": stats(validation)["mean"],
        "groups": _groups([r.metrics[SPLIT] for r in runs]),
        "epochs": float(np.mean([r.epochs for r in runs])),
        "train_rows_per_sec": float(np.median(speeds)) if speeds else None,
        "num_parameters": runs[0].num_parameters,
        "workdirs": [str(r.workdir) for r in runs],
    }


def over_seeds(cells: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Returns the metrics of each cell and their means, with the spread over seeds.

    Args:
      cells: By seed, the same cells of a metric table in the same order.
    """
    names = ("auc", "logloss", "pcoc")
    return {
        "seeds": len(cells),
        "cells": [
            {k: column[0][k] for k in ("domain", "task", "rows")}
            | {name: stats([cell[name] for cell in column]) for name in names}
            for column in zip(*cells, strict=True)
        ],
        MEAN: stats([_mean(part, "auc") for part in cells]),
        DOMAIN_AUC: stats([_mean(part, "auc", DOMAIN_AUC) for part in cells]),
        "mean_logloss": stats([_mean(part, "logloss") for part in cells]),
    }


def _mean(
    cells: Sequence[Mapping[str, Any]], name: str, average: str = MEAN
) -> float | None:
    known = [cell for cell in cells if cell[name] is not None]
    if not known:
        return None
    shares = cell_shares(known, by_rows=average == DOMAIN_AUC)
    return float(shares @ [cell[name] for cell in known])


def _groups(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns AUCs over all scored domains: pooled, weighted, of large and small."""
    first = tables[0]
    groups = {
        "AUC": [_mean(t["overall"], "auc") for t in tables],
        "DomainAUC": [t["domain_auc"][""] for t in tables],
    }
    for kind in ("major", "minor"):
        for size in first[kind]:
            groups[f"{kind.title()}{size}"] = [t[kind][size] for t in tables]
    return {name: stats(values) for name, values in groups.items()}


def stats(values: Sequence[float | None]) -> dict[str, float | None]:
    """Returns mean and std over seeds; None where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "std": None}
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "std": std}


def _best_baseline(experiment: Experiment, entries: Mapping[str, Any]) -> str | None:
    """Returns the best by validation AUC; of other methods, where there are any.

    Entries of the main one's method are its variants, not what it is measured against.
    """
    known = {
        label: values["validation"]
        for label, values in entries.items()
        if label != experiment.main and values["validation"] is not None
    }
    method = {label: entry.method for label, entry in experiment.entries.items()}
    others = {k: v for k, v in known.items() if method[k] != method[experiment.main]}
    chosen = others or known
    return max(chosen, key=chosen.__getitem__, default=None)


def _difference(
    main: Sequence[Result],
    other: Sequence[Result],
    domains: Sequence[str],
    average: str,
) -> dict[str, Any]:
    ours, theirs = (
        [Scores.load(run.scores_paths[SPLIT]).of_domains(domains) for run in runs]
        for runs in (main, other)
    )
    count = min(len(ours), len(theirs))
    return compare_scores(ours[:count], theirs[:count], average)


def compare_scores(
    ours: Sequence[Scores], theirs: Sequence[Scores], average: str = MEAN
) -> dict[str, Any]:
    """Returns `compare_runs` of two models' scores of the same rows, a seed each.

    Raises:
      ValueError: When they scored other rows.
    """
    first = ours[0]
    return compare_runs(
        domain=first.domain,
        labels=first.labels,
        label_mask=first.label_mask,
        runs_a=[scores.logits for scores in ours],
        runs_b=[_aligned(scores, first).logits for scores in theirs],
        domains=first.domains,
        tasks=first.tasks,
        by_rows=average == DOMAIN_AUC,
    )


def _aligned(scores: Scores, like: Scores) -> Scores:
    """Checks that two score files hold the same rows: both are sorted by row id."""
    if not np.array_equal(scores.row_id, like.row_id):
        raise ValueError(
            "compared runs must have scored the same rows; their row ids differ. Run "
            "them on the same data set."
        )
    return scores
