"""Settings of the mask search, and what they are in its n-th run."""

import dataclasses
from typing import Literal

import pydantic
from pydantic import Field

from models.method import MethodConfig


class SearchConfig(MethodConfig):
    """Settings of AREAD that its mask search reads.

    `search_scope`: `hei` freezes embeddings and base experts and trains all candidates
    of a domain side by side; `all` trains one after the other on all parameters (the
    authors' form).  `search_schedule`: `authors` shrinks number, density and flips of
    the candidates before every search, as their code does.
    """

    bagging: Literal["mean", "sum"] = "mean"
    use_masks: bool = Field(True, description="False: hierarchy only, no search")
    warmup_steps: int = Field(100, ge=1, description="before the first search")
    search_every: int = Field(2000, ge=1, description="steps")
    search_scope: Literal["hei", "all"] = "hei"
    num_candidates: int = Field(10, ge=1, description="Z")
    candidate_steps: int = Field(5, ge=0, description="k")
    score_batches: int = Field(5, ge=1, description="to choose a candidate by")
    candidate_learning_rate: float = Field(0.01, gt=0, description="lr_u")
    keep_rate: float = Field(0.7, gt=0, le=1, description="S_0")
    min_density: float = Field(0.4, gt=0, le=1, description="S")
    prune_rate: float = Field(0.05, gt=0, lt=1, description="alpha")
    flip_rate: float = Field(0.2, ge=0, le=1, description="of a candidate's edges")
    prune_rank: Literal["fan_in", "gate"] = "fan_in"
    search_schedule: Literal["constant", "authors"] = "constant"
    search_batch_share: float = Field(
        0.25, gt=0, description="rows of a search batch as a share of batch_size"
    )
    augmented_path: str = Field("", description="below the data folder; '' = train")
    gate_momentum: float = Field(0.99, ge=0, lt=1, description="of mean gates")

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        if self.search_every <= self.warmup_steps:
            raise ValueError(
                f"search_every must be above warmup_steps ({self.warmup_steps}), after "
                f"which the first search comes; got {self.search_every}."
            )
        if self.keep_rate < self.min_density:
            raise ValueError(
                f"keep_rate must be at least min_density ({self.min_density}): masks "
                f"start there and are pruned down; got {self.keep_rate}."
            )
        return self


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one search draws: Z candidates, their density and flips."""

    num_candidates: int
    keep_rate: float
    flip_rate: float


def plan_search(config: SearchConfig, searches_done: int) -> Plan:
    """Returns the plan of the next search.

    `authors`: before each, Z is 0.99 Z rounded down, keep_rate 0.95 of itself (but at
    least min_density), flip_rate 0.99 of itself; so the first search already has 9
    candidates for 10.
    """
    candidates, keep, flip = config.num_candidates, config.keep_rate, config.flip_rate
    if config.search_schedule == "authors":
        for _ in range(searches_done + 1):
            candidates = max(1, int(0.99 * candidates))
        keep = max(config.min_density, keep * 0.95 ** (searches_done + 1))
        flip = flip * 0.99 ** (searches_done + 1)
    return Plan(candidates, keep, flip)
