"""MovieLens-1M as M3oE uses it: three age domains, click and like.

Source: Zhang et al., M3oE, SIGIR 2024, section 4.1 and the authors' loader.
Differs: `movielens_1m_random` splits rows at random by a seeded hash; the published
order (`movielens_1m`) puts nearly all test users outside training, so never compare
numbers of the two.
"""

from features.spec import (
    Categorical,
    DatasetSpec,
    DomainIndicator,
    Keys,
    Numeric,
    PublishedOrderSplit,
    RandomSplit,
    Source,
    SplitRule,
    Table,
    Task,
    ValueMapDomain,
)

# The ages of users.dat are the lower ends of groups: 1 stands for under 18.
AGES: dict[str, list[str | int]] = {
    "under25": ["1", "18"],
    "from25to34": ["25"],
    "over34": ["35", "45", "50", "56"],
}


def spec() -> DatasetSpec:
    """Returns the spec with the split of M3oE's published file, 80 / 10 / 10 %."""
    return _spec("movielens_1m", PublishedOrderSplit(by="published_order"))


def spec_random() -> DatasetSpec:
    """Returns the spec with rows split at random, 80 / 10 / 10 %."""
    return _spec("movielens_1m_random", RandomSplit(by="random", seed=2022))


def _spec(name: str, split: SplitRule) -> DatasetSpec:
    # No keys.time: M3oE has no histories, and one edition lacks half of the times.
    return DatasetSpec(
        name=name,
        description="MovieLens-1M: age groups as domains; click (> 3), like (> 4)",
        source=Source(
            reader="movielens_1m",
            user_table=Table(path="users.dat", key="user_id"),
            item_table=Table(path="movies.dat", key="movie_id"),
        ),
        keys=Keys(user="user_id", item="movie_id"),
        domain=ValueMapDomain(by="value_map", column="age", domains=AGES),
        tasks=[
            Task(name="click", column="rating", compare="gt", value=3),
            Task(name="like", column="rating", compare="gt", value=4),
        ],
        features=[
            Categorical(name="user_id", role="user"),
            Categorical(name="movie_id", role="item"),
            Categorical(name="gender", role="user"),
            Categorical(name="occupation", role="user"),
            Categorical(name="zip", role="user"),
            Categorical(name="first_genre", role="item"),
            DomainIndicator(kind="domain"),
            Numeric(kind="numeric", name="age", role="user", transform="minmax"),
        ],
        split=split,
    )
