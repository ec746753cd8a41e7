"""Tables of domains against the hidden groups of a planted log, by hand."""

import json

import numpy as np
import pytest

from models.audit import Matrix
from models.comparison import planted, text
from models.training.result import save_matrices

NAMES = ["a", "b", "c"]


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    facts = {"domains": [*NAMES, "unused"], "groups": [0, 1, 0, 1]}
    (folder / "truth.json").write_text(json.dumps(facts))
    return folder


def run(folder, overlap):
    folder.mkdir()
    values = np.array([[9, overlap, 0.8], [0.1, 9, 0.3], [0.6, 0.2, 9]])
    tables = {
        "overlap": Matrix(NAMES, NAMES, values),
        "use": Matrix(NAMES, ["0", "1"], np.ones([3, 2])),
    }
    save_matrices(folder, tables)
    return str(folder)


def test_pairs_inside_and_across_groups_are_averaged_over_seeds(raw, tmp_path):
    """Inside are a-c and c-a, (0.8 + 0.6) / 2; a domain with itself is neither."""
    (tmp_path / "plain").mkdir()
    entries = {
        "ours": {"workdirs": [run(tmp_path / "0", 0.2), run(tmp_path / "1", 0.6)]},
        "plain": {"workdirs": [str(tmp_path / "plain")]},
    }
    found = planted.group_agreement({"entries": entries}, raw)
    assert list(found) == ["ours"]
    assert list(found["ours"]) == ["overlap"]
    sides = found["ours"]["overlap"]
    assert sides["inside"] == {"mean": pytest.approx(0.7), "std": pytest.approx(0)}
    # Across are a-b, b-a, b-c, c-b; a-b is 0.2 with one seed and 0.6 with the other.
    seeds = np.mean([[0.2, 0.1, 0.3, 0.2], [0.6, 0.1, 0.3, 0.2]], axis=1)
    assert sides["across"]["mean"] == pytest.approx(seeds.mean())
    assert sides["across"]["std"] == pytest.approx(0.1 / np.sqrt(2))


def test_a_log_of_one_group_has_nothing_to_agree_with(raw, tmp_path):
    facts = {"domains": NAMES, "groups": [0, 0, 0]}
    (raw / "truth.json").write_text(json.dumps(facts))
    entries = {"ours": {"workdirs": [run(tmp_path / "0", 0.2)]}}
    assert planted.group_agreement({"entries": entries}, raw) == {}


def test_page_says_what_was_found():
    one = {"mean": 0.445, "std": 0.01}
    entry = {
        "cells": [],
        "mean_auc": {"mean": 0.7, "std": None},
        "mean_logloss": {"mean": None},
        "train_rows_per_sec": None,
        "num_parameters": 1,
        "seeds": 2,
    }
    summary = {
        "main": "ours",
        "entries": {"ours": entry},
        "differences": {},
        "hidden_groups": {
            "ours": {"overlap": {"inside": one, "across": {"mean": 0.2, "std": None}}}
        },
    }
    line = "- ours, overlap: 44.50 +-1.00 inside, 20.00 across"
    assert line in text.to_text(summary).split("\n")
    assert line in text.to_markdown(summary).split("\n")
    assert "hidden" not in text.to_text({**summary, "hidden_groups": {}})
