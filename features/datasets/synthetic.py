"""The spec of the raw logs that `python -m features.synthetic` writes."""

from collections.abc import Sequence as Listing

from features.spec import (
    Categorical,
    ColumnDomain,
    DatasetSpec,
    DomainIndicator,
    Keys,
    MultiValued,
    Numeric,
    Popularity,
    Sequence,
    Source,
    Table,
    Task,
    TemporalSplit,
)

START_TIME = 1_704_067_200  # 2024-01-01 UTC, seconds
SECONDS_PER_DAY = 86_400
DAYS = 10
DOMAINS = ("home", "video", "food", "travel", "books", "games")


def spec() -> DatasetSpec:
    """Returns the spec of a log that was generated with the default settings."""
    return spec_for(DOMAINS, days=DAYS)


def spec_for(
    domains: Listing[str],
    *,
    days: int,
    name: str = "synthetic",
    partition_by_day: bool = False,
) -> DatasetSpec:
    """Returns the spec of a log of these domains: last day test, the one before val.

    Args:
      domains: Names, the dominant one first.
      days: Days that the log covers, at least 3.
      name: Name of the data set.
      partition_by_day: Whether each day has a folder of its own.
    """
    end = START_TIME + days * SECONDS_PER_DAY
    return DatasetSpec(
        name=name,
        description="Generated log with planted structure: click and like",
        source=Source(
            path="events/part-*",
            user_table=Table(path="users.parquet", key="user_id"),
            item_table=Table(path="items.parquet", key="item_id"),
        ),
        keys=Keys(user="user_id", item="item_id", time="time"),
        # Listed, not found: an unknown domain in a dirty row must not become one.
        domain=ColumnDomain(by="column", column="domain", values=list(domains)),
        tasks=[Task(name="click", column="click"), Task(name="like", column="like")],
        features=[
            Categorical(name="user_id", role="user"),
            Categorical(name="segment", role="user"),
            Categorical(name="item_id", role="item"),
            Categorical(name="category", role="item"),
            MultiValued(kind="multi", name="tags", role="item", max_length=3),
            Numeric(kind="numeric", name="price", role="item", transform="log"),
            Popularity(
                kind="popularity", name="item_popularity", role="item", of="item_id"
            ),
            Categorical(name="hour", role="context"),
            Numeric(kind="numeric", name="position", role="context"),
            Sequence(
                kind="sequence",
                name="history",
                of="item_id",
                max_length=20,
                only_positive_of="click",
            ),
            DomainIndicator(kind="domain"),
        ],
        split=TemporalSplit(
            by="temporal",
            validation_from=end - 2 * SECONDS_PER_DAY,
            test_from=end - SECONDS_PER_DAY,
        ),
        partition_by_day=partition_by_day,
    )
