"""Copies for minor domains: which rows, how many, and only the domain changed."""

import collections
import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from features.dataset import Dataset
from pipeline import augment as command
from pipeline.augmentation import AugmentOptions, Quotas
from pipeline.errors import JobError, root_cause
from pipeline.jobs import augment
from tests.pipeline import graph_data, job_data

TEST_FROM = job_data.FIRST_SECOND + 4 * 86_400
MINOR = "mini"  # 8 % of the rows
MIDDLE = "side"  # 15 %: neither gives rows nor gets copies
MAJORS = ("home", "shop")


def make_log():
    """Returns the log of `graph_data` with a third of `shop` in a domain between."""
    log = graph_data.make_log()
    place = log["place"].to_numpy()
    moved = (place == "shop") & (np.random.default_rng(3).random(len(place)) < 1 / 3)
    column = pa.array(np.where(moved, MIDDLE, place))
    return log.set_column(log.column_names.index("place"), "place", column)


def prepare(folder, log=None, **options):
    split = {"by": "temporal", "test_from": TEST_FROM}
    split["validation_from"] = TEST_FROM - 86_400
    values = [*graph_data.DOMAINS, MIDDLE]
    domain = {"by": "column", "column": "place", "values": values}
    spec = graph_data.make_spec(split=split, domain=domain)
    log = make_log() if log is None else log
    return graph_data.prepare(folder, log, spec=spec, **options)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("augment"))


def options_for(dataset, **changes):
    values = {
        "data_dir": str(dataset.data_dir),
        "minor_share": 0.12,
        "major_share": 0.2,
        "rate": 0.3,
        "max_copies": 2.0,
        "overwrite": True,
        "rows_per_file": 60,
    }
    return AugmentOptions.parse({**values, **changes})


def made(dataset, **changes):
    result = augment.run(options_for(dataset, **changes))
    report = json.loads((result.data_dir / "augmentation.json").read_text())
    return result, graph_data.plain_rows(result), report


@pytest.fixture(scope="module")
def copied(dataset):
    """Copies only, capped."""
    return made(dataset, include_train=False, name="copies")


def content(row):
    """Returns all of a row but what a copy may change."""
    return json.dumps({k: v for k, v in row.items() if k not in ("domain", "row_id")})


def test_copies_are_unpopular_positives_of_majors_with_another_domain(dataset, copied):
    _, rows, report = copied
    train = graph_data.plain_rows(dataset)
    domains = dataset.info.fitted.domains
    minor, majors = domains.index(MINOR), [domains.index(name) for name in MAJORS]
    seen, clicked = collections.Counter(), collections.Counter()
    for row in train:
        seen[row["item_id"]] += 1
        clicked[row["item_id"]] += row["label/click"]
    limit = sum(clicked.values()) / sum(seen.values())
    cold = {i for i in seen if (clicked[i] + 1) / (seen[i] + 2) <= limit}
    assert report["cold_at_most"] == pytest.approx(limit)
    assert report["cold_items"] == len(cold)
    assert report["items"] == len(seen)
    may = [
        r
        for r in train
        if r["label/click"] == 1 and r["item_id"] in cold and r["domain"] in majors
    ]
    assert report["candidates"] == {"positive": len(may)}
    sources = {content(row) for row in may}
    assert len(sources) == len(may)
    assert rows
    for row in rows:
        assert row["domain"] == minor
        assert row["label/click"] == 1
        assert content(row) in sources
    assert len({row["row_id"] for row in rows}) == len(rows)
    assert not {row["row_id"] for row in rows} & {row["row_id"] for row in train}


def test_unpopular_rows_are_drawn_in_proportion_to_one_over_popularity(dataset, copied):
    _, rows, _ = copied
    train = graph_data.plain_rows(dataset)
    seen, clicked = collections.Counter(), collections.Counter()
    for row in train:
        seen[row["item_id"]] += 1
        clicked[row["item_id"]] += row["label/click"]
    weight = {i: (seen[i] + 2) / (clicked[i] + 1) for i in seen}
    limit = sum(clicked.values()) / sum(seen.values())
    majors = [dataset.info.fitted.domains.index(name) for name in MAJORS]
    may = [
        r
        for r in train
        if r["label/click"] == 1
        and 1 / weight[r["item_id"]] <= limit
        and r["domain"] in majors
    ]
    total = sum(weight[r["item_id"]] for r in may)
    times = collections.Counter(map(content, rows))
    for row in may:
        expected = len(rows) * weight[row["item_id"]] / total
        assert abs(times[content(row)] - expected) < 1.001


def test_capped_bounds_the_copies_by_the_real_rows(dataset, copied):
    _, rows, report = copied
    real = dataset.info.num_rows("train", MINOR)
    assert len(rows) == 2 * real == report["copies"]
    assert report["domains"][MINOR]["copies"] == {"positive": 2 * real, "negative": 0}
    for name in (*MAJORS, MIDDLE):
        assert report["domains"][name]["copies"]["positive"] == 0
    wanted = 0.3 * dataset.info.num_rows("train")
    assert len(rows) < wanted  # the cap was what counted


def test_paper_mode_makes_the_stated_share_and_keeps_training_rows(dataset):
    result, rows, report = made(dataset, mode="paper", name="paper")
    train = graph_data.plain_rows(dataset)
    copies = round(0.3 * len(train))
    assert report["copies"] == copies
    assert len(rows) == len(train) + copies
    by_id = {row["row_id"]: row for row in rows}
    assert all(by_id[row["row_id"]] == row for row in train)
    again = Dataset.open(result.data_dir)
    assert again.info.fingerprint == dataset.info.fingerprint
    assert [again.info.num_rows(s) for s in ("validation", "test")] == [0, 0]
    minor = [r for r in rows if r["domain"] == dataset.info.fitted.domains.index(MINOR)]
    assert again.info.num_rows("train", MINOR) == len(minor)
    rate = np.mean([r["label/click"] for r in minor])
    cell = report["domains"][MINOR]
    assert cell["positive_rate_with_copies"] == pytest.approx(rate, abs=1e-6)


def test_with_negatives_a_domain_keeps_its_positive_rate(dataset):
    _, rows, report = made(
        dataset, negatives=True, include_train=False, name="negatives"
    )
    cell = report["domains"][MINOR]
    clicks = [row["label/click"] for row in rows]
    assert cell["copies"] == {
        "positive": sum(clicks),
        "negative": len(clicks) - sum(clicks),
    }
    assert len(clicks) == 2 * cell["rows"]
    assert np.mean(clicks) == pytest.approx(
        cell["positive_rate"], abs=0.5 / cell["rows"]
    )


def test_labels_outside_training_play_no_part(copied, tmp_path):
    log = make_log()
    late = log["time"].to_numpy() >= TEST_FROM - 86_400
    columns = {}
    rng = np.random.default_rng(1)
    for name in ("click", "buy"):
        labels = log[name].to_numpy().copy()
        labels[late] = rng.permutation(labels[late])
        assert (labels != log[name].to_numpy()).any()
        columns[name] = pa.array(labels)
    for name, values in columns.items():
        log = log.set_column(log.column_names.index(name), name, values)
    other = prepare(tmp_path, log)
    result, _, report = made(other, include_train=False, name="copies")
    assert report == copied[2]
    for path in copied[0].info.files["train"]:
        first, second = copied[0].data_dir / path, result.data_dir / path
        assert first.read_bytes() == second.read_bytes()


def test_same_bytes_for_any_order_of_rows_and_others_for_another_seed(copied, tmp_path):
    other = prepare(tmp_path, files=3, seed=9, rows_per_file=45)
    result, rows, _ = made(other, include_train=False, name="copies")
    for path in copied[0].info.files["train"]:
        first, second = copied[0].data_dir / path, result.data_dir / path
        assert first.read_bytes() == second.read_bytes()
    _, again, _ = made(other, include_train=False, name="copies", seed=1)
    assert len(again) == len(rows)
    assert sorted(map(content, again)) != sorted(map(content, rows))


def test_quotas_follow_the_lack_of_rows(dataset):
    rows = {"a": 6000, "b": 3000, "c": 500, "d": 300, "e": 100}
    cells = {
        name: {"rows": n, "labelled": {"click": n}, "positives": {"click": n // 4}}
        for name, n in rows.items()
    }
    fitted = dataclasses.replace(dataset.info.fitted, domains=tuple(rows))
    info = dataclasses.replace(dataset.info, fitted=fitted, counts={"train": cells})
    changes = {"minor_share": 0.06, "major_share": 0.2, "rate": 0.1}
    paper = Quotas.of(options_for(dataset, mode="paper", **changes), info)
    assert paper.majors == (0, 1)
    assert paper.minors == (2, 3, 4)
    copies = [paper.copies["positive", d] for d in (2, 3, 4)]
    # Lacks are 630 - rows: 130, 330, 530; their 30 % quantile is 250.
    shares = np.exp(np.array([130, 330, 530]) / 250)
    assert sum(copies) == 990
    np.testing.assert_allclose(copies, 990 * shares / shares.sum(), atol=1)
    capped = Quotas.of(options_for(dataset, **changes), info)
    assert [capped.copies["positive", d] for d in (2, 3, 4)] == [
        *copies[:2],
        200,
    ]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"major_share": 0.9}, JobError, "major_share must leave a domain"),
        ({"minor_share": 0.001}, JobError, "minor_share must leave a domain"),
        ({"task": "clik"}, LookupError, "Did you mean 'click'"),
        ({"item_feature": "position"}, Exception, "categorical feature"),
        ({"cold_at_most": 0.0001}, Exception, "must copy rows; got none"),
    ],
)
def test_bad_requests_are_explained_and_leave_nothing(dataset, changes, error, message):
    with pytest.raises(error) as caught:
        augment.run(options_for(dataset, name="bad", **changes))
    assert message in root_cause(caught.value)
    assert not list(dataset.data_dir.glob("streams/bad*"))


def test_feature_of_the_domains_column_is_refused(dataset, monkeypatch):
    place = {"kind": "categorical", "name": "place", "role": "context"}
    spec = graph_data.make_spec(features=[place, {"kind": "domain"}])
    info = dataclasses.replace(dataset.info, spec=spec)
    changed = dataclasses.replace(dataset, info=info)
    monkeypatch.setattr(Dataset, "open", lambda _: changed)
    with pytest.raises(JobError, match="reads 'place'"):
        augment.run(options_for(dataset))


def test_command_line_runs_reports_and_fails_with_a_status(dataset, capsys):
    arguments = ["--data_dir", str(dataset.data_dir), "--name", "cli"]
    arguments += ["--minor_share", "0.12", "--no-include_train"]
    assert command.main(arguments) == 0
    assert "items are unpopular" in capsys.readouterr().out
    assert command.main(arguments) == 1
    assert "name must name what does not exist yet" in capsys.readouterr().err
    assert command.main([*arguments, "--overwrite", "--max_copyes=3"]) == 1
    assert "--max_copyes=3" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    assert "examples:" in capsys.readouterr().out
