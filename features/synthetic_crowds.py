"""Who is shown what in the synthetic log: pools of users and items, and their mixtures.

A *crowd* draws users from one pool and items from another.  A domain without a plant
is one crowd.  With `typical` a small domain is a mixture of four (user and item each
typical or not), and domain 0 pairs users typical of one small domain with items typical
of another, so neither alone tells whose rule a row follows: only rows that follow a
small domain's rule in secret have both of the same one.
"""

import dataclasses

import numpy as np

from features.config import ConfigError
from features.synthetic_config import SyntheticConfig

ZIPF_EXPONENT = 1.0


@dataclasses.dataclass(frozen=True)
class Crowd:
    """One part of an audience.

    Attributes:
      chance: Chance that a row of the audience is of this part.
      users: Indices of its users, those who come most first, int64.
      items: Indices of its items, most popular first, int64.
    """

    chance: float
    users: np.ndarray
    items: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.users) or not len(self.items):
            raise ConfigError(
                "SyntheticConfig must leave users and items for every part of a "
                f"domain; got {len(self.users)} users and {len(self.items)} items. "
                "Raise num_users, num_items or overlap."
            )

    def draw(
        self, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns users and items, int64 [count]: some come often, items by Zipf."""
        # The square of a uniform number: rank r has a density of r ** -0.5.
        rank = rng.random(count) ** 2 * len(self.users)
        ends = np.cumsum(np.arange(1, len(self.items) + 1) ** -ZIPF_EXPONENT)
        draw = np.searchsorted(ends, rng.random(count) * ends[-1])
        items = self.items[np.minimum(draw, len(self.items) - 1)]
        return self.users[rank.astype(np.int64)], items

    def user_weights(self) -> np.ndarray:
        """Returns the chance of each user, float64 [users]."""
        edges = np.sqrt(np.arange(len(self.users) + 1) / len(self.users))
        return np.diff(edges)

    def item_weights(self) -> np.ndarray:
        """Returns the chance of each item, float64 [items]."""
        weights = np.arange(1, len(self.items) + 1) ** -ZIPF_EXPONENT
        return weights / weights.sum()


@dataclasses.dataclass(frozen=True)
class Plant:
    """What is planted in a world besides the tastes.

    Attributes:
      audiences: By domain its crowds; with `hidden_share` then by domain again, the
        crowds of those rows of domain 0 that follow that domain's rule.
      flipped: For each value of `flip_by`, whether domain 0's clicks are flipped; bool.
      typical_segments: By domain its own segments; none without `typical`.
      typical_categories: By domain its own categories.
    """

    audiences: tuple[tuple[Crowd, ...], ...]
    flipped: np.ndarray
    typical_segments: tuple[tuple[int, ...], ...]
    typical_categories: tuple[tuple[int, ...], ...]


def plant(
    config: SyntheticConfig,
    segment: np.ndarray,
    category: np.ndarray,
    pools: list[tuple[np.ndarray, np.ndarray]],
) -> Plant:
    """Returns who comes to which domain, by the plants of the config.

    Args:
      config: Settings.
      segment: Segment of each user, int64 [users].
      category: Category of each item, int64 [items].
      pools: By domain its users and items, those seen most first.

    Raises:
      ConfigError: When a part of a domain has no users or items.
    """
    plain: list[tuple[Crowd, ...]] = [
        (Crowd(1.0, users, items),) for users, items in pools
    ]
    flipped = np.zeros(0, bool)
    if config.flip_by != "none":
        flipped = _flipped(config, segment, category, plain[0][0])
    nothing: tuple[tuple[int, ...], ...] = ((),) * config.num_domains
    if config.typical:
        segments = _typical(config.num_domains, config.num_segments)
        categories = _typical(config.num_domains, config.num_categories)
        audiences = _typical_audiences(
            config.typical,
            pools,
            [np.isin(segment, own) for own in segments],
            [np.isin(category, own) for own in categories],
        )
        return Plant(audiences, flipped, segments, categories)
    if config.inside:
        inside = ~flipped[segment]
        plain[1:] = [
            _inside_audience(config, Crowd(1.0, users, items), inside)
            for users, items in pools[1:]
        ]
    return Plant(tuple(plain), flipped, nothing, nothing)


def _typical(num_domains: int, num_values: int) -> tuple[tuple[int, ...], ...]:
    """Returns by domain its own values: dealt out in turn to the small domains."""
    small = num_domains - 1
    dealt = [tuple(range(d, num_values, small)) for d in range(small)]
    return ((), *dealt)


def _typical_audiences(
    chance: float,
    pools: list[tuple[np.ndarray, np.ndarray]],
    is_user: list[np.ndarray],
    is_item: list[np.ndarray],
) -> tuple[tuple[Crowd, ...], ...]:
    small = range(1, len(pools))
    users = {d: own[is_user[d][own]] for d in small for own in [pools[d][0]]}
    items = {d: own[is_item[d][own]] for d in small for own in [pools[d][1]]}
    mixed = [(a, b) for a in small for b in small if a != b]
    audiences = [tuple(Crowd(1 / len(mixed), users[a], items[b]) for a, b in mixed)]
    for d in small:
        audiences.append(
            tuple(
                Crowd(user_chance * item_chance, some_users, some_items)
                for user_chance, some_users in (
                    (chance, users[d]),
                    (1 - chance, pools[d][0]),
                )
                for item_chance, some_items in (
                    (chance, items[d]),
                    (1 - chance, pools[d][1]),
                )
            )
        )
    hidden = [(Crowd(1.0, users[d], items[d]),) for d in small]
    # Nobody follows domain 0 in secret; the place is kept so that indices stay simple.
    return (*audiences, audiences[0], *hidden)


def _inside_audience(
    config: SyntheticConfig, crowd: Crowd, inside: np.ndarray
) -> tuple[Crowd, ...]:
    """Returns a mixture of users of unflipped segments and a few of the others."""
    among = inside[crowd.users]
    others = crowd.users[~among]
    others = others[: int(np.ceil(config.outsiders * len(others)))]
    return (
        Crowd(config.inside, crowd.users[among], crowd.items),
        Crowd(1 - config.inside, others, crowd.items),
    )


def _flipped(
    config: SyntheticConfig, segment: np.ndarray, category: np.ndarray, crowd: Crowd
) -> np.ndarray:
    """Returns which values are flipped: about `flip_share` of the crowd's rows."""
    if config.flip_by == "segment":
        count, values = config.num_segments, segment[crowd.users]
        weights = crowd.user_weights()
    else:
        count, values = config.num_categories, category[crowd.items]
        weights = crowd.item_weights()
    shares = np.bincount(values, weights, minlength=count)
    flipped = np.zeros(count, bool)
    # Largest first, each if it brings the sum nearer: small ones then fill the gap.
    for value in np.argsort(-shares, kind="stable"):
        total = shares[flipped].sum()
        goal = config.flip_share
        flipped[value] = abs(total + shares[value] - goal) < abs(total - goal)
    return flipped
