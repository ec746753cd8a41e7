import json

from models.comparison import overview


def stats(mean, std=None):
    return {"mean": mean, "std": std}


def entry(mean, std=None, *, seeds=1, domain_auc=None):
    groups = {} if domain_auc is None else {"DomainAUC": stats(domain_auc)}
    return {"mean_auc": stats(mean, std), "groups": groups, "seeds": seeds}


def difference(label, value, p_value, **more):
    mean = {"difference": value, "standard_error": 0.002, "p_value": p_value}
    return {"label": label, "mean": mean, **more}


def summary(entries, main="ours", **differences):
    return {"entries": entries, "main": main, "differences": differences}


def lines(page, start):
    return [line for line in page.splitlines() if line.startswith(start)]


def test_main_entry_stands_against_baseline_and_target_with_noise():
    alarm = {"helped": ["a/click", "b/click"], "hurt": ["c/click"], "unclear": []}
    table = summary(
        {"ours": entry(0.712, 0.001, seeds=3), "mlp": entry(0.7)},
        best_baseline=difference("mlp", 0.012, 0.001),
        target_only=difference("single", -0.0005, 0.6, alarm=alarm),
    )
    page = overview.to_markdown({("exp", "data"): table})
    assert lines(page, "| exp / data | ours") == [
        "| exp / data | ours | 71.20 +-0.10 | mlp | +1.20 +-0.20* | single | "
        "-0.05 +-0.20 | 2 | 1 | 3 |"
    ]


def test_entries_of_all_tables_stand_in_one_grid_the_best_bold():
    first = summary({"ours": entry(0.71), "mlp": entry(0.7)})
    second = summary({"mlp": entry(0.6), "star": entry(0.5), "bad": entry(None)})
    page = overview.to_markdown({("a", "x"): first, ("b", "y"): second})
    assert "| entry | a / x | b / y |" in page
    assert lines(page, "| mlp") == ["| mlp | 70.00 | **60.00** |"]
    assert lines(page, "| star") == ["| star |  | 50.00 |"]
    assert lines(page, "| ours |") == ["| ours | **71.00** |  |"]
    assert not lines(page, "| bad")


def test_domain_auc_is_that_of_the_entries_that_serve_all_domains():
    table = summary({"ours": entry(0.71, domain_auc=0.9)})
    table["wide"] = summary({"mlp": entry(0.6, domain_auc=0.65)})
    page = overview.to_markdown({("a", "x"): table})
    assert lines(page, "| mlp") == ["| mlp | **65.00** |"]


def test_table_of_runs_that_stop_on_domain_auc_goes_by_it():
    table = summary({"ours": {**entry(0.71), "domain_auc": stats(0.66)}})
    page = overview.to_markdown({("a", "x"): {**table, "average": "domain_auc"}})
    assert lines(page, "| ours") == ["| ours | **66.00** |"]
    assert "| a / x | ours | 66.00 |" in page


def test_folder_gives_its_result_files_and_no_others(tmp_path):
    found = {"data": summary({"ours": entry(0.71)})}
    (tmp_path / "exp.json").write_text(json.dumps(found))
    (tmp_path / "speeds.json").write_text(json.dumps([{"rows": 3}]))
    (tmp_path / "other.json").write_text(json.dumps({"x": {"entries": {}}, "y": 1}))
    assert overview.write(tmp_path) == tmp_path / "overview.md"
    assert list(overview.load(tmp_path)) == [("exp", "data")]
    assert "| ours | **71.00** |" in (tmp_path / "overview.md").read_text()


def test_folder_without_results_says_so(tmp_path):
    assert "No result file" in overview.write(tmp_path).read_text()
