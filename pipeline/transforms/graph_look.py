"""What a row has to do with the graph: an edge, a seed, one that may be chosen."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features.config import lookup_error
from features.dataset import Dataset
from features.derive import graph as pairs
from features.schema import LABEL_PREFIX
from features.spec import NUM_RESERVED_IDS, Categorical
from pipeline.errors import JobError
from pipeline.selection import SelectOptions
from pipeline.transforms import (
    graph,
    graph_clusters,
    graph_rows,
    prepared,
    record_batches,
)

ROWS, COUNTS = "rows", "counts"
_MEMBERS = "members"


class SelectionPlan:
    """What a run asks of its data set: columns and domain indices, checked.

    Attributes:
      item: Column that tells items apart.
      tasks: Tasks whose positive labels are edges.
      target: By domain index whether it is a target, bool [D].
      source: By domain index whether its rows are in the graph, bool [D].
      clusters: Cluster features by the side they group, `users` or `items`.
      has_days: Whether rows have a day.

    Raises:
      JobError: For domains, features or days that cannot be.
      LookupError: For a domain or task that the data set does not have.
    """

    def __init__(self, options: SelectOptions, dataset: Dataset) -> None:
        info = dataset.info
        self.item = prepared.item_column(dataset, options.item_feature)
        self.tasks = options.edge_tasks or info.spec.task_names
        for task in self.tasks:
            if task not in info.spec.task_names:
                raise lookup_error("edge_tasks", task, info.spec.task_names)
        self.all_tasks = info.spec.task_names
        domains = list(info.fitted.domains)
        for owner in ("target_domains", "source_domains"):
            for name in getattr(options, owner):
                if name not in domains:
                    raise lookup_error(owner, name, domains)
        self.target = np.isin(domains, options.target_domains)
        self.source = (
            np.isin(domains, options.source_domains)
            if options.source_domains
            else ~self.target
        )
        if not self.chosen_domains.any():
            raise JobError(
                "source_domains must hold a domain besides the target; got "
                f"{', '.join(options.source_domains) or 'none'} (data set "
                f"{info.spec.name} has {', '.join(domains)})."
            )
        self.has_days = info.spec.day_source is not None
        prepared.train_days(
            dataset,
            cutoff_day=options.cutoff_day,
            first_day=options.first_day,
            last_day=options.last_day,
        )
        self.clusters = {
            name: _side(info.spec.feature(name)) for name in options.cluster_features
        }

    @property
    def chosen_domains(self) -> np.ndarray:
        """By domain index whether its rows may be chosen, bool [D]."""
        result: np.ndarray = self.source & ~self.target
        return result

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns to read."""
        labels = [LABEL_PREFIX + task for task in self.all_tasks]
        days = ["day"] if self.has_days else []
        keys = ["row_id", "user_key", "domain", self.item]
        return tuple(dict.fromkeys([*keys, *labels, *days, *self.clusters]))


def _side(feature: Any) -> str:
    sides = {"user": graph.USERS, "item": graph.ITEMS}
    if not isinstance(feature, Categorical) or feature.role not in sides:
        raise JobError(
            "cluster_features must be categorical features of users or items; got "
            f"{feature.name!r}, which is {feature.kind} of {feature.role}."
        )
    return sides[feature.role]


def members(feature: str) -> str:
    """Returns the tag of a cluster feature's links."""
    return f"{_MEMBERS}_{feature}"


@beam.typehints.with_output_types(pa.RecordBatch)
class Look(beam.DoFn):
    """Rows -> candidates; tagged: edges, seeds of both sides, members, counts."""

    def __init__(self, plan: SelectionPlan, options: SelectOptions) -> None:
        self._plan, self._options = plan, options

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """Yields one batch of candidates, and the tagged outputs."""
        plan, options = self._plan, self._options
        user, item, domain = (
            record_batches.integers(batch, name)
            for name in ("user_key", plan.item, "domain")
        )
        is_target, in_graph = plan.target[domain], plan.source[domain]
        is_known = item >= NUM_RESERVED_IDS  # unknown items are no node
        early, in_period = self._days(batch)
        seeds = is_target & early
        users = pairs.distinct(user[seeds])
        items = pairs.distinct(item[seeds & is_known])
        yield _tagged(graph.USERS, graph.links(users, 0 * users, graph.SEED))
        yield _tagged(graph.ITEMS, graph.links(items, 0 * items, graph.SEED))
        is_edge = in_graph & early & is_known & self._has_edge(batch)
        yield _tagged(
            graph.LINKS, graph.links(user[is_edge], item[is_edge], graph.EDGE)
        )
        may = in_graph & ~is_target & in_period
        for feature, side in plan.clusters.items():
            cluster = record_batches.integers(batch, feature)
            node = user if side == graph.USERS else item
            member = in_graph & early & (cluster >= NUM_RESERVED_IDS)
            member &= is_known | (side == graph.USERS)
            links = graph_clusters.memberships(node[member], cluster[member])
            yield _tagged(members(feature), links)
        yield _tagged(COUNTS, self._counts(batch, domain, may, is_target & in_period))
        rows = np.flatnonzero(may & is_known)
        row_id = record_batches.integers(batch, "row_id")[rows]
        # One bit less, so that the order is a non-negative int64.
        order = record_batches.order_keys(row_id, options.seed) >> np.uint64(1)
        place = record_batches.integers(batch, prepared.PLACE)[rows]
        yield graph_rows.candidates(user[rows], item[rows], place, order, domain[rows])

    def _days(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Returns which rows may be edges and seeds, and which may be chosen."""
        if not self._plan.has_days:
            ones = np.ones(batch.num_rows, bool)
            return ones, ones
        day, cutoff = record_batches.integers(batch, "day"), self._options.cutoff_day
        first, last = self._options.row_days
        early = np.ones(len(day), bool) if cutoff is None else day <= cutoff
        return early, (day >= first) & (day <= last)

    def _has_edge(self, batch: pa.RecordBatch) -> np.ndarray:
        labels = [
            record_batches.integers(batch, LABEL_PREFIX + task) == 1
            for task in self._plan.tasks
        ]
        result: np.ndarray = np.logical_or.reduce(labels)
        return result

    def _counts(
        self,
        batch: pa.RecordBatch,
        domain: np.ndarray,
        may: np.ndarray,
        is_target: np.ndarray,
    ) -> dict[Any, int]:
        counts: dict[Any, int] = {("target",): int(is_target.sum())}
        size = len(self._plan.target)
        for index, rows in enumerate(np.bincount(domain[may], minlength=size)):
            counts["source", index] = int(rows)
        for task in self._plan.all_tasks:
            label = record_batches.integers(batch, LABEL_PREFIX + task)
            for what, which in (("labelled", label >= 0), ("positives", label == 1)):
                found = np.bincount(domain[may & which], minlength=size)
                for index, rows in enumerate(found):
                    counts[what, index, task] = int(rows)
        return counts


def _tagged(tag: str, value: Any) -> Any:
    return beam.pvalue.TaggedOutput(tag, value)
