"""Settings of the synthetic log."""

from typing import Literal

import numpy as np
import pydantic
from pydantic import Field

from features.config import Config
from features.datasets.synthetic import DAYS, DOMAINS


class SyntheticConfig(Config):
    """Settings of the generator.  `--set name=value` on its command line."""

    name: str = Field(
        "synthetic", pattern=r"^[a-z][a-z0-9_]*$", description="of the data set spec"
    )
    rows: int = Field(500_000, ge=1)
    seed: int = Field(0, ge=0)
    days: int = Field(DAYS, ge=3, description="the log starts at START_TIME")
    num_users: int = Field(20_000, ge=10)
    num_items: int = Field(4_000, ge=10)
    num_segments: int = Field(8, ge=1)
    num_categories: int = Field(20, ge=1)
    num_domains: int = Field(len(DOMAINS), ge=1)
    dominant_share: float = Field(0.8, gt=0, lt=1, description="of domain 0's rows")
    small_domain_ratio: float = Field(
        0.7, gt=0, le=1, description="share of a small domain over the one before"
    )
    overlap: float = Field(
        0.5, gt=0, le=1, description="chance that a user (item) is in a small domain"
    )
    num_groups: int = Field(2, ge=1, description="hidden groups of related domains")
    conflict: bool = Field(True, description="one domain has the opposite taste")
    conflict_task: bool = Field(
        False, description="a like falls with what a click rises with"
    )
    taste: float = Field(2.2, ge=0, description="strength of the whole taste term")
    shared_taste: float = Field(1.0, ge=0, description="of all domains, in the taste")
    group_taste: float = Field(0.6, ge=0, description="beside the shared taste")
    domain_taste: float = Field(0.3, ge=0)
    quality: float = Field(0.5, ge=0, description="std of the items' own appeal")
    drift: float = Field(0.3, ge=0, description="swing of a category over a week")
    click_logit: float = Field(-1.2, description="about the logit of the click rate")
    like_logit: float = Field(-0.8, description="the same of a like, given a click")
    taste_turn: float = Field(
        0.0, ge=0, description="angle in radians by which tastes turn over the log"
    )
    typical: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="chance that a small domain's user (item) is of its own segments "
        "(categories), which are then apart from the other small domains'",
    )
    hidden_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="part of domain 0's rows that follow a small domain's rule",
    )
    flip_by: Literal["none", "segment", "category"] = Field(
        "none", description="clicks of domain 0 are flipped for some values of this"
    )
    flip_share: float = Field(
        0.5, gt=0, lt=1, description="about the part of domain 0's rows flipped"
    )
    inside: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="chance that a small domain's user is of unflipped segments; 0: as "
        "it comes",
    )
    outsiders: float = Field(
        0.1, gt=0, le=1, description="part of the other users who come there at all"
    )
    dirty_rate: float = Field(0.002, ge=0, le=1)
    format: Literal["parquet", "jsonl"] = "parquet"
    truth: Literal["none", "file", "column"] = Field(
        "file", description="where the true probabilities of click and like go"
    )
    chunk_rows: int = Field(100_000, ge=1, description="rows a file")

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SyntheticConfig":
        if self.conflict and self.num_domains < 2:
            raise ValueError("conflict needs num_domains of at least 2")
        if self.num_groups > self.num_domains:
            raise ValueError("num_groups must be at most num_domains")
        self._check_plants()
        return self

    def _check_plants(self) -> None:
        small = self.num_domains - 1
        if self.typical and not 2 <= small <= min(
            self.num_segments, self.num_categories
        ):
            raise ValueError(
                "typical needs at least two small domains, and as many segments and "
                f"categories as small domains; got {small} small domains"
            )
        if self.hidden_share and not self.typical:
            raise ValueError(
                "hidden_share needs typical: nothing else tells the hidden rows"
            )
        if self.flip_by != "none" and (not small or self.typical):
            raise ValueError("flip_by needs a small domain, and no typical segments")
        if self.inside and self.flip_by != "segment":
            raise ValueError("inside needs flip_by=segment")

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, the dominant one first."""
        more = [f"domain_{d}" for d in range(len(DOMAINS), self.num_domains)]
        return (*DOMAINS, *more)[: self.num_domains]

    @property
    def shares(self) -> np.ndarray:
        """Share of the rows by domain, float64 [D]."""
        if self.num_domains == 1:
            return np.ones(1)
        small = self.small_domain_ratio ** np.arange(self.num_domains - 1)
        small *= (1 - self.dominant_share) / small.sum()
        return np.r_[self.dominant_share, small]

    @property
    def conflict_domain(self) -> int | None:
        """Index of the domain with the opposite taste."""
        return self.num_domains // 2 if self.conflict else None

    @property
    def groups(self) -> tuple[int, ...]:
        """Hidden group by domain."""
        return tuple(d % self.num_groups for d in range(self.num_domains))

    @property
    def num_chunks(self) -> int:
        """Files of the log."""
        return -(-self.rows // self.chunk_rows)
