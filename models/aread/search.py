"""`MaskSearch`: finds each domain's mask (HEMP), and tells what it found."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from models.aread import masks as masks_lib
from models.aread.config import Plan, SearchConfig, plan_search
from models.aread.history import SearchState
from models.aread.masks import Mask
from models.aread.trial import Trial
from models.method import Stream
from tfrecords_tools.batch import Batch

Draw = Callable[[str], Batch | None]
TRAIN_STREAM = "search/"  # + domain: rows to train candidates on
SCORE_STREAM = "score/"  # + domain: training rows to choose by

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DomainResult:
    """What the search found for one domain.

    Attributes:
      masks: The candidates, pruned.
      scores: Their losses on the same rows.
      chosen: Index of the lowest; of equal ones the first.
    """

    masks: list[Mask]
    scores: list[float]
    chosen: int


class MaskSearch:
    """Hierarchical expert mask pruning over all domains.

    For each domain: Z candidates around its largest mean gates, each trained for k
    batches from the same weights and pruned after each, the best on training rows is
    taken.  All random draws follow from (seed, searches done, domain).

    Source: Luo et al., AAAI 2025 (AREAD), Algorithm 1.
    Differs: edges are ranked by gate times fan-in (`prune_rank`); S is a hard floor
    (the published settings end at 0.54, above it); dead edges are removed; all
    candidates of a domain are scored on the same rows.

    Args:
      model: With `hierarchy`.
      state: Seed, counter and mean gates.
      config: Settings.
      domains: Names in index order.
      trial: How candidates are trained.

    Attributes:
      last: Results of the last search by domain; empty before.
    """

    def __init__(
        self,
        model: Any,
        state: SearchState,
        config: SearchConfig,
        domains: Sequence[str],
        trial: Trial,
    ):
        self.model = model
        self.state = state
        self.config = config
        self.domains = tuple(domains)
        self.trial = trial
        self.last: dict[str, DomainResult] = {}

    def run(self, draw: Draw) -> dict[str, float]:
        """Searches every domain's mask and puts it in force; returns scalars.

        A domain without training rows keeps its mask.

        Args:
          draw: Gives the next batch of a stream of `search_streams`.
        """
        plan = plan_search(self.config, int(self.state.searches.numpy()))
        now = [g.numpy() for g in self.model.hierarchy.gates()]
        new = [m.numpy() for m in self.model.hierarchy.masks]
        self.last = {}
        for index, name in enumerate(self.domains):
            result = self.search_domain(index, draw, plan, now)
            if result is None:
                continue
            self.last[name] = result
            for values, layer in zip(new, result.masks[result.chosen], strict=True):
                values[index] = layer
        for variable, values in zip(self.model.hierarchy.masks, new, strict=True):
            variable.assign(values)
        self.state.searches.assign_add(1)
        values = mask_scalars(new, self.config.min_density)
        _log.info(
            "mask search %d: densities %.3f to %.3f, min_density %g not reached by "
            "%d of %d domains",
            int(self.state.searches.numpy()),
            values["density_least"],
            values["density_largest"],
            self.config.min_density,
            values["above_min_density"],
            len(self.domains),
        )
        return {"domains": float(len(self.last)), **values}

    def search_domain(
        self, domain: int, draw: Draw, plan: Plan, gates: list[np.ndarray]
    ) -> DomainResult | None:
        """Returns what is found for one domain; nothing is put in force.

        Args:
          domain: Index.
          draw: As in `run`.
          plan: Of this search.
          gates: Gates of now, for a domain without a mean.
        """
        name = self.domains[domain]
        score = _draw_some(draw, SCORE_STREAM + name, self.config.score_batches)
        if not score:
            return None
        steps = self.config.candidate_steps
        train = _draw_some(draw, TRAIN_STREAM + name, steps)
        # No augmented row of this domain: its plain ones.
        train = train or _draw_some(draw, SCORE_STREAM + name, steps)
        masks = self.candidates(domain, plan, gates)
        masks, scores = self.trial.run(domain, masks, train, score)
        # A candidate that diverged is never chosen before one that did not.
        ranked = np.where(np.isfinite(scores), scores, np.inf)
        return DomainResult(masks, scores, int(np.argmin(ranked)))

    def candidates(
        self, domain: int, plan: Plan, gates: list[np.ndarray]
    ) -> list[Mask]:
        """Returns the candidates of a domain before training; see `search_domain`."""
        mean = self.state.mean_gates(domain, gates)
        scores = masks_lib.scores_of(mean, self.config.prune_rank)
        floor = masks_lib.floor_edges(scores, self.config.min_density)
        start = masks_lib.top(scores, plan.keep_rate, floor)
        rng = self.state.generator(domain)
        return [
            masks_lib.candidate(start, plan.flip_rate, floor, rng)
            for _ in range(plan.num_candidates)
        ]


def search_streams(domains: Sequence[str], config: SearchConfig) -> dict[str, Stream]:
    """Returns two streams a domain, drawn by the search only.

    With `augmented_path` candidates train on those rows; they are always chosen by
    rows of the plain training split.
    """
    streams = {}
    for name in domains:
        plain = Stream(
            domains=(name,), batch_share=config.search_batch_share, event_only=True
        )
        streams[SCORE_STREAM + name] = plain
        streams[TRAIN_STREAM + name] = dataclasses.replace(
            plain, path=config.augmented_path
        )
    return streams


def mask_scalars(
    masks: Sequence[np.ndarray], min_density: float
) -> Mapping[str, float]:
    """Returns means over domains: density, overlap of pairs, active outputs.

    And the least and the largest density of a domain, and `above_min_density`: domains
    that could lose an edge more, 0 when S is reached everywhere.

    Args:
      masks: [D, N_l, N_{l+1}] for each pair of layers.
      min_density: S.
    """
    density = masks_lib.density(masks)
    floor = masks_lib.floor_edges([m[0] for m in masks], min_density)
    values = {
        "density": float(np.mean(density)),
        "density_least": float(np.min(density)),
        "density_largest": float(np.max(density)),
        "above_min_density": float(np.sum(masks_lib.count(masks) > floor)),
    }
    count = len(masks[0])
    for layer, mask in enumerate(masks, start=2):
        values[f"density_layer_{layer}"] = float(np.mean(mask > 0))
        if count > 1:
            table = masks_lib.overlap_table(mask)
            pairs = table[~np.eye(count, dtype=bool)]
            values[f"overlap_layer_{layer}"] = float(np.mean(pairs))
    active = masks_lib.active_outputs(masks).sum(-1)
    values["active_outputs"] = float(np.mean(active))
    return values


def _draw_some(draw: Draw, stream: str, count: int) -> list[Batch]:
    """Returns batches of a stream; none if it has no rows."""
    batches = [draw(stream) for _ in range(count)]
    return [batch for batch in batches if batch is not None]
