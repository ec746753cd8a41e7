"""Epinions: product categories as domains, users shared widely.

Source: ratings of Tang et al. (mTrust, WSDM 2012), used in the protocol of AREAD.
Differs: AREAD's own data sets are not public in full; this is a stand-in.  Helpfulness
is known only after the rating and is never a feature.
"""

from features.spec import (
    Categorical,
    ColumnDomain,
    DatasetSpec,
    DomainIndicator,
    Keys,
    Popularity,
    RandomSplit,
    Sequence,
    Source,
    SplitRule,
    Task,
    TemporalSplit,
)

MIN_ROWS = 300  # leaves 24 of 27 categories; 295 of 922,267 rows go


def spec() -> DatasetSpec:
    """Returns the spec with a random split, 60 / 20 / 20 % of each category."""
    split = RandomSplit(by="random", validation=0.2, test=0.2, stratify=True)
    return _spec("epinions", split)


def spec_time() -> DatasetSpec:
    """Returns the spec with time points 1-9 for training, 10 validation, 11 test."""
    split = TemporalSplit(by="temporal", validation_from=10, test_from=11)
    return _spec("epinions_time", split)


def _spec(name: str, split: SplitRule) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        description="Epinions ratings: category as domain, label rating >= 4",
        source=Source(reader="epinions"),
        keys=Keys(
            user="user_id", item="product_id", time="time_point", time_unit="order"
        ),
        domain=ColumnDomain(by="column", column="category_id", min_rows=MIN_ROWS),
        tasks=[Task(name="like", column="rating", compare="ge", value=4)],
        features=[
            Categorical(name="user_id", role="user"),
            Categorical(name="product_id", role="item"),
            DomainIndicator(kind="domain"),
            Popularity(
                kind="popularity",
                name="product_popularity",
                role="item",
                of="product_id",
            ),
            # All earlier products, not the liked ones: under a random split an
            # earlier row may be a test row, and its label must stay out of sight.
            Sequence(kind="sequence", name="history", of="product_id", max_length=20),
        ],
        split=split,
    )
