"""The choice of source rows against plain loops, its limits, and what it leaves."""

import dataclasses
import json

import numpy as np
import pytest

from features.dataset import Dataset
from pipeline import select_samples as command
from pipeline.errors import JobError, root_cause
from pipeline.jobs import select_samples
from pipeline.transforms import graph_look
from tests.pipeline import graph_data


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return graph_data.prepare(tmp_path_factory.mktemp("graph"))


class Chosen:
    """A stream that was made, its rows as dicts, and its report."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.rows = graph_data.plain_rows(dataset)
        self.report = json.loads((dataset.data_dir / "selection.json").read_text())

    @property
    def ids(self):
        return sorted(row["row_id"] for row in self.rows)


@pytest.fixture(scope="module")
def choose(dataset):
    """Runs the job, once for each set of options."""
    made = {}

    def get(**changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            name = {"name": f"s{len(made)}", **changes}
            made[key] = Chosen(
                select_samples.run(graph_data.options_for(dataset, **name))
            )
        return made[key]

    return get


ZERO = {"hops": 0}
ONE = {"hops": 1, "edge_tasks": ["click"]}
TWO = {"min_co_clicks": 1}
CAPPED = {"degree_cap": 1, "min_co_clicks": 2}
DAY_BY_DAY = {
    "cutoff_day": graph_data.FIRST_DAY + 2,
    "first_day": graph_data.FIRST_DAY + 3,
    "last_day": graph_data.FIRST_DAY + 3,
}


@pytest.mark.parametrize(
    "changes",
    [
        ZERO,
        ONE,
        TWO,
        CAPPED,
        {
            "cluster_features": ["genre", "city"],
            "cluster_min_share": 0.3,
            "require_seed": False,
        },
        DAY_BY_DAY,
        {"source_domains": ["home", "mini"], "min_co_clicks": 1},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_rows_and_report_equal_a_plain_walk(changes, choose, dataset):
    chosen = choose(**changes)
    options = graph_data.options_for(dataset, **changes)
    found, limit = graph_data.chosen_rows(dataset, options)
    assert 0 < len(found) <= limit
    assert chosen.ids == sorted(row_id for _, row_id in found)
    hops = [hop for hop, _ in found]
    report = chosen.report
    assert report["rows_by_hop"] == {str(h): hops.count(h) for h in range(3)}
    users, items = graph_data.near_nodes(dataset, options)
    for side, nodes in (("users", users), ("items", items)):
        counts = list(nodes.values())
        assert report["nodes"][side] == {str(h): counts.count(h) for h in range(3)}
    target = dataset.info.fitted.domains.index("mini")
    assert all(row["domain"] != target for row in chosen.rows)


def test_hop_zero_is_rows_among_seeds_and_more_hops_add_rows(choose, dataset):
    mini = dataset.info.fitted.domains.index("mini")
    everything = graph_data.plain_rows(dataset)
    users = {r["user_key"] for r in everything if r["domain"] == mini}
    items = {r["item_id"] for r in everything if r["domain"] == mini}
    among = [
        r["row_id"]
        for r in everything
        if r["domain"] != mini and r["user_key"] in users and r["item_id"] in items
    ]
    zero, one, two = (choose(**changes).ids for changes in (ZERO, ONE, TWO))
    assert zero == sorted(among)
    assert set(zero) < set(one) < set(two)


def test_caps_only_take_rows_away(choose):
    assert set(choose(**CAPPED).ids) < set(choose(**TWO).ids)


def test_limit_keeps_near_rows_first_and_exactly_so_many(choose, dataset):
    found, _ = graph_data.chosen_rows(dataset, graph_data.options_for(dataset, **TWO))
    hop_of = {row_id: hop for hop, row_id in found}
    zero = sum(hop == 0 for hop in hop_of.values())
    target = dataset.info.num_rows("train", "mini")
    ratios = (0.5 * zero / target, 1.0)
    assert zero < target < len(found)
    less, more = (choose(**TWO, max_ratio=ratio) for ratio in ratios)
    for chosen, ratio in zip((less, more), ratios, strict=True):
        rows, report = chosen.rows, chosen.report
        assert len(rows) == report["max_rows"] == int(ratio * target)
        hops = sorted(hop_of[row["row_id"]] for row in rows)
        assert hops == sorted(hop_of.values())[: len(rows)]
        assert report["rows_by_hop_before_limit"]["0"] == zero
    assert set(less.ids) < set(more.ids)


def test_edges_and_seeds_after_the_cutoff_play_no_part(choose, dataset):
    # The plain walk leaves them out; with them there would be other nodes.
    early = graph_data.near_nodes(
        dataset, graph_data.options_for(dataset, **DAY_BY_DAY)
    )
    whole = graph_data.near_nodes(dataset, graph_data.options_for(dataset))
    chosen = choose(**DAY_BY_DAY)
    counts = [sum(chosen.report["nodes"][side].values()) for side in ("users", "items")]
    assert counts == [len(nodes) for nodes in early]
    assert all(len(a) < len(b) for a, b in zip(early, whole, strict=True))
    assert {row["day"] for row in chosen.rows} == {graph_data.FIRST_DAY + 3}


def test_stream_is_a_data_set_of_the_same_kind_with_training_rows_only(choose, dataset):
    result, report = choose(**ONE).dataset, choose(**ONE).report
    assert result.data_dir.parent == dataset.data_dir / "streams"
    again = Dataset.open(result.data_dir)
    assert again.info.fingerprint == dataset.info.fingerprint
    assert again.info.model_schema == dataset.info.model_schema
    assert [again.info.num_rows(s) for s in ("validation", "test")] == [0, 0]
    whole = {row["row_id"]: row for row in graph_data.plain_rows(dataset)}
    rows = graph_data.plain_rows(again)
    assert rows == [whole[row["row_id"]] for row in rows]
    for name, cell in report["domains"].items():
        index = dataset.info.fitted.domains.index(name)
        own = [r for r in rows if r["domain"] == index]
        source = [r for r in whole.values() if r["domain"] == index]
        assert cell["rows"] == len(own) == again.info.num_rows("train", name)
        assert cell["share_kept"] == pytest.approx(len(own) / len(source), abs=1e-6)
        for rate, found in (("positive_rate", own), ("source_positive_rate", source)):
            clicks = np.mean([r["label/click"] for r in found])
            assert cell[rate]["click"] == pytest.approx(clicks, abs=1e-6)


def test_reader_reads_the_stream(choose):
    from tfrecords_tools import read

    result = choose(**ONE).dataset
    batches = list(read.read_stream(result, batch_size=32))
    rows = sum(int(batch.valid.numpy().sum()) for batch in batches)
    assert rows == result.info.num_rows("train") > 0


def test_same_bytes_for_any_order_of_rows_and_any_buckets(choose, dataset, tmp_path):
    # Another shuffle, files and record format: the same rows come in another order.
    other = graph_data.prepare(tmp_path, files=3, seed=9, rows_per_file=45)
    assert other.info.fingerprint == dataset.info.fingerprint
    one = choose(**TWO, max_ratio=1.0).dataset
    changes = {**TWO, "max_ratio": 1.0, "num_buckets": 7}
    two = select_samples.run(graph_data.options_for(other, **changes))
    assert one.info.files == two.info.files
    assert len(one.files("train")) > 1
    for path in one.info.files["train"]:
        first, second = one.data_dir / path, two.data_dir / path
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target_domains": ["minni"]}, LookupError, "Did you mean 'mini'"),
        ({"edge_tasks": ["pay"]}, LookupError, "edge_tasks must be one of"),
        ({"source_domains": ["mini"]}, JobError, "besides the target"),
        ({"item_feature": "position"}, JobError, "categorical feature"),
        ({"cluster_features": ["position"]}, JobError, "of users or items"),
        (
            {"first_day": 20240301, "last_day": 20240302},
            Exception,
            "must have training rows in the days",
        ),
    ],
)
def test_bad_requests_are_explained_and_leave_nothing(dataset, changes, error, message):
    options = graph_data.options_for(dataset, name="bad", **changes)
    with pytest.raises(error) as caught:
        select_samples.run(options)
    assert message in root_cause(caught.value)
    streams = dataset.data_dir / "streams"
    assert not [p for p in streams.glob("*") if p.name.startswith("bad")]


def test_options_that_contradict_each_other_are_refused(dataset):
    with pytest.raises(ValueError, match="clusters are hop two"):
        graph_data.options_for(dataset, hops=1, cluster_features=["genre"])
    with pytest.raises(ValueError, match="first_day must not be after"):
        graph_data.options_for(dataset, cutoff_day=20240102, first_day=20240103)


def test_days_are_refused_without_days(dataset):
    keys = {"user": "user_id", "item": "item_id", "time": "time", "time_unit": "order"}
    info = dataclasses.replace(dataset.info, spec=graph_data.make_spec(keys=keys))
    timeless = dataclasses.replace(dataset, info=info)
    options = graph_data.options_for(dataset, cutoff_day=20240101)
    with pytest.raises(JobError, match="without days"):
        graph_look.SelectionPlan(options, timeless)


def test_command_line_runs_reports_and_fails_with_a_status(dataset, capsys):
    arguments = ["--data_dir", str(dataset.data_dir), "--target_domains", "mini"]
    arguments += ["--hops", "1", "--name", "cli", "--num_buckets", "2"]
    assert command.main(arguments) == 0
    assert "hop 0:" in capsys.readouterr().out
    assert command.main(arguments) == 1
    assert "name must name what does not exist yet" in capsys.readouterr().err
    assert command.main([*arguments, "--overwrite", "--maxratio=3"]) == 1
    assert "--maxratio=3" in capsys.readouterr().err
    assert command.main([*arguments[:3], "nowhere"]) == 1
    assert "target_domains must be one of" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    assert "examples:" in capsys.readouterr().out
