"""Metrics of an evaluated split, by domain and task."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.metrics import auc as auc_lib

Array = np.ndarray
MAJOR_SIZES = (5,)
MINOR_SIZES = (10, 5)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Metrics of some rows for one task; None = undefined.

    Attributes:
      domain: Domain name; "" = all domains pooled.
      task: Task name.
      rows: Rows whose label counts.
      positives: Rows with label 1.
      auc: Exact AUC; None where a class is missing.
      logloss: Mean log loss; None without rows.
      pcoc: Predicted over observed positives; None without positives.
      gauc: AUC inside users, weighted by rows; None without a user of both classes.
      gauc_skipped: Users of one class, left out of `gauc`.
    """

    domain: str
    task: str
    rows: int
    positives: int
    auc: float | None
    logloss: float | None
    pcoc: float | None
    gauc: float | None
    gauc_skipped: int


@dataclasses.dataclass(frozen=True)
class MetricsTable:
    """All metrics of one model on one split.

    Attributes:
      cells: One per (domain, task), in this order; rows of 0 included.
      overall: One per task, all domains pooled.
      mean_domain_auc: Mean AUC over defined cells; what early stopping reads.
      mean_logloss: Mean log loss over cells with rows.
      domain_auc: AUC by domain weighted by the domain's share of evaluated rows,
        by task; `""` = mean over tasks.
      major: The same over the k largest domains, by k, mean over tasks.
      minor: Over the k smallest.
      undefined: (domain, task) of cells without AUC.
    """

    cells: tuple[Cell, ...]
    overall: tuple[Cell, ...]
    mean_domain_auc: float | None
    mean_logloss: float | None
    domain_auc: dict[str, float | None]
    major: dict[int, float | None]
    minor: dict[int, float | None]
    undefined: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; None = undefined."""
        values = dataclasses.asdict(self)
        values["num_undefined"] = len(self.undefined)
        for name in ("major", "minor"):
            values[name] = {str(k): v for k, v in values[name].items()}
        for name in ("cells", "overall", "undefined"):
            values[name] = [
                list(v) if isinstance(v, tuple) else v for v in values[name]
            ]
        return values

    def scalars(self) -> dict[str, float | None]:
        """Returns numbers by name, to log and to stop on.

        Names: `mean_domain_auc`, `mean_logloss`, `domain_auc`, `major5_auc` ...,
        `auc/<task>` (pooled) and `auc/<domain>/<task>`, likewise logloss, gauc, pcoc.
        """
        result = {
            "mean_domain_auc": self.mean_domain_auc,
            "mean_logloss": self.mean_logloss,
            "domain_auc": self.domain_auc[""],
        }
        result |= {f"major{k}_auc": v for k, v in self.major.items()}
        result |= {f"minor{k}_auc": v for k, v in self.minor.items()}
        for cell in (*self.overall, *self.cells):
            place = f"{cell.domain}/{cell.task}" if cell.domain else cell.task
            for name in ("auc", "logloss", "gauc", "pcoc"):
                result[f"{name}/{place}"] = getattr(cell, name)
        return result


def domain_task_metrics(
    *,
    domain: Any,
    labels: Any,
    logits: Any,
    domains: Sequence[str],
    tasks: Sequence[str],
    label_mask: Any = None,
    user_key: Any = None,
    weight: Any = None,
    major_sizes: Sequence[int] = MAJOR_SIZES,
    minor_sizes: Sequence[int] = MINOR_SIZES,
) -> MetricsTable:
    """Returns the metrics of all rows of a split.

    Args:
      domain: [N] domain index, 0..D-1.
      labels: [N, T] 0 or 1 where not masked.
      logits: [N, T] finite.
      domains: D names in index order.
      tasks: T names.
      label_mask: [N, T], nonzero where the label counts; None = all.
      user_key: [N] ids for `gauc`; None = no gauc.
      weight: [N] row weights of auc, logloss and pcoc; None = 1.  Row counts, `gauc`
        and the shares of domains are not weighted.
      major_sizes: Values of k for the largest domains (ties: lower index first);
        those above D are left out.
      minor_sizes: Values of k for the smallest.

    Raises:
      ValueError: For shapes that differ, a domain index out of range, NaN logits.
    """
    domain, labels, logits = map(np.asarray, (domain, labels, logits))
    mask = np.ones(labels.shape, bool) if label_mask is None else np.asarray(label_mask)
    mask = mask > 0
    _check(domain, (labels, logits, mask), len(domains), len(tasks))
    columns = (labels, logits, mask, user_key, weight)
    rows_of = [np.flatnonzero(domain == d) for d in range(len(domains))]
    cells = tuple(
        _cell(name, task, t, rows, *columns)
        for name, rows in zip(domains, rows_of, strict=True)
        for t, task in enumerate(tasks)
    )
    everything = np.arange(domain.size)
    overall = tuple(
        _cell("", task, t, everything, *columns) for t, task in enumerate(tasks)
    )
    by_task = {task: [c for c in cells if c.task == task] for task in tasks}
    domain_auc = {task: _weighted(part) for task, part in by_task.items()}
    domain_auc[""] = _mean(list(domain_auc.values()))
    sizes = np.array([rows.size for rows in rows_of])
    largest = np.argsort(-sizes, kind="stable")
    smallest = np.argsort(sizes, kind="stable")

    def over(chosen: Array) -> float | None:
        return _mean([_weighted([p[d] for d in chosen]) for p in by_task.values()])

    return MetricsTable(
        cells=cells,
        overall=overall,
        mean_domain_auc=_mean([c.auc for c in cells]),
        mean_logloss=_mean([c.logloss for c in cells]),
        domain_auc=domain_auc,
        major={k: over(largest[:k]) for k in major_sizes if k <= len(domains)},
        minor={k: over(smallest[:k]) for k in minor_sizes if k <= len(domains)},
        undefined=tuple((c.domain, c.task) for c in cells if c.auc is None),
    )


def _cell(
    name: str,
    task: str,
    t: int,
    rows: Array,
    labels: Array,
    logits: Array,
    mask: Array,
    user_key: Any,
    weight: Any,
) -> Cell:
    rows = rows[mask[rows, t]]
    y, z = labels[rows, t], logits[rows, t]
    w = None if weight is None else np.asarray(weight)[rows]
    grouped = auc_lib.GroupedAUC(None, 0, 0)
    if user_key is not None:
        grouped = auc_lib.gauc(y, z, np.asarray(user_key)[rows])
    return Cell(
        domain=name,
        task=task,
        rows=int(rows.size),
        positives=int(y.sum()),
        auc=auc_lib.auc(y, z, w),
        logloss=auc_lib.logloss(y, logits=z, weights=w),
        pcoc=auc_lib.pcoc(y, auc_lib.probs_of(z), w),
        gauc=grouped.value,
        gauc_skipped=grouped.num_skipped,
    )


def _weighted(cells: Sequence[Cell]) -> float | None:
    defined = [c for c in cells if c.auc is not None]
    if not defined:
        return None
    return float(
        np.average([c.auc for c in defined], weights=[c.rows for c in defined])
    )


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined else None


def _check(
    domain: Array, tables: Sequence[Array], num_domains: int, num_tasks: int
) -> None:
    for name, table in zip(("labels", "logits", "label_mask"), tables, strict=True):
        if table.shape != (domain.size, num_tasks):
            raise ValueError(
                f"domain_task_metrics.{name} must have shape "
                f"{(domain.size, num_tasks)}; got {table.shape}."
            )
    if domain.size and not 0 <= domain.min() <= domain.max() < num_domains:
        raise ValueError(
            f"domain_task_metrics.domain must be in 0..{num_domains - 1}; got "
            f"{domain.min()}..{domain.max()}. Map unknown domains before evaluation."
        )
