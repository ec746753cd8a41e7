"""The planted structure behind the synthetic log: who likes what, where and when.

Users and items have hidden vectors; a user's lies near that of the segment, an item's
near that of the category, so that most of the signal is in columns a model sees.  In
domain d the click logit of user u and item i at day t and position s is

  base_d + taste * <p_u A_d, q_i> + sign_d * quality_i + trend(category, t) - slope s
  A_d = sign_d * I + group_taste * G_group(d) + domain_taste * M_d

with random rotations G and M.  sign_d is -1 for the one conflicting domain: there the
shared taste is turned round, and a model that does not know the domain must lose.

Off by default are the plants of `features/synthetic_presets.py`: p_u turns with time
(`taste_turn`), some of domain 0's rows follow another domain's rule (`hidden_share`) or
have their click flipped (`flip_by`), and likes oppose clicks (`conflict_task`).
"""

from typing import Any

import numpy as np
import pyarrow as pa

from features import synthetic_crowds, synthetic_dirt
from features.datasets.synthetic import SECONDS_PER_DAY, START_TIME
from features.synthetic_config import SyntheticConfig

__all__ = ["SyntheticConfig", "World"]

VECTOR_SIZE = 8
NUM_TAGS = 30
MAX_TAGS = 3
MAX_POSITION = 20


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
          The events, in order of time; the truth: their probabilities `click` and
          `like` (float64; like implies click), `rule` (int32: index of the domain
          whose rule the row follows) and `flipped` (bool); and the dirt of each row,
          int64 [B]: an index into `DIRT`, or -1.
        """
        config = self.config
        first = index * config.chunk_rows
        count = min(config.chunk_rows, config.rows - first)
        rng = np.random.default_rng([config.seed, 1, index])
        place = (first + np.sort(rng.random(count)) * count) / config.rows
        seconds = place * config.days * SECONDS_PER_DAY
        domain = rng.choice(config.num_domains, size=count, p=config.shares)
        # Plants draw from numbers of their own: without them the log is as before.
        extra = np.random.default_rng([config.seed, 2, index])
        rule, audience = self._rules(extra, domain)
        users, items = self._who_and_what(rng, extra, audience)
        position = rng.integers(1, MAX_POSITION + 1, count)
        click, like = self._probabilities(rule, users, items, seconds, position)
        flipped = self._is_flipped(domain, users, items)
        click = np.where(flipped, 1 - click, click)
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
        synthetic_dirt.soil(events, dirt)
        truth = pa.table(
            {
                "click": click,
                "like": click * like,
                "rule": pa.array(rule.astype(np.int32)),
                "flipped": pa.array(flipped),
            }
        )
        return pa.table(events), truth, dirt

    def planted(self) -> dict[str, Any]:
        """Returns which feature values the plants go by, for `truth.json`."""
        config = self.config
        typical = {
            name: {
                "segment": [f"s{i}" for i in self._plant.typical_segments[d]],
                "category": [f"c{i}" for i in self._plant.typical_categories[d]],
            }
            for d, name in enumerate(config.domains)
            if self._plant.typical_segments[d]
        }
        values = np.flatnonzero(self._plant.flipped).tolist()
        flipped = {config.flip_by: [f"{config.flip_by[0]}{i}" for i in values]}
        return {"typical": typical, "flipped": flipped if values else {}}

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
        same, other = (-0.9, 0.3) if config.conflict_task else (0.6, 0.6)
        self._like_matrix = same * np.eye(VECTOR_SIZE) + other * _rotation(rng)
        appeal = rng.normal(size=config.num_items)
        self._matrix, self._base, pools = [], [], []
        for d, group in enumerate(config.groups):
            self._matrix.append(
                self._sign[d] * config.shared_taste * np.eye(VECTOR_SIZE)
                + config.group_taste * rotations[group]
                + config.domain_taste * _rotation(rng)
            )
            self._base.append(config.click_logit + 0.3 * rng.normal())
            chance = 0.95 if d == 0 else config.overlap
            liked = appeal + 0.7 * rng.normal(size=config.num_items)
            pools.append(
                (
                    _members(rng, rng.random(config.num_users), chance),
                    _members(rng, liked, chance),
                )
            )
        self._plant = synthetic_crowds.plant(
            config, self._segment, self._category, pools
        )
        self._turn = _quarter_turn(np.random.default_rng([config.seed, 3]))

    def _rules(
        self, extra: np.random.Generator, domain: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns whose rule each row follows, and its audience; int64 [B]."""
        config = self.config
        if not config.hidden_share:
            return domain, domain
        hidden = (domain == 0) & (extra.random(len(domain)) < config.hidden_share)
        followed = extra.integers(1, config.num_domains, len(domain))
        rule = np.where(hidden, followed, domain)
        return rule, np.where(hidden, config.num_domains + followed, domain)

    def _who_and_what(
        self,
        rng: np.random.Generator,
        extra: np.random.Generator,
        audience: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns users and items, int64 [B]."""
        users, items = np.empty_like(audience), np.empty_like(audience)
        for number, crowds in enumerate(self._plant.audiences):
            rows = np.flatnonzero(audience == number)
            part = np.zeros(len(rows), np.int64)
            if len(crowds) > 1:
                chances = [crowd.chance for crowd in crowds]
                part = extra.choice(len(crowds), size=len(rows), p=chances)
            for index, crowd in enumerate(crowds):
                own = rows[part == index]
                users[own], items[own] = crowd.draw(rng, len(own))
        return users, items

    def _is_flipped(
        self, domain: np.ndarray, users: np.ndarray, items: np.ndarray
    ) -> np.ndarray:
        """Returns which rows have their click flipped, bool [B]."""
        by = self.config.flip_by
        if by == "none":
            return np.zeros(len(domain), bool)
        values = self._segment[users] if by == "segment" else self._category[items]
        return (domain == 0) & self._plant.flipped[values]

    def _probabilities(
        self,
        rule: np.ndarray,
        users: np.ndarray,
        items: np.ndarray,
        seconds: np.ndarray,
        position: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns P(click), not yet flipped, and P(like | click); float64 [B]."""
        config = self.config
        click = np.asarray(self._base)[rule]
        like = np.full(len(rule), config.like_logit)
        for d, matrix in enumerate(self._matrix):
            rows = np.flatnonzero(rule == d)
            who = self._tastes(users[rows], seconds[rows])
            what = self._item_vectors[items[rows]]
            taste = np.einsum("bi,bi->b", who @ matrix.astype(np.float32), what)
            click[rows] += config.taste * taste
            other = who @ (matrix @ self._like_matrix).astype(np.float32)
            like[rows] += config.taste * np.einsum("bi,bi->b", other, what)
        weeks = seconds / (7 * SECONDS_PER_DAY)
        swing = np.sin(2 * np.pi * (weeks + self._phase[self._category[items]]))
        hour = seconds / 3600 % 24
        click += self._sign[rule] * self._quality[items]
        click += config.drift * swing - 0.04 * (position - MAX_POSITION / 2)
        click += 0.2 * np.cos(2 * np.pi * (hour - 21) / 24)  # evenings are best
        return _sigmoid(click), _sigmoid(like)

    def _tastes(self, users: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Returns the users' vectors at these times, float32 [B, VECTOR_SIZE]."""
        who = self._user_vectors[users]
        if not self.config.taste_turn:
            return who
        end = self.config.days * SECONDS_PER_DAY
        angle = (self.config.taste_turn * seconds / end).astype(np.float32)[:, None]
        turned: np.ndarray = np.cos(angle) * who + np.sin(angle) * (who @ self._turn)
        return turned

    def _dirt(self, rng: np.random.Generator, count: int) -> np.ndarray:
        kinds = len(synthetic_dirt.DIRT) - (self.config.format != "jsonl")
        kind = rng.integers(0, kinds, count)
        return np.where(rng.random(count) < self.config.dirty_rate, kind, -1)


def _names(prefix: str, count: int) -> pa.StringArray:
    return pa.array([f"{prefix}{i}" for i in range(count)])


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns random vectors of length 1 or so, float64 [count, VECTOR_SIZE]."""
    return rng.normal(0, VECTOR_SIZE**-0.5, (count, VECTOR_SIZE))


def _rotation(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(VECTOR_SIZE, VECTOR_SIZE)))[0]


def _quarter_turn(rng: np.random.Generator) -> np.ndarray:
    """Returns J with J J = -I: cos(a) I + sin(a) J turns every vector by a; float32."""
    basis = _rotation(rng)
    pairs = np.kron(np.eye(VECTOR_SIZE // 2), np.array([[0.0, 1.0], [-1.0, 0.0]]))
    return (basis @ pairs @ basis.T).astype(np.float32)


def _members(rng: np.random.Generator, score: np.ndarray, chance: float) -> np.ndarray:
    """Returns who is in a domain, highest score first; never nobody."""
    order = np.argsort(-score)
    inside = rng.random(len(order)) < chance
    return order[inside] if inside.any() else order[:1]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
