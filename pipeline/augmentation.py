"""Options, quotas and report of counterfactual augmentation."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from features.config import Config, lookup_error
from features.dataset import DatasetInfo
from features.derive import augmentation
from pipeline.errors import JobError

POSITIVE, NEGATIVE = "positive", "negative"
DEFAULT_COLD_ROWS = 4  # the official code's, for Amazon


class AugmentOptions(Config):
    """Options of one run.  `beam_args` change no byte of the result."""

    data_dir: str = Field(description="prepared data set, seen by every worker")
    task: str | None = Field(None, description="whose positives; default: the first")
    mode: Literal["capped", "paper"] = Field(
        "capped", description="capped: at most max_copies copies a real row of a domain"
    )
    rate: float = Field(0.1, gt=0, le=1, description="copies a training row, in all")
    max_copies: float = Field(4.0, gt=0, description="of mode capped")
    major_share: float = Field(
        0.03, gt=0, lt=1, description="domains above give rows; share of all rows"
    )
    minor_share: float = Field(
        0.02, gt=0, lt=1, description="domains up to here get copies"
    )
    cold_by: Literal["rate", "rows"] = Field(
        "rate", description="an item is unpopular by its positive rate or its rows"
    )
    cold_at_most: float | None = Field(
        None, gt=0, description="default: the rate over all rows, or 4 rows"
    )
    negatives: bool = Field(
        False, description="negatives too, so that a domain keeps its positive rate"
    )
    include_train: bool = Field(
        True, description="the training rows too, not copies only"
    )
    item_feature: str | None = None
    name: str = Field("augmented", pattern=r"^[A-Za-z][A-Za-z0-9_=-]*$")
    seed: int = Field(0, ge=0)
    rows_per_file: int = Field(131_072, ge=1)
    overwrite: bool = False
    show_progress: bool = False
    beam_args: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Quotas:
    """How many copies go where.

    Attributes:
      task: Task whose positives are copied.
      majors: Indices of the domains that give rows.
      minors: Indices of the domains that get copies.
      copies: (kind, domain index) -> copies.
    """

    task: str
    majors: tuple[int, ...]
    minors: tuple[int, ...]
    copies: Mapping[tuple[str, int], int]

    @classmethod
    def of(cls, options: AugmentOptions, info: DatasetInfo) -> "Quotas":
        """Returns the quotas, from counts of training rows.

        Raises:
          JobError: When no domain is large, or none small, enough.
          LookupError: For an unknown task.
        """
        tasks = info.spec.task_names
        task = tasks[0] if options.task is None else options.task
        if task not in tasks:
            raise lookup_error("task", task, tasks)
        domains = info.fitted.domains
        rows = np.array([info.num_rows("train", name) for name in domains])
        shares = rows / max(int(rows.sum()), 1)
        majors = np.flatnonzero(shares > options.major_share)
        minors = np.flatnonzero((shares <= options.minor_share) & (rows > 0))
        for what, found in (("major_share", majors), ("minor_share", minors)):
            if not len(found):
                listed = ", ".join(
                    f"{name} {share:.4f}"
                    for name, share in zip(domains, shares, strict=True)
                )
                raise JobError(
                    f"{what} must leave a domain; got {getattr(options, what)} and "
                    f"shares of training rows {listed}. Choose another share."
                )
        total = round(options.rate * int(rows.sum()))
        wanted = augmentation.whole_numbers(
            augmentation.shares_of_copies(rows[minors], total), total
        )
        if options.mode == "capped":
            limit = np.floor(options.max_copies * rows[minors]).astype(np.int64)
            wanted = np.minimum(wanted, limit)
        copies = {}
        for d, count in zip(minors.tolist(), wanted.tolist(), strict=True):
            positives = count
            if options.negatives:
                cell = info.counts["train"][domains[d]]
                real = cell["positives"][task] / max(cell["labelled"][task], 1)
                positives = round(count * real)
                copies[NEGATIVE, d] = count - positives
            copies[POSITIVE, d] = positives
        return cls(task, tuple(majors.tolist()), tuple(minors.tolist()), copies)


@dataclasses.dataclass(frozen=True)
class ColdItems:
    """Items of training rows, and which of them are unpopular.

    Attributes:
      items: Encoded ids, ascending, int64 [N].
      weights: Draw weights, int64 [N].
      is_cold: bool [N].
      at_most: Popularity (or rows) up to which an item is unpopular.
    """

    items: np.ndarray
    weights: np.ndarray
    is_cold: np.ndarray
    at_most: float

    @classmethod
    def of(cls, counts: np.ndarray, options: AugmentOptions) -> "ColdItems":
        """Returns it from `items, rows, positives` of training rows, int64 [3, N]."""
        items, rows, positives = counts
        if options.cold_by == "rows":
            at_most = options.cold_at_most or float(DEFAULT_COLD_ROWS)
            is_cold = rows <= at_most
        else:
            at_most = options.cold_at_most or positives.sum() / max(rows.sum(), 1)
            is_cold = augmentation.popularity(positives, rows) <= at_most
        weights = augmentation.draw_weights(positives, rows)
        return cls(items, weights, is_cold, float(at_most))


def report(
    options: AugmentOptions,
    info: DatasetInfo,
    quotas: Quotas,
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what `augmentation.json` says.

    Args:
      options: Of the run.
      info: Of the data set.
      quotas: Copies wanted.
      summary: Of the pipeline: `copies` by (kind, domain index), `candidates` by
        kind, `items`, `cold_items`, `cold_at_most`.
    """
    domains = {}
    for d, name in enumerate(info.fitted.domains):
        cell = info.counts["train"][name]
        real, positives = cell["labelled"][quotas.task], cell["positives"][quotas.task]
        copies = {
            kind: summary["copies"].get((kind, d), 0) for kind in (POSITIVE, NEGATIVE)
        }
        added = sum(copies.values())
        part = "major" if d in quotas.majors else "minor" if d in quotas.minors else ""
        domains[name] = {
            "part": part,
            "rows": cell["rows"],
            "positive_rate": _ratio(positives, real),
            "copies": copies,
            "copies_a_row": _ratio(added, cell["rows"]),
            "positive_rate_with_copies": _ratio(
                positives + copies[POSITIVE], real + added
            ),
        }
    settings = options.model_dump(
        mode="json", exclude={"data_dir", "overwrite", "show_progress", "beam_args"}
    )
    return {
        "fingerprint": info.fingerprint,
        "settings": settings,
        "task": quotas.task,
        "items": summary["items"],
        "cold_items": summary["cold_items"],
        "cold_at_most": summary["cold_at_most"],
        "candidates": dict(sorted(summary["candidates"].items())),
        "copies": sum(summary["copies"].values()),
        "domains": domains,
    }


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
