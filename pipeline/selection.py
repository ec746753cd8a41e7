"""Options and report of the graph-guided choice of source rows."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import pydantic
from pydantic import Field

from features.config import Config
from features.dataset import DatasetInfo
from pipeline.errors import JobError
from pipeline.similarity import SimilarOptions

WALKED_HOPS = 3  # 0, 1 and 2
SIMILAR_HOP = 3  # not walked to: like a seed
HOPS = 4


class SelectOptions(Config):
    """Options of one run.  None of `num_buckets` and `beam_args` changes a byte."""

    data_dir: str = Field(description="prepared data set, seen by every worker")
    target_domains: tuple[str, ...] = Field(min_length=1)
    source_domains: tuple[str, ...] = Field(
        (), description="domains of the graph; default: all but the target's"
    )
    edge_tasks: tuple[str, ...] = Field(
        (), description="a positive label of one of them is an edge; default: all"
    )
    hops: int = Field(2, ge=0, le=2)
    degree_cap: int = Field(100, ge=1, description="edges that a node hands on")
    min_co_clicks: int = Field(
        2, ge=1, description="users who link an item to one seed item, for hop two"
    )
    cluster_features: tuple[str, ...] = Field(
        (), description="user or item features: members of a cluster are two hops off"
    )
    cluster_min_share: float = Field(
        0.1, gt=0, le=1, description="seeds among the nodes of a cluster that counts"
    )
    similar: SimilarOptions | None = Field(
        None, description="nodes like the seeds are added too, as hop 3; default: none"
    )
    require_seed: bool = Field(True, description="user or item must be a seed")
    max_ratio: float = Field(3.0, gt=0, description="rows kept a target row, at most")
    cutoff_day: int | None = Field(
        None, description="YYYYMMDD: no edge and no seed is newer"
    )
    first_day: int | None = Field(None, description="of the rows that may be chosen")
    last_day: int | None = Field(
        None, description="of the rows that may be chosen; default: cutoff_day"
    )
    item_feature: str | None = Field(
        None, description="default: the feature that reads keys.item"
    )
    name: str = Field("gst", pattern=r"^[A-Za-z][A-Za-z0-9_=-]*$")
    seed: int = Field(0, ge=0)
    rows_per_file: int = Field(131_072, ge=1)
    num_buckets: int = Field(32, ge=1, le=65_535)
    overwrite: bool = False
    show_progress: bool = False
    beam_args: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SelectOptions":
        if self.cluster_features and self.hops < 2:
            raise ValueError("cluster_features needs hops=2: clusters are hop two")
        last = self.cutoff_day if self.last_day is None else self.last_day
        if self.first_day is not None and last is not None and self.first_day > last:
            raise ValueError(
                f"first_day must not be after last_day (or cutoff_day); got "
                f"{self.first_day} and {last}"
            )
        return self

    @property
    def row_days(self) -> tuple[int, int]:
        """First and last day of the rows that may be chosen."""
        last = self.cutoff_day if self.last_day is None else self.last_day
        return self.first_day or 0, 99_999_999 if last is None else last


def most_rows(counts: Mapping[Any, int], max_ratio: float) -> int:
    """Returns how many rows may be kept; counts as of `graph_look.Look`."""
    target = counts.get(("target",), 0)
    if not target:
        raise JobError(
            "target_domains must have training rows in the days asked for; got none. "
            "Check the domains, and first_day and last_day."
        )
    return math.floor(max_ratio * target)


def report(
    options: SelectOptions,
    chosen: DatasetInfo,
    source: Collection[str],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what `selection.json` says.

    Args:
      options: Of the run.
      chosen: Of the stream that was written.
      source: Domains whose rows may be chosen.
      summary: Of the pipeline: `counts` of rows, and `hops` by (what, hop).
    """
    counts, tasks = summary["counts"], chosen.spec.task_names
    by_domain = {}
    for index, name in enumerate(chosen.fitted.domains):
        if name not in source:
            continue
        rows = counts.get(("source", index), 0)
        cell = chosen.counts["train"][name]
        by_domain[name] = {
            "source_rows": rows,
            "rows": cell["rows"],
            "share_kept": _ratio(cell["rows"], rows),
            "source_positive_rate": {
                task: _ratio(
                    counts.get(("positives", index, task), 0),
                    counts.get(("labelled", index, task), 0),
                )
                for task in tasks
            },
            "positive_rate": {
                task: _ratio(cell["positives"][task], cell["labelled"][task])
                for task in tasks
            },
        }
    rows = sum(cell["rows"] for cell in by_domain.values())
    source_rows = sum(cell["source_rows"] for cell in by_domain.values())
    unsaid = {"data_dir", "overwrite", "show_progress", "beam_args"}
    unsaid |= set() if options.similar else {"similar"}
    settings = options.model_dump(mode="json", exclude=unsaid)
    hops = HOPS if options.similar else WALKED_HOPS
    return {
        "fingerprint": chosen.fingerprint,
        "settings": settings,
        "target_rows": counts.get(("target",), 0),
        "max_rows": most_rows(counts, options.max_ratio),
        "source_rows": source_rows,
        "rows": rows,
        "share_kept": _ratio(rows, source_rows),
        "rows_by_hop": _by_hop(summary["hops"], "kept", hops),
        "rows_by_hop_before_limit": _by_hop(summary["hops"], "found", hops),
        "nodes": {
            side: _by_hop(summary["hops"], side, hops) for side in ("users", "items")
        },
        "domains": by_domain,
    }


def _by_hop(
    counts: Mapping[tuple[str, int], int], what: str, hops: int
) -> dict[str, int]:
    return {str(hop): counts.get((what, hop), 0) for hop in range(hops)}


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
