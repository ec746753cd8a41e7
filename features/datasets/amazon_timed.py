"""Amazon purchases of two categories, every user in both, with sampled negatives.

Source: the data that ABXI publishes (food and kitchen, beauty and electronics), used
as target and source domain in the manner of CCTL.
Differs: CCTL's own Amazon sample is not public.  The log has positives only; the reader
adds `negatives` rows a positive (see `pipeline/readers/amazon_timed.py` for the rule).
There is no popularity feature: it would count the sampled rows as well.
"""

from features.spec import (
    Categorical,
    ColumnDomain,
    DatasetSpec,
    DomainIndicator,
    Keys,
    Sequence,
    Source,
    Task,
    TemporalSplit,
)

# Shares by these cuts, food and kitchen: 79 / 11 / 10 %; the other pair is alike.
VALIDATION_FROM = 1_390_608_000  # 2014-01-25 UTC
TEST_FROM = 1_398_211_200  # 2014-04-23 UTC


def spec() -> DatasetSpec:
    """Returns the spec of the pair food (domain 0) and kitchen (domain 1)."""
    return _spec("amazon_timed", "food_kitchen", ["food", "kitchen"])


def spec_beauty() -> DatasetSpec:
    """Returns the spec of the pair beauty (domain 0) and electronics (domain 1)."""
    return _spec("amazon_timed_beauty", "beauty_electronics", ["beauty", "electronics"])


def _spec(name: str, pair: str, domains: list[str | int]) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        description=f"Amazon purchases, {pair}: one sampled negative a purchase",
        source=Source(
            reader="amazon_timed",
            options={
                "pair": pair,
                "negatives": 1,
                "sampling": "uniform",
                "candidates": "seen",
                "seed": 0,
            },
        ),
        keys=Keys(user="user", item="item", time="timestamp"),
        domain=ColumnDomain(by="column", column="domain", values=domains),
        tasks=[Task(name="click", column="click")],
        features=[
            Categorical(name="user_id", column="user", role="user"),
            Categorical(name="item_id", column="item", role="item"),
            DomainIndicator(kind="domain"),
            # Purchases only: a sampled negative never happened.
            Sequence(
                kind="sequence",
                name="history",
                of="item_id",
                max_length=20,
                only_positive_of="click",
            ),
        ],
        split=TemporalSplit(
            by="temporal", validation_from=VALIDATION_FROM, test_from=TEST_FROM
        ),
    )
