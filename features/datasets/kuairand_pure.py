"""KuaiRand-Pure: the app's tabs as domains, split by day.

Source: Gao et al., KuaiRand, CIKM 2022.
Differs: SSCTL and ECAT use other data; tabs and split here are ours.  The tabs named
below are those with 1,000 rows or more in the log of 25 April to 8 May; all others
together are domain `rest`, since leaving them out would drop 1 % of the rows.

Everything measured after the video was shown (play_time_ms, profile_stay_time,
comment_stay_time, the other signals) is never a feature.  More tasks of the twelve
signals: `--set tasks.like={column: is_like}`; see `SIGNALS`.
"""

from features.spec import (
    Categorical,
    DatasetSpec,
    DomainIndicator,
    Feature,
    Keys,
    MultiValued,
    Numeric,
    Popularity,
    Sequence,
    Source,
    Table,
    Task,
    TemporalSplit,
    ValueMapDomain,
)

TABS: dict[str, list[str | int]] = {
    "tab_1": [1],  # 76 % of the rows
    "tab_0": [0],
    "tab_4": [4],
    "tab_6": [6],
    "tab_2": [2],
    "tab_8": [8],
    "rest": [],
}
# Task name -> what makes it positive; eight signals are 0 or 1 already, and the three
# times count as "at all", or as ten seconds of play.
SIGNALS = {
    "click": Task(name="click", column="is_click"),
    "long_view": Task(name="long_view", column="long_view"),
    "like": Task(name="like", column="is_like"),
    "follow": Task(name="follow", column="is_follow"),
    "comment": Task(name="comment", column="is_comment"),
    "forward": Task(name="forward", column="is_forward"),
    "hate": Task(name="hate", column="is_hate"),
    "profile_enter": Task(name="profile_enter", column="is_profile_enter"),
    "play": Task(name="play", column="play_time_ms", compare="gt", value=0),
    "profile_stay": Task(
        name="profile_stay", column="profile_stay_time", compare="gt", value=0
    ),
    "comment_stay": Task(
        name="comment_stay", column="comment_stay_time", compare="gt", value=0
    ),
    "play_10s": Task(name="play_10s", column="play_time_ms", compare="ge", value=1e4),
}
USER_CATEGORIES = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{i}" for i in range(18)),
)
USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
VIDEO_CATEGORIES = (
    "author_id",
    "video_type",
    "upload_dt",
    "upload_type",
    "visible_status",
    "music_id",
    "music_type",
)
VIDEO_NUMBERS = ("video_duration", "server_width", "server_height")


def spec() -> DatasetSpec:
    """Returns the spec: training to 4 May, validation 5-6 May, test 7-8 May 2022."""
    return DatasetSpec(
        name="kuairand_pure",
        description="KuaiRand-Pure standard log: tab as domain, click and long view",
        source=Source(
            reader="kuairand_pure",
            path="log_standard_*_pure.csv",
            user_table=Table(path="user_features_pure.csv", key="user_id"),
            item_table=Table(path="video_features_basic_pure.csv", key="video_id"),
        ),
        keys=Keys(
            user="user_id",
            item="video_id",
            time="time_ms",
            time_unit="milliseconds",
            day="date",  # of China, which the time in UTC is not
        ),
        domain=ValueMapDomain(
            by="value_map", column="tab", domains=TABS, unmapped="rest"
        ),
        tasks=[SIGNALS["click"], SIGNALS["long_view"]],
        features=_features(),
        split=TemporalSplit(
            by="temporal", column="date", validation_from=20220505, test_from=20220507
        ),
        drop_duplicates=True,
    )


def _features() -> list[Feature]:
    features: list[Feature] = [
        Categorical(name="user_id", role="user"),
        Categorical(name="video_id", role="item"),
        DomainIndicator(kind="domain"),
    ]
    features += [Categorical(name=n, role="user", width=8) for n in USER_CATEGORIES]
    features += [
        Numeric(kind="numeric", name=n, role="user", transform="log")
        for n in USER_NUMBERS
    ]
    features += [Categorical(name=n, role="item", width=8) for n in VIDEO_CATEGORIES]
    features += [
        Numeric(kind="numeric", name=n, role="item", transform="log")
        for n in VIDEO_NUMBERS
    ]
    features += [
        MultiValued(
            kind="multi",
            name="tag",
            role="item",
            separator=",",
            max_length=4,
            width=8,
        ),
        Categorical(name="hourmin", role="context", width=8),
        Popularity(
            kind="popularity", name="video_popularity", role="item", of="video_id"
        ),
        # What was shown before, clicked or not: 20 of the up to 50 listed.
        Sequence(
            kind="sequence",
            name="history",
            of="video_id",
            max_length=20,
            initial_column="watch_seq",
        ),
    ]
    return features
