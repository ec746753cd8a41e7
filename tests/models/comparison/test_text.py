"""The printed table against numbers set by hand."""

import copy

import pytest

from models.comparison import text


def stats(mean, std=None):
    return {"mean": mean, "std": std}


def entry(aucs, *, tasks=("click",), **changes):
    cells = [
        {"domain": f"d{i // len(tasks)}", "task": tasks[i % len(tasks)], "auc": auc}
        for i, auc in enumerate(aucs)
    ]
    known = [a["mean"] for a in aucs if a["mean"] is not None]
    return {
        "cells": cells,
        "mean_auc": stats(sum(known) / len(known)),
        "mean_logloss": stats(0.41236),
        "train_rows_per_sec": 12345.6,
        "num_parameters": 1000,
        "seeds": 2,
        **changes,
    }


def compared(difference, error, p_value, **more):
    return {
        "difference": difference,
        "standard_error": error,
        "standard_error_rows": error,
        "standard_error_seeds": None,
        "p_value": p_value,
        **more,
    }


@pytest.fixture
def summary():
    gain = {
        "label": "base",
        "mean": compared(0.0123, 0.004, 0.002),
        "cells": [
            compared(0.03, 0.01, 0.003, domain="d0", task="click"),
            compared(-0.001, 0.01, 0.9, domain="d1", task="click"),
        ],
    }
    return {
        "main": "ours",
        "entries": {
            "base": entry([stats(0.61, 0.01), stats(0.7)]),
            "ours": entry([stats(0.64, 0.0049), stats(None)]),
        },
        "differences": {"best_baseline": gain},
    }


def test_table_has_means_spread_and_marks_the_main_entry(summary):
    lines = text.to_text(summary).split("\n")
    assert lines[0].split() == (
        ["AUC", "x", "100", "d0/click", "d1/click", *"mean LogLoss rows/s".split()]
        + ["parameters", "seeds"]
    )
    # Best mean first: 65.5 of base is (61 + 70) / 2, and ours has one cell only.
    assert lines[1].split() == (
        "base 61.00 +-1.00 70.00 65.50 0.4124 12,346 1,000 2".split()
    )
    assert lines[2].split() == (
        "*ours 64.00 +-0.49 undefined 64.00 0.4124 12,346 1,000 2".split()
    )


def test_gain_says_by_domain_whether_it_is_noise(summary):
    lines = text.to_text(summary).split("\n")
    (head,) = [i for i, line in enumerate(lines) if line.startswith("ours - base")]
    assert "(best baseline), AUC x 100: +1.23 +-0.40" in lines[head]
    assert "of seeds unknown, p = 0.002" in lines[head]
    assert lines[head + 1].split() == ["d0/click", "+3.00", "+-1.00", "better"]
    assert lines[head + 2].split() == [
        "d1/click",
        "-0.10",
        "+-1.00",
        *"within noise".split(),
    ]


def test_average_by_rows_orders_the_table_and_names_the_difference(summary):
    summary["average"] = "domain_auc"
    for label, auc in (("base", 0.6), ("ours", 0.7)):
        summary["entries"][label]["domain_auc"] = stats(auc)
    lines = text.to_text(summary).split("\n")
    assert "mean by rows" in lines[0]
    assert [line.split()[0] for line in lines[1:3]] == ["*ours", "base"]
    assert "70.00" in lines[1]
    assert "64.00  0.41" not in lines[1]
    assert "(best baseline), DomainAUC x 100: +1.23" in "\n".join(lines)


def test_many_cells_stand_below_each_other(summary):
    wide = copy.deepcopy(summary)
    wide["differences"] = {}
    for label in wide["entries"]:
        wide["entries"][label] = entry([stats(0.5 + i / 100) for i in range(8)])
    lines = text.to_text(wide).split("\n")
    assert lines[0].split() == ["AUC", "x", "100", "base", "*ours"]
    assert lines[8].split() == ["d7/click", "57.00", "57.00"]


def test_reference_columns_stand_beside_the_entries(summary):
    shown = text.to_text(summary, {"paper": [60.5, None]})
    (line,) = [x for x in shown.split("\n") if x.startswith("paper")]
    assert line.split() == ["paper", "60.50", "undefined", "60.50"]


def test_markdown_is_a_table_with_the_gains_below(summary):
    lines = text.to_markdown(summary, {"paper": [60.0, 61.0]}).split("\n")
    assert all(line.count("|") == 9 for line in lines[:5])
    assert lines[3].startswith("| **ours** | 64.00 +-0.49 | undefined |")
    assert lines[4].startswith("| paper | 60.00 | 61.00 | 60.50 |")
    assert "  - d0/click  +3.00 +-1.00  better" in lines


def test_without_runs_it_says_so():
    assert text.to_text({"entries": {}}) == "no run has finished yet"


def test_alarm_is_said_below_the_target_only_difference(summary):
    gain = summary["differences"].pop("best_baseline")
    found = {"hurt": ["d1/click"], "helped": ["d0/click"], "unclear": []}
    summary["differences"]["target_only"] = {**gain, "alarm": found}
    last = text.to_text(summary).split("\n")[-1]
    told = "  NEGATIVE TRANSFER in d1/click; transfer helped 1, unclear 0 cells"
    assert last == f"{told} (by test rows alone: one seed says nothing of seeds)"
    gain["mean"]["standard_error_seeds"] = 0.001
    assert text.to_text(summary).split("\n")[-1] == told
    found["hurt"] = []
    assert "no sign of negative transfer" in text.to_text(summary)
    assert "  - no sign of negative transfer" in text.to_markdown(summary)


def test_every_entry_says_where_it_hurts(summary):
    cells = {"hurt": ["d0/click", "d1/click"], "helped": [], "unclear": ["d2/click"]}
    found = {"mean": compared(-0.012, 0.004, 0.01), "alarm": cells, "rimp": -0.0187}
    summary["transfer"] = {"base": found}
    line = (
        "- base: -1.20 +-0.40, RImp -1.87 %; helped 0, unclear 1, "
        "hurt d0/click, d1/click"
    )
    assert line in text.to_text(summary).split("\n")
    assert line in text.to_markdown(summary).split("\n")


def test_groups_of_domains_are_shown_where_every_entry_has_them(summary):
    assert "Minor5" not in text.to_text(summary)
    for item in summary["entries"].values():
        item["groups"] = {"AUC": stats(0.7), "Minor5": stats(0.61234)}
    assert "61.23" in text.to_text(summary)
    summary["entries"]["base"].pop("groups")
    assert "61.23" not in text.to_text(summary)


def test_page_says_what_a_search_chose(summary):
    assert "by search" not in text.to_markdown(summary)
    settings = {
        "method_config.optimizer.dense.learning_rate": 0.0123456,
        "batch_size": 64,
    }
    summary["search"] = {
        "ours": {"settings": settings, "value": 0.8, "trials": 4, "failed": 0},
        "base": {"settings": {}, "value": 0.7, "trials": 4, "failed": 1},
    }
    page = text.to_markdown(summary)
    expected = (
        "- ours: optimizer.dense.learning_rate = 0.0123, batch_size = 64 (4 trials)"
    )
    assert expected in page
    assert "- base: as written (4 trials, of which 1 diverged)" in page
