"""Dirty logs through the whole job: what is counted, what is kept, what is said."""

import json

import numpy as np
import pytest

from features.dataset import Dataset
from features.registry import dataset_spec
from features.spec import UNKNOWN_ID
from pipeline import preprocess
from tests.pipeline import job_data

GOOD = 200


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A log in JSON lines with one bad line of each kind at its end."""
    folder = tmp_path_factory.mktemp("raw")
    good = [
        {
            "user": f"u{i % 7}",
            "item": i % 11,
            "time": 1_700_000_000 + i,
            "place": "ab"[i % 2],
            "click": i % 2,
            "price": i / 10,
        }
        for i in range(GOOD)
    ]
    late = 1_700_001_000  # test rows: from here on
    good += [{**good[0], "time": late + i, "item": 900 + i} for i in range(3)]
    first = good[0]
    lines = [
        *map(json.dumps, good),
        json.dumps({**first, "click": float("nan")}),
        json.dumps({**first, "click": 2}),
        json.dumps({**first, "price": "cheap"}),
        json.dumps({**first, "user": None}),
        json.dumps({**first, "time": "soon"}),
        json.dumps({**first, "place": "c"}),
        '{"user": "u1", "item"',
    ]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    spec = {
        "name": "dirty",
        "source": {"path": "log.jsonl"},
        "keys": {"user": "user", "item": "item", "time": "time"},
        "domain": {"by": "column", "column": "place", "values": ["a", "b"]},
        "tasks": [{"name": "click", "column": "click"}],
        "features": [
            {"kind": "categorical", "name": "item", "role": "item"},
            {"kind": "numeric", "name": "price", "role": "item"},
            {"kind": "sequence", "name": "history", "of": "item", "max_length": 3},
            {"kind": "domain"},
        ],
        "split": {
            "by": "temporal",
            "validation_from": 1_700_000_150,
            "test_from": late,
        },
        "max_rejected_share": 0.05,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def cli(raw, data_dir, *flags):
    fixed = ["--dataset", str(raw / "spec.json"), "--raw_dir", str(raw)]
    fixed += ["--data_dir", str(data_dir), "--no-statistics"]
    return preprocess.main([*fixed, *flags])


@pytest.fixture(scope="module")
def dataset(raw, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("out") / "data"
    assert cli(raw, data_dir) == 0
    return Dataset.open(data_dir)


def test_each_bad_row_is_counted_under_its_reason(dataset):
    assert dataset.info.rejected == {
        "label/click is missing": 1,
        "label/click must be 0 or 1": 1,
        "malformed JSON line": 1,
        "place must be a value of a domain": 1,
        "price must be a finite number": 1,
        "time must be a time": 1,
        "user is missing": 1,
    }


def test_each_bad_row_is_kept_with_its_reason(dataset):
    lines = (dataset.data_dir / "rejected/rows.jsonl").read_text().splitlines()
    rows = {json.loads(line)["reason"]: json.loads(line)["row"] for line in lines}
    assert len(lines) == 7
    assert '"price": "cheap"' in rows["price must be a finite number"]
    assert rows["malformed JSON line"] == (
        f'log.jsonl:{GOOD + 3 + 7}: {{"user": "u1", "item"'
    )


def test_good_rows_are_all_there(dataset):
    assert sum(dataset.info.num_rows(s) for s in dataset.info.counts) == GOOD + 3


def test_unknown_items_become_the_unknown_id_and_are_counted(dataset):
    items = np.ravel(job_data.read_rows(dataset, "test")["item"].to_pylist())
    assert items.tolist() == [UNKNOWN_ID] * 3  # items 900 ... were never trained on
    assert dataset.info.unknown["test"]["item"] == 3
    assert dataset.info.unknown["train"] == {}


def test_wrong_dtype_of_a_whole_column_is_told_with_an_example(raw, tmp_path, capsys):
    assert cli(raw, tmp_path / "data", "--set", "features.price.column=user") == 1
    error = capsys.readouterr().err
    assert "max_rejected_share must be at least the share of rejected rows" in error
    assert "x user must be a finite number, such as {" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("domian.by=column", "unknown key; known: .*Did you mean 'domain'?"),
        ("features.price.kind=numerik", "features.price: Input tag 'numerik'"),
        ("keys.time=[1]", r"keys.time: Input should be a valid string (got [1])"),
        ("domain.values=[]", "domain: values must name at least one"),
        ("domain.values=[a, a]", "['a'] stand twice"),
        (
            "domain={by: value_map, column: place, domains: {x: [a], y: [a]}}",
            "raw value 'a' is in 'x' and 'y'; a row has one domain",
        ),
        ("features.size={kind: numeric, role: item}", "column 'size' must be in the"),
    ],
)
def test_bad_spec_is_told_before_any_work(raw, tmp_path, capsys, override, message):
    assert cli(raw, tmp_path / "data", "--set", override) == 1
    error = capsys.readouterr().err
    for part in message.split(".*"):
        assert part in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_domain_rule_that_the_data_cannot_meet_is_told(raw, tmp_path, capsys):
    rule = "domain={by: top_k, column: place, k: 9}"
    assert cli(raw, tmp_path / "data", "--set", rule) == 1
    error = capsys.readouterr().err
    assert "domain.k must be at most the number of values of column 'place'" in error
    assert "Lower k." in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--previous_data_dir", "nowhere"], "nowhere is missing"),
        (["--statistics", "--schema", "nowhere"], "schema must have a readable schema"),
        (["--schema", "nowhere"], "schema_path needs statistics"),
    ],
)
def test_missing_references_are_told_before_any_work(
    raw, tmp_path, capsys, monkeypatch, flags, message
):
    from pipeline.jobs import preprocess as job

    monkeypatch.setattr(job, "build", lambda *_: pytest.fail("the job was started"))
    assert cli(raw, tmp_path / "data", *flags) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_override_reaches_a_domain_feature_without_a_name(raw):
    spec = dataset_spec(str(raw / "spec.json"), ["features.domain_indicator.width=3"])
    assert spec.feature("domain_indicator").width == 3
    assert dataset_spec(str(raw / "spec.json"), ["split.test_from=1700000999"])
