import pytest
import yaml

from features import layout
from features import spec as spec_lib
from features.config import ConfigError
from features.registry import DATASETS, dataset_spec
from features.schema import encoded_columns

# Known only after the row was shown or rated: must never be an input.
AFTER_THE_FACT = {
    "rating",
    "helpfulness",
    "click",
    "like",
    "play_time_ms",
    "profile_stay_time",
    "comment_stay_time",
    "long_view",
    "timestamp",
    "published_position",
    "order_in_user",
}


@pytest.mark.parametrize("name", DATASETS)
def test_spec_is_valid_named_as_registered_and_encodable(name):
    spec = dataset_spec(name)
    assert spec.name == name
    assert encoded_columns(spec)
    assert layout.raw_columns(spec)
    again = spec_lib.DatasetSpec.parse(spec.model_dump(mode="json"))
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()


def test_fingerprints_of_all_data_sets_differ():
    assert len({dataset_spec(n).fingerprint() for n in DATASETS}) == len(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_no_feature_reads_what_is_known_only_afterwards(name):
    for feature in dataset_spec(name).features:
        columns = {
            spec_lib.raw_column(feature) if hasattr(feature, "column") else "",
            getattr(feature, "initial_column", None) or "",
        }
        assert not {c for c in columns if c in AFTER_THE_FACT or c.startswith("is_c")}


def test_movielens_is_m3oes_protocol():
    spec = dataset_spec("movielens_1m")
    assert list(spec.domain.domains.values()) == [
        ["1", "18"],
        ["25"],
        ["35", "45", "50", "56"],
    ]
    rules = [(t.name, t.column, t.compare, t.value) for t in spec.tasks]
    assert rules == [("click", "rating", "gt", 3), ("like", "rating", "gt", 4)]
    assert spec.split == spec_lib.PublishedOrderSplit(by="published_order")
    widths = {f.name: f.width for f in spec.features if hasattr(f, "width")}
    assert widths.pop("age") == 16  # unused: age is a plain number
    assert set(widths.values()) == {16}
    assert dataset_spec("movielens_1m_random").split.by == "random"


def test_epinions_splits_by_domain_or_time_point():
    spec = dataset_spec("epinions")
    assert (spec.split.validation, spec.split.test, spec.split.stratify) == (
        0.2,
        0.2,
        True,
    )
    split = dataset_spec("epinions_time").split
    assert (split.validation_from, split.test_from) == (10, 11)
    assert spec.domain.min_rows == 300


def test_kuairand_offers_twelve_signals_as_tasks():
    from features.datasets import kuairand_pure

    assert len(kuairand_pure.SIGNALS) == 12
    assert all(name == task.name for name, task in kuairand_pure.SIGNALS.items())
    spec = dataset_spec("kuairand_pure", ["tasks.like={column: is_like}"])
    assert spec.task_names == ("click", "long_view", "like")
    assert spec.tasks[2] == kuairand_pure.SIGNALS["like"]
    assert spec.drop_duplicates


def test_amazon_history_holds_purchases_only():
    for name in ("amazon_timed", "amazon_timed_beauty"):
        assert dataset_spec(name).feature("history").only_positive_of == "click"


def test_overrides_name_features_and_tasks():
    spec = dataset_spec(
        "synthetic",
        ["features.history.max_length=50", "features.hour=null", "tasks.like=null"],
    )
    assert spec.feature("history").max_length == 50
    assert spec.task_names == ("click",)
    names = [f.name for f in dataset_spec("synthetic").features if f.name != "hour"]
    assert [f.name for f in spec.features] == names


def test_override_of_a_rule_drops_the_settings_of_the_old_one():
    spec = dataset_spec("movielens_1m", ["split.by=random", "split.seed=7"])
    assert spec.split == spec_lib.RandomSplit(by="random", seed=7)
    spec = dataset_spec("movielens_1m", ["split={by: random, seed: 7}"])
    assert spec.split == spec_lib.RandomSplit(by="random", seed=7)
    spec = dataset_spec("movielens_1m", ["features.zip.encoding.by=vocab"])
    assert spec == dataset_spec("movielens_1m")
    spec = dataset_spec(
        "movielens_1m",
        ["features.zip.encoding.by=hash", "features.zip.encoding.num_buckets=100"],
    )
    assert spec.feature("zip").encoding.num_buckets == 100


def test_spec_from_a_yaml_file_takes_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(dataset_spec("synthetic").model_dump(mode="json")))
    assert dataset_spec(str(path)) == dataset_spec("synthetic")
    spec = dataset_spec(str(path), ["name=mine"])
    assert spec.name == "mine"


@pytest.mark.parametrize(
    ("name", "overrides", "error", "message"),
    [
        ("movilens_1m", [], LookupError, "Did you mean 'movielens_1m'"),
        ("nowhere.yaml", [], ConfigError, "existing file"),
        ("synthetic", ["splot.by=random"], ConfigError, "Did you mean 'split'"),
        ("synthetic", ["features.hour=3"], ConfigError, "must be a mapping"),
        ("synthetic", ["features.history.of=itm_id"], ConfigError, "'item_id'"),
        ("synthetic", ["split.validation_from=soon"], ConfigError, "validation_from"),
        ("synthetic", ["nonsense"], ConfigError, "a.b=value"),
    ],
)
def test_bad_names_and_overrides_are_explained(name, overrides, error, message):
    with pytest.raises(error, match=message):
        dataset_spec(name, overrides)
