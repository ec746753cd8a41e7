"""The planted structure behind the synthetic log: who likes what, where and when.

Users and items have hidden vectors; a user's lies near that of the segment, an item's
near that of the category, so that most of the signal is in columns a model sees.  In
domain d the click logit of user u and item i at day t and position s is

  base_d + taste * <p_u A_d, q_i> + sign_d * quality_i + trend(category, t) - slope s
  A_d = sign_d * I + group_taste * G_group(d) + domain_taste * M_d

with random rotations G and M.  sign_d is -1 for the one conflicting domain: there the
shared taste is turned round, and a model that does not know the domain must lose.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic
from pydantic import Field

from features.config import Config
from features.datasets.synthetic import DAYS, DOMAINS, SECONDS_PER_DAY, START_TIME

VECTOR_SIZE = 8
NUM_TAGS = 30
MAX_TAGS = 3
MAX_POSITION = 20
SMALL_DOMAIN_RATIO = 0.7  # each small domain has this share of the one before
ZIPF_EXPONENT = 1.0
# What a dirty row has instead of its value.
DIRT = (
    "missing_user",
    "missing_item",
    "missing_time",
    "nan_label",
    "malformed_number",
    "unknown_domain",
    "malformed_line",  # JSONL only: Parquet has no lines
)


class SyntheticConfig(Config):
    """Settings of the generator.  `--set name=value` on its command line."""

    rows: int = Field(500_000, ge=1)
    seed: int = Field(0, ge=0)
    days: int = Field(DAYS, ge=3, description="the log starts at START_TIME")
    num_users: int = Field(20_000, ge=10)
    num_items: int = Field(4_000, ge=10)
    num_segments: int = Field(8, ge=1)
    num_categories: int = Field(20, ge=1)
    num_domains: int = Field(len(DOMAINS), ge=1)
    dominant_share: float = Field(0.8, gt=0, lt=1, description="of domain 0's rows")
    overlap: float = Field(
        0.5, gt=0, le=1, description="chance that a user (item) is in a small domain"
    )
    num_groups: int = Field(2, ge=1, description="hidden groups of related domains")
    conflict: bool = Field(True, description="one domain has the opposite taste")
    taste: float = Field(2.2, ge=0, description="strength of the whole taste term")
    group_taste: float = Field(0.6, ge=0, description="beside the shared taste, 1")
    domain_taste: float = Field(0.3, ge=0)
    quality: float = Field(0.5, ge=0, description="std of the items' own appeal")
    drift: float = Field(0.3, ge=0, description="swing of a category over a week")
    click_logit: float = Field(-1.2, description="about the logit of the click rate")
    like_logit: float = Field(-0.8, description="the same of a like, given a click")
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
        return self

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
        small = SMALL_DOMAIN_RATIO ** np.arange(self.num_domains - 1)
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


class World:
    """Users, items and domains of one seed; makes any chunk of the log on its own."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        rng = np.random.default_rng([config.seed, 0])
        self._make_users(rng)
        self._make_items(rng)
        self._make_domains(rng)
        self._user_ids = _names("u", config.num_users)
        self._item_ids = _names("i", config.num_items)
        self._domain_ids = pa.array(config.domains)
        self._numbers = pa.array([str(i) for i in range(MAX_POSITION + 1)])

    def users(self) -> pa.Table:
        """Returns the user table."""
        segments = _names("s", self.config.num_segments).take(pa.array(self._segment))
        return pa.table({"user_id": self._user_ids, "segment": segments})

    def items(self) -> pa.Table:
        """Returns the item table; `tags` is text such as `t3|t17`, or empty."""
        tag_names = np.array([f"t{i}" for i in range(NUM_TAGS)])
        tags = ["|".join(tag_names[np.flatnonzero(row)]) for row in self._has_tag]
        return pa.table(
            {
                "item_id": self._item_ids,
                "category": _names("c", self.config.num_categories).take(
                    pa.array(self._category)
                ),
                "price": np.round(np.exp(self._log_price), 2),
                "tags": tags,
            }
        )

    def chunk(self, index: int) -> tuple[pa.Table, pa.Table, np.ndarray]:
        """Returns rows of the log: a function of the config and `index` alone.

        Returns:
          The events, in order of time; their true probabilities `click` and `like`
          (float64; like implies click); and the dirt of each row, int64 [B]: an
          index into `DIRT`, or -1.
        """
        config = self.config
        first = index * config.chunk_rows
        count = min(config.chunk_rows, config.rows - first)
        rng = np.random.default_rng([config.seed, 1, index])
        place = (first + np.sort(rng.random(count)) * count) / config.rows
        seconds = place * config.days * SECONDS_PER_DAY
        domain = rng.choice(config.num_domains, size=count, p=config.shares)
        users, items = self._who_and_what(rng, domain)
        position = rng.integers(1, MAX_POSITION + 1, count)
        click, like = self._probabilities(domain, users, items, seconds, position)
        clicked = rng.random(count) < click
        liked = clicked & (rng.random(count) < like)
        events = {
            "user_id": self._user_ids.take(pa.array(users)),
            "item_id": self._item_ids.take(pa.array(items)),
            "domain": self._domain_ids.take(pa.array(domain)),
            "time": pa.array(START_TIME + seconds.astype(np.int64)),
            "hour": pa.array((seconds // 3600 % 24).astype(np.int32)),
            # Text, as many loggers write it: so that a malformed number can occur.
            "position": self._numbers.take(pa.array(position)),
            "click": pa.array(clicked.astype(np.float32)),
            "like": pa.array(liked.astype(np.float32)),
        }
        dirt = self._dirt(rng, count)
        _soil(events, dirt)
        truth = pa.table({"click": click, "like": click * like})
        return pa.table(events), truth, dirt

    def _make_users(self, rng: np.random.Generator) -> None:
        config = self.config
        self._segment = rng.integers(0, config.num_segments, config.num_users)
        centres = _unit(rng, config.num_segments)
        noise = 0.5 * _unit(rng, config.num_users)
        self._user_vectors = (centres[self._segment] + noise).astype(np.float32)

    def _make_items(self, rng: np.random.Generator) -> None:
        config = self.config
        count = config.num_items
        self._category = rng.integers(0, config.num_categories, count)
        self._has_tag = rng.random((count, NUM_TAGS)).argsort(axis=1) < rng.integers(
            0, MAX_TAGS + 1, (count, 1)
        )
        vectors = _unit(rng, config.num_categories)[self._category]
        vectors += 0.3 * self._has_tag @ _unit(rng, NUM_TAGS) + 0.4 * _unit(rng, count)
        self._item_vectors = vectors.astype(np.float32)
        self._log_price = rng.normal(3.0, 0.8, count)
        price = -0.25 * (self._log_price - 3.0)
        self._quality = price + rng.normal(0, config.quality, count)
        self._phase = rng.random(config.num_categories)

    def _make_domains(self, rng: np.random.Generator) -> None:
        config = self.config
        rotations = [_rotation(rng) for _ in range(config.num_groups)]
        self._sign = np.ones(config.num_domains)
        if config.conflict_domain is not None:
            self._sign[config.conflict_domain] = -1.0
        self._like_matrix = 0.6 * np.eye(VECTOR_SIZE) + 0.6 * _rotation(rng)
        appeal = rng.normal(size=config.num_items)
        self._matrix, self._base, self._pools = [], [], []
        for d, group in enumerate(config.groups):
            self._matrix.append(
                self._sign[d] * np.eye(VECTOR_SIZE)
                + config.group_taste * rotations[group]
                + config.domain_taste * _rotation(rng)
            )
            self._base.append(config.click_logit + 0.3 * rng.normal())
            chance = 0.95 if d == 0 else config.overlap
            liked = appeal + 0.7 * rng.normal(size=config.num_items)
            self._pools.append(
                (
                    _members(rng, rng.random(config.num_users), chance),
                    _members(rng, liked, chance),
                )
            )
        self._zipf = [
            np.cumsum(np.arange(1, len(i) + 1) ** -ZIPF_EXPONENT)
            for _, i in self._pools
        ]

    def _who_and_what(
        self, rng: np.random.Generator, domain: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns users and items, int64 [B]: some users come often, items by Zipf."""
        users, items = np.empty_like(domain), np.empty_like(domain)
        for d, (own_users, own_items) in enumerate(self._pools):
            rows = np.flatnonzero(domain == d)
            # The square of a uniform number: rank r has a density of r ** -0.5.
            rank = rng.random(len(rows)) ** 2 * len(own_users)
            users[rows] = own_users[rank.astype(np.int64)]
            ends = self._zipf[d]
            draw = np.searchsorted(ends, rng.random(len(rows)) * ends[-1])
            items[rows] = own_items[np.minimum(draw, len(own_items) - 1)]
        return users, items

    def _probabilities(
        self,
        domain: np.ndarray,
        users: np.ndarray,
        items: np.ndarray,
        seconds: np.ndarray,
        position: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns P(click) and P(like | click), float64 [B]."""
        config = self.config
        click = np.asarray(self._base)[domain]
        like = np.full(len(domain), config.like_logit)
        for d, matrix in enumerate(self._matrix):
            rows = np.flatnonzero(domain == d)
            who = self._user_vectors[users[rows]]
            what = self._item_vectors[items[rows]]
            taste = np.einsum("bi,bi->b", who @ matrix.astype(np.float32), what)
            click[rows] += config.taste * taste
            other = who @ (matrix @ self._like_matrix).astype(np.float32)
            like[rows] += config.taste * np.einsum("bi,bi->b", other, what)
        weeks = seconds / (7 * SECONDS_PER_DAY)
        swing = np.sin(2 * np.pi * (weeks + self._phase[self._category[items]]))
        hour = seconds / 3600 % 24
        click += self._sign[domain] * self._quality[items]
        click += config.drift * swing - 0.04 * (position - MAX_POSITION / 2)
        click += 0.2 * np.cos(2 * np.pi * (hour - 21) / 24)  # evenings are best
        return _sigmoid(click), _sigmoid(like)

    def _dirt(self, rng: np.random.Generator, count: int) -> np.ndarray:
        kinds = len(DIRT) - (self.config.format != "jsonl")
        kind = rng.integers(0, kinds, count)
        return np.where(rng.random(count) < self.config.dirty_rate, kind, -1)


def _soil(events: dict[str, pa.Array], dirt: np.ndarray) -> None:
    """Puts what `DIRT` says into the columns; `malformed_line` is for the writer."""
    cells = {
        "missing_user": ("user_id", None),
        "missing_item": ("item_id", None),
        "missing_time": ("time", None),
        "nan_label": ("click", float("nan")),
        "malformed_number": ("position", "1O"),
        "unknown_domain": ("domain", "nowhere"),
    }
    for kind, (name, value) in cells.items():
        rows = dirt == DIRT.index(kind)
        if rows.any():
            column = events[name]
            bad = pa.scalar(value, column.type)
            events[name] = pc.if_else(pa.array(rows), bad, column)


def _names(prefix: str, count: int) -> pa.StringArray:
    return pa.array([f"{prefix}{i}" for i in range(count)])


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns random vectors of length 1 or so, float64 [count, VECTOR_SIZE]."""
    return rng.normal(0, VECTOR_SIZE**-0.5, (count, VECTOR_SIZE))


def _rotation(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(VECTOR_SIZE, VECTOR_SIZE)))[0]


def _members(rng: np.random.Generator, score: np.ndarray, chance: float) -> np.ndarray:
    """Returns who is in a domain, highest score first; never nobody."""
    order = np.argsort(-score)
    inside = rng.random(len(order)) < chance
    return order[inside] if inside.any() else order[:1]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
