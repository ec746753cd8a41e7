"""From scores to metric tables, and from tables to the number a run stops on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.config import lookup_error
from models.metrics import table
from models.training.evaluate import Scores


def metrics_of(scores: Scores) -> table.MetricsTable:
    """Returns the metrics of all rows, by domain and task."""
    return table.domain_task_metrics(
        domain=scores.domain,
        labels=scores.labels,
        logits=scores.logits,
        domains=scores.domains,
        tasks=scores.tasks,
        label_mask=scores.label_mask,
        user_key=scores.user_key,
        weight=scores.weight,
    )


def metric_names(domains: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """Returns the metrics a run over these domains and tasks can stop on.

    Calibration (pcoc) is best at 1, neither high nor low, so it is not among them.
    """
    rows = np.zeros([1, len(tasks)])
    dummy = table.domain_task_metrics(
        domain=np.zeros(1, int),
        labels=rows,
        logits=rows,
        domains=domains,
        tasks=tasks,
    )
    return [name for name in dummy.scalars() if not name.startswith("pcoc/")]


def check_metric(name: str, domains: Sequence[str], tasks: Sequence[str]) -> None:
    """Refuses an unknown metric, naming the known ones and the nearest."""
    known = metric_names(domains, tasks)
    if name not in known:
        raise lookup_error("RunConfig.metric", name, known)


def is_better(name: str, value: float | None, best: float | None) -> bool:
    """Returns whether `value` is a gain over `best`; None = undefined.

    Anything beats undefined, undefined included: without any defined value the last
    evaluation is kept.
    """
    if best is None:
        return True
    if value is None:
        return False
    return sign(name) * value > sign(name) * best


def sign(name: str) -> int:
    """Returns 1 for a metric that is better high, -1 for one that is better low."""
    return -1 if "logloss" in name else 1


def format_table(metrics: dict[str, Any]) -> str:
    """Returns a text table of `MetricsTable.to_json()`: auc, logloss, rows by cell."""
    lines = [f"{'domain':<16} {'task':<14} {'auc':>8} {'logloss':>8} {'rows':>10}"]
    for cell in (*metrics["cells"], *metrics["overall"]):
        lines.append(
            f"{cell['domain'] or '(all)':<16} {cell['task']:<14} "
            f"{_number(cell['auc'])} {_number(cell['logloss'])} {cell['rows']:>10,}"
        )
    lines.append(
        f"{'mean of cells':<16} {'':<14} {_number(metrics['mean_domain_auc'])} "
        f"{_number(metrics['mean_logloss'])}"
    )
    if metrics["undefined"]:
        lines.append(
            f"{len(metrics['undefined'])} cells have one class only: AUC undefined, "
            "left out of means."
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:>8.4f}"
