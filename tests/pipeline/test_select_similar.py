"""Rows of nodes like the seeds, chosen by the job, against a plain walk."""

import json

import numpy as np
import pyarrow as pa
import pytest

from pipeline import select_samples as command
from pipeline.jobs import select_samples
from tests.pipeline import graph_data, similar_data


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return graph_data.prepare(tmp_path_factory.mktemp("similar"))


class Chosen:
    """A stream that was made, and its report."""

    def __init__(self, dataset, **changes):
        self.dataset = select_samples.run(graph_data.options_for(dataset, **changes))
        path = self.dataset.data_dir / "selection.json"
        self.report = json.loads(path.read_text())


@pytest.fixture(scope="module")
def choose(dataset):
    """Runs the job, once for each set of options."""
    made = {}

    def get(**changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            made[key] = Chosen(dataset, **{"name": f"s{len(made)}", **changes})
        return made[key]

    return get


def twin_nodes(dataset, options):
    """Returns hop by user and by item with similar nodes, and how clear the cut is."""
    both = graph_data.near_nodes(dataset, options)
    domains = dataset.info.fitted.domains
    targets = {domains.index(name) for name in options.target_domains}
    cutoff = options.cutoff_day or 99_999_999
    edges = [
        (row["user_key"], row["item_id"])
        for row in graph_data.plain_rows(dataset)
        if row["domain"] not in targets
        and row["day"] <= cutoff
        and 1 in (row["label/click"], row["label/buy"])
        and row["item_id"] >= graph_data.NUM_RESERVED_IDS
    ]
    similar, margin = options.similar, 1.0
    for side, nodes in zip(("users", "items"), both, strict=True):
        if side not in similar.sides:
            continue
        pairs = edges if side == "items" else [(item, user) for user, item in edges]
        names, cosines = similar_data.plain_cosines(
            pairs,
            degree_cap=options.degree_cap,
            min_count=similar.min_count,
            dim=similar.dim,
            width=64,
            seed=options.seed,
        )
        seeds = {node for node, hop in nodes.items() if hop == 0}
        is_seed = np.isin(names, list(seeds))
        compared = cosines[is_seed][:, ~is_seed]
        margin = min(margin, np.abs(compared - similar.min_cosine).min())
        found = similar_data.like_seeds(
            names, cosines, seeds, similar.min_cosine, similar.top_n
        )
        for node in found:
            nodes.setdefault(node, 3)
    return both, margin


def like(min_cosine, **changes):
    values = {"dim": 16, "min_count": 1, "min_cosine": min_cosine, "top_n": 999}
    return {"hops": 0, "similar": {**values, **changes}}


BOTH = like(0.6274)  # where no cosine is near
DAY_BY_DAY = {
    **like(0.6658),
    "cutoff_day": graph_data.FIRST_DAY + 2,
    "first_day": graph_data.FIRST_DAY + 2,
    "last_day": graph_data.FIRST_DAY + 4,
}
WIDE = {**BOTH, "require_seed": False}
CASES = [
    like(0.6591, sides=["items"]),
    {**like(0.6653), "hops": 1, "degree_cap": 3},
    WIDE,
    DAY_BY_DAY,
]


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: "-".join(changes))
def test_rows_of_similar_nodes_equal_a_plain_walk(
    changes, choose, dataset, monkeypatch
):
    options = graph_data.options_for(dataset, **changes)
    nodes, margin = twin_nodes(dataset, options)
    assert margin > 1e-3  # or a rounding could decide
    monkeypatch.setattr(graph_data, "near_nodes", lambda *_: nodes)
    expected, _ = graph_data.chosen_rows(dataset, options)
    chosen = choose(**changes)
    rows, report = graph_data.plain_rows(chosen.dataset), chosen.report
    assert sorted(r["row_id"] for r in rows) == sorted(i for _, i in expected)
    hops = [hop for hop, _ in expected]
    assert report["rows_by_hop"] == {str(h): hops.count(h) for h in range(4)}
    assert hops.count(3) > 0
    for side, found in zip(("users", "items"), nodes, strict=True):
        counts = list(found.values())
        assert report["nodes"][side] == {str(h): counts.count(h) for h in range(4)}
    target = dataset.info.fitted.domains.index("mini")
    assert all(row["domain"] != target for row in rows)
    assert report["settings"]["similar"] == options.similar.model_dump(mode="json")


def test_edges_after_the_cutoff_change_no_node(choose, dataset, tmp_path):
    log = graph_data.make_log()
    late = np.array(log["time"]) >= graph_data.job_data.FIRST_SECOND + 3 * 86_400
    click = np.where(late, 1 - np.array(log["click"]), np.array(log["click"]))
    place = log.schema.get_field_index("click")
    log = log.set_column(place, "click", pa.array(click))
    other = graph_data.prepare(tmp_path, log)
    # Users: their keys do not hang on the rows, as the numbers of items do.
    users = choose(**DAY_BY_DAY).report["nodes"]["users"]
    again = Chosen(other, **DAY_BY_DAY, name="late").report["nodes"]["users"]
    assert again == users
    assert users["3"] > 0
    # Without a cut-off they would.
    whole = [
        twin_nodes(d, graph_data.options_for(d, **BOTH))[0][0] for d in (dataset, other)
    ]
    assert whole[0] != whole[1]


def test_limit_takes_similar_nodes_last(choose):
    whole = choose(**WIDE).report
    near, most = whole["rows_by_hop"]["0"], sum(whole["rows_by_hop"].values())
    ratio = (near + 0.5 * (most - near)) / whole["target_rows"]
    part = choose(**WIDE, max_ratio=ratio).report
    assert part["rows_by_hop"]["0"] == near
    assert 0 < part["rows_by_hop"]["3"] < whole["rows_by_hop"]["3"]
    assert part["rows_by_hop_before_limit"] == whole["rows_by_hop"]
    assert part["rows"] == part["max_rows"]


def test_same_bytes_for_any_order_of_rows_and_any_buckets(choose, tmp_path):
    other = graph_data.prepare(tmp_path, files=3, seed=9, rows_per_file=45)
    one, two = choose(**WIDE), Chosen(other, **WIDE, name="same", num_buckets=8)
    for path in one.dataset.info.files["train"]:
        first, second = (made.dataset.data_dir / path for made in (one, two))
        assert first.read_bytes() == second.read_bytes()
    reports = [{**made.report, "settings": None} for made in (one, two)]
    assert reports[0] == reports[1]


def test_off_the_report_says_nothing_of_it(choose):
    report = choose(hops=1).report
    assert "similar" not in report["settings"]
    for counts in (report["rows_by_hop"], *report["nodes"].values()):
        assert list(counts) == ["0", "1", "2"]


def test_command_line_adds_similar_nodes_and_explains_its_settings(dataset, capsys):
    arguments = ["--data_dir", str(dataset.data_dir), "--target_domains", "mini"]
    arguments += ["--hops", "0", "--name", "cli", "--overwrite", "--similar"]
    assert command.main([*arguments, "dim=16", "min_count=1", "sides=[items]"]) == 0
    assert "hop 3:" in capsys.readouterr().out
    assert command.main([*arguments, "min_cosine=2"]) == 1
    assert "min_cosine must be above 0" in capsys.readouterr().err
    assert command.main([*arguments, "top_n"]) == 1
    assert "--similar must be followed by" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "min_cosine=" in capsys.readouterr().out
