"""One page over all result files of a folder: who wins where, by how much."""

import json
import operator
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from models.comparison.text import average_of, gain, markdown_row, mean_and_std

PAGE = "overview.md"
Stats = Mapping[str, Any]  # mean and std over seeds
Tables = Mapping[tuple[str, str], Mapping[str, Any]]  # (experiment, data) -> summary

_HEAD = """# Overview of all results

Written anew from the result files beside it whenever one of them is. AUC x 100, mean
over the compared cells of a table (each page names them; by rows, that is DomainAUC,
where its runs stop on that), +- std over seeds.
Differences have the standard error of test rows and, with several seeds, of seeds; `*`
where p < 0.05. The best baseline is chosen by validation AUC; the best of a column, by
test AUC, is bold. DomainAUC is the mean of domains' AUCs, weighed by their rows.
"""


def write(results_dir: pathlib.Path) -> pathlib.Path:
    """Writes the page of a folder of result files; returns its path."""
    path = results_dir / PAGE
    path.write_text(to_markdown(load(results_dir)), "utf-8")
    return path


def load(results_dir: pathlib.Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the summaries of all result files; other JSON files are left alone."""
    found = {}
    for path in sorted(results_dir.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        for data, summary in content.items() if isinstance(content, dict) else ():
            if isinstance(summary, dict) and summary.get("entries"):
                found[path.stem, data] = summary
    return found


def to_markdown(tables: Tables) -> str:
    """Returns the page.

    Args:
      tables: What `table.summarise` gave, by experiment and data set.
    """
    if not tables:
        return f"{_HEAD}\nNo result file here.\n"
    parts = [_HEAD, "## The main entry of each table", _gains(tables)]
    parts += ["## Every entry, mean AUC of the compared cells", _grid(tables)]
    whole = {key: summary.get("wide", summary) for key, summary in tables.items()}
    parts += ["## Entries that serve all domains, DomainAUC", _grid(whole, _domain_auc)]
    return "\n\n".join(parts) + "\n"


def _gains(tables: Tables) -> str:
    head = ["table", "main", "AUC", "best baseline", "difference"]
    head += ["target only", "difference", "cells helped", "hurt", "seeds"]
    rows = []
    for key, summary in tables.items():
        entry = summary["entries"].get(summary["main"])
        if entry is None:
            continue
        row = [_name(key), summary["main"], mean_and_std(entry[average_of(summary)])]
        for role in ("best_baseline", "target_only"):
            found = summary["differences"].get(role)
            known = found is not None and found["mean"]
            row += [found["label"], _marked(found["mean"])] if known else ["", ""]
        alarm = summary["differences"].get("target_only", {}).get("alarm", {})
        row += [str(len(alarm[k])) if alarm else "" for k in ("helped", "hurt")]
        rows.append([*row, str(entry["seeds"])])
    return _table(head, rows)


def _marked(mean: Mapping[str, Any]) -> str:
    known = mean["p_value"] is not None and mean["p_value"] < 0.05
    return gain(mean) + ("*" if known else "")


def _domain_auc(entry: Mapping[str, Any]) -> Stats | None:
    return entry.get("groups", {}).get("DomainAUC")


def _grid(
    tables: Tables, value: Callable[[Mapping[str, Any]], Stats | None] | None = None
) -> str:
    """A line an entry, a column a table; entries of one name are the same method."""
    columns = {}
    for key, summary in tables.items():
        of = value or operator.itemgetter(average_of(summary))
        found = {label: of(entry) for label, entry in summary["entries"].items()}
        columns[key] = {k: v for k, v in found.items() if v and v["mean"] is not None}
    columns = {key: column for key, column in columns.items() if column}
    best = {k: max(c, key=lambda name: c[name]["mean"]) for k, c in columns.items()}
    rows = []
    for label in dict.fromkeys(name for c in columns.values() for name in c):
        row = [label]
        for key, column in columns.items():
            text = mean_and_std(column[label]) if label in column else ""
            row.append(f"**{text}**" if label == best[key] else text)
        rows.append(row)
    return _table(["entry", *map(_name, columns)], rows)


def _name(key: tuple[str, str]) -> str:
    return " / ".join(key)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [markdown_row(head), "|" + "---|" * len(head), *map(markdown_row, rows)]
    return "\n".join(lines)
