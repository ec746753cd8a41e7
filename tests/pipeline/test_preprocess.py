"""The preprocessing job on small logs: content, and the same bytes whatever the way."""

import json

import numpy as np
import pyarrow as pa
import pytest

from features.dataset import Dataset
from features.spec import NUM_RESERVED_IDS, UNKNOWN_ID
from tests.pipeline import job_data

ROWS = 300


@pytest.fixture(scope="module")
def log():
    return job_data.make_log(ROWS, bad=2)


@pytest.fixture(scope="module")
def raw(log, tmp_path_factory):
    return job_data.write_raw(tmp_path_factory.mktemp("raw"), log, files=3)


@pytest.fixture(scope="module")
def dataset(raw, tmp_path_factory):
    return job_data.run(raw, tmp_path_factory.mktemp("out") / "data")


def twin(log):
    """Histories, domains and tags of the good rows by plain Python, by row content."""
    rows = [r for r in log.to_pylist() if r["user_id"] is not None]
    result = {}
    for row in rows:
        earlier = sorted(
            (r["time"], r["item_id"])
            for r in rows
            if r["user_id"] == row["user_id"] and r["time"] < row["time"]
        )
        history = [str(item) for _, item in earlier][-4:]
        domain = row["channel"] if row["channel"] != "shop" else "rest"
        city = int(row["user_id"][1:])
        result[row["user_id"], str(row["item_id"]), row["position"]] = (
            history,
            domain,
            f"c{city % 3}" if city < job_data.USERS - 1 else None,
            [f"t{row['item_id'] % 4}", f"t{row['item_id'] % 7}"],
        )
    return result


def test_rows_on_disk_equal_a_plain_twin(dataset, log):
    expected = twin(log)
    fitted = dataset.info.fitted
    texts = {name: ["", None, *v.values] for name, v in fitted.vocabs.items()}
    params = fitted.numeric["position"]
    seen = 0
    for split in ("train", "validation", "test"):
        for row in job_data.read_rows(dataset, split).to_pylist():
            if UNKNOWN_ID in row["user_id"] + row["item_id"] + row["history"]:
                continue
            position = row["position"][0] * params.scale + params.shift
            key = (
                texts["user_id"][row["user_id"][0]],
                texts["item_id"][row["item_id"][0]],
                round(position, 2),
            )
            history, domain, city, tags = expected[key]
            shown = [texts["item_id"][i] for i in row["history"] if i]
            assert shown == history
            assert row["history"][len(history) :] == [0] * (4 - len(history))
            assert fitted.domains[row["domain"][0]] == domain
            assert texts["city"][row["city"][0]] == city
            assert [texts["tags"][i] for i in row["tags"]] == tags
            seen += 1
    assert seen > 0.9 * ROWS


def test_every_row_is_written_once_or_rejected(dataset):
    ids = [
        row["row_id"][0]
        for split in ("train", "validation", "test")
        for row in job_data.read_rows(dataset, split).to_pylist()
    ]
    assert len(set(ids)) == len(ids) == ROWS - 2
    assert sum(dataset.info.num_rows(s) for s in dataset.info.counts) == ROWS - 2
    assert sum(dataset.info.rejected.values()) == 2
    lines = (dataset.data_dir / "rejected/rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["user_id is missing"] * 2
    assert all("channel" in json.loads(json.loads(line)["row"]) for line in lines)


def test_counts_equal_the_rows_on_disk(dataset):
    for split, domains in dataset.info.counts.items():
        table = job_data.read_rows(dataset, split)
        index = np.ravel(table["domain"].to_pylist())
        labels = np.ravel(table["label/click"].to_pylist())
        for number, name in enumerate(dataset.info.fitted.domains):
            assert domains[name]["rows"] == (index == number).sum()
            assert domains[name]["positives"]["click"] == labels[index == number].sum()


def test_fitted_values_come_from_training_rows_only(dataset):
    train = job_data.read_rows(dataset, "train")
    items = np.ravel(train["item_id"].to_pylist())
    assert items.min() >= NUM_RESERVED_IDS
    counts = np.bincount(items)[NUM_RESERVED_IDS:]
    assert (np.diff(counts) <= 0).all()  # most frequent first, none unseen
    np.testing.assert_allclose(
        dataset.info.fitted.popularity["pop"][NUM_RESERVED_IDS:], np.log1p(counts)
    )
    position = np.ravel(train["position"].to_pylist())
    assert abs(position.mean()) < 1e-3
    assert abs(position.std() - 1) < 1e-3


def test_files_are_named_and_sized_by_plan(dataset):
    names = dataset.info.files["train"]
    assert names[0].startswith("train/part-00000-of-0000")
    assert len(names) == int(names[0][-len("4.tfrecord")]) == 4  # 70 rows each, about
    assert not any(path.name.startswith(".") for path in dataset.data_dir.rglob("*"))


@pytest.mark.parametrize(
    "change",
    [
        {"files": 1},
        {"files": 5, "order": [3, 0, 4, 2, 1]},
        {"user_buckets": 1},
        {"user_buckets": 64},
        {"beam_args": ("--direct_runner_bundle_repeat=1",)},
    ],
    ids=str,
)
def test_bytes_do_not_depend_on_input_files_buckets_or_retries(
    dataset, log, tmp_path, change
):
    files = {k: change.pop(k) for k in ("files", "order") if k in change}
    raw = job_data.write_raw(tmp_path / "raw", log, **files)
    other = job_data.run(raw, tmp_path / "data", **change)
    assert job_data.content(other.data_dir) == job_data.content(dataset.data_dir)


@pytest.mark.slow
def test_bytes_do_not_depend_on_worker_processes(dataset, raw, tmp_path):
    other = job_data.run(
        raw,
        tmp_path / "data",
        beam_args=("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
    )
    assert job_data.content(other.data_dir) == job_data.content(dataset.data_dir)


def test_seed_changes_the_order_only(dataset, raw, tmp_path):
    other = job_data.run(raw, tmp_path / "data", seed=1)
    rows = [
        [r["row_id"][0] for r in job_data.read_rows(d, "train").to_pylist()]
        for d in (dataset, other)
    ]
    assert rows[0] != rows[1]
    assert sorted(rows[0]) == sorted(rows[1])
    assert other.info.fitted.fingerprint() == dataset.info.fitted.fingerprint()


def test_rows_per_file_moves_only_the_cuts(dataset, raw, tmp_path):
    other = job_data.run(raw, tmp_path / "data", rows_per_file=1000)
    assert len(other.info.files["train"]) == 1
    assert job_data.read_rows(other, "train").equals(
        job_data.read_rows(dataset, "train")
    )


def test_row_format_and_compression_hold_the_same_rows(dataset, raw, tmp_path):
    other = job_data.run(
        raw, tmp_path / "data", record_format="row", compression="GZIP"
    )
    assert all(name.endswith(".tfrecord.gz") for name in other.info.files["train"])
    assert job_data.read_rows(other, "train").equals(
        job_data.read_rows(dataset, "train")
    )


def test_daily_partitions_hold_their_days_only(raw, tmp_path):
    spec = job_data.make_spec(partition_by_day=True)
    dataset = job_data.run(raw, tmp_path / "data", spec)
    folders = {name.split("/")[1] for name in dataset.info.files["train"]}
    assert folders == {f"dt=2024010{day}" for day in range(1, 6)}
    by_file = Dataset(dataset.data_dir, dataset.info)
    days = np.ravel(job_data.read_rows(by_file, "train")["day"].to_pylist())
    assert (np.diff(days) >= 0).all()  # folders in order, one day each


@pytest.mark.parametrize(
    "split",
    [
        {"by": "per_user_temporal"},
        {
            "by": "temporal",
            "validation_from": job_data.FIRST_SECOND + 3 * 86_400,
            "test_from": job_data.FIRST_SECOND + 4 * 86_400,
        },
        {"by": "published_order", "column": "position_in_log"},
    ],
    ids=lambda s: s["by"],
)
def test_split_rules_place_every_row(log, tmp_path, split):
    log = log.append_column("position_in_log", pa.array(range(ROWS)))
    raw = job_data.write_raw(tmp_path / "raw", log, files=2)
    dataset = job_data.run(raw, tmp_path / "data", job_data.make_spec(split=split))
    rows = {s: dataset.info.num_rows(s) for s in dataset.info.counts}
    assert sum(rows.values()) == ROWS - 2
    if split["by"] == "per_user_temporal":
        assert rows["test"] == rows["validation"] == job_data.USERS
    if split["by"] == "published_order":
        assert rows["test"] == pytest.approx(0.1 * ROWS, abs=2)


def test_duplicates_are_dropped_and_counted(log, tmp_path):
    doubled = pa.concat_tables([log, log.slice(10, 40)])
    raw = job_data.write_raw(tmp_path / "raw", doubled, files=3)
    spec = job_data.make_spec(drop_duplicates=True, max_rejected_share=0.02)
    dataset = job_data.run(raw, tmp_path / "data", spec)
    assert dataset.info.rejected["duplicate of another row"] == 40
    assert sum(dataset.info.num_rows(s) for s in dataset.info.counts) == ROWS - 2


def test_spec_without_history_needs_no_user_groups(raw, tmp_path):
    features = [{"kind": "categorical", "name": "item_id", "role": "item"}]
    spec = job_data.make_spec(features=features)
    dataset = job_data.run(raw, tmp_path / "data", spec)
    assert sum(dataset.info.num_rows(s) for s in dataset.info.counts) == ROWS - 2


def test_next_data_set_continues_the_vocabularies(dataset, tmp_path):
    later = job_data.make_log(200, seed=9).to_pandas()
    later["item_id"] += 20
    raw = job_data.write_raw(tmp_path / "raw", pa.Table.from_pandas(later))
    other = job_data.run(
        raw, tmp_path / "data", previous_data_dir=str(dataset.data_dir)
    )
    before = dataset.info.fitted.vocabs["item_id"]
    after = other.info.fitted.vocabs["item_id"]
    assert after.values[: len(before)] == before.values
    assert len(after) > len(before)
    assert after.version == before.version + 1
