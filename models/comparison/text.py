"""The comparison's table in words: for a terminal, and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# AUC x 100 by cell (domain, task) and label: published or best reachable values.
References = Mapping[str, Sequence[float]]
UNDEFINED = "undefined"
WIDE = "The entries that serve all domains"
# More cells than this stand below each other, so that a terminal shows them.
MAX_CELLS_ACROSS = 6
# The average over cells of `summary["average"]`: heading, name in a difference.
AVERAGES = {"mean_auc": ("mean", "AUC"), "domain_auc": ("mean by rows", "DomainAUC")}
FEATURES = ("LogLoss", "rows/s", "parameters", "seeds")


def to_text(summary: Mapping[str, Any], references: References | None = None) -> str:
    """Returns the table that is printed: AUC x 100, mean +- std over seeds.

    Below it stands what the main entry gains, with its noise, on average and by cell.

    Args:
      summary: What `table.summarise` gives.
      references: Further columns, e.g. published values.
    """
    if not summary["entries"]:
        return "no run has finished yet"
    grid = _grid(summary, references or {}, marked="*{}")
    across = len(_cells(summary)) > MAX_CELLS_ACROSS
    if across:
        grid = [list(column) for column in zip(*grid, strict=True)]
    widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in grid
    ]
    for role, values in summary["differences"].items():
        lines += ["", *_difference(summary, role, values)]
    lines += _transfer(summary)
    lines += _hidden_groups(summary)
    if "wide" in summary:
        lines += ["", WIDE, to_text(summary["wide"])]
    return "\n".join(lines)


def to_markdown(
    summary: Mapping[str, Any], references: References | None = None
) -> str:
    """Returns the same as Markdown, entries below each other."""
    if not summary["entries"]:
        return "no run has finished yet\n"
    head, *rows = _grid(summary, references or {}, marked="**{}**")
    lines = [markdown_row(head), "|" + "---|" * len(head), *map(markdown_row, rows)]
    for role, values in summary["differences"].items():
        first, *cells = _difference(summary, role, values)
        lines += ["", f"- {first}", *(f"  - {cell.strip()}" for cell in cells)]
    lines += _transfer(summary)
    lines += _hidden_groups(summary)
    lines += _searched(summary)
    if "wide" in summary:
        lines += ["", f"{WIDE}:", "", to_markdown(summary["wide"])]
    return "\n".join(lines) + "\n"


def _transfer(summary: Mapping[str, Any]) -> list[str]:
    """Returns what each entry gains over the target-only one, and where it hurts."""
    found = summary.get("transfer") or {}
    name = AVERAGES[average_of(summary)][1]
    lines = ["", f"Each entry against target only, {name} x 100; cells by their noise:"]
    for label, values in found.items():
        cells = values["alarm"]
        hurt = f", hurt {', '.join(cells['hurt'])}" if cells["hurt"] else ""
        lines.append(
            f"- {label}: {gain(values['mean'])}, RImp {100 * values['rimp']:+.2f} %; "
            f"helped {len(cells['helped'])}, unclear {len(cells['unclear'])}{hurt}"
        )
    return lines if found else []


def _hidden_groups(summary: Mapping[str, Any]) -> list[str]:
    """Returns how tables of domains follow a planted log's groups, if they do."""
    found = summary.get("hidden_groups") or {}
    lines = ["", "Two domains of one hidden group, and of two (mean x 100):"]
    lines += [
        f"- {label}, {name}: {mean_and_std(sides['inside'])} inside, "
        f"{mean_and_std(sides['across'])} across"
        for label, tables in found.items()
        for name, sides in tables.items()
    ]
    return lines if found else []


def _searched(summary: Mapping[str, Any]) -> list[str]:
    """Returns which settings a search chose, an entry a line; none without one."""
    found = summary.get("search") or {}
    lines = ["", "Settings by search on validation:"] if found else []
    for label, values in found.items():
        settings = ", ".join(
            f"{key.removeprefix('method_config.')} = "
            + (f"{value:.3g}" if isinstance(value, float) else str(value))
            for key, value in values["settings"].items()
        )
        trials = f"{values['trials']} trials"
        if values["failed"]:
            trials += f", of which {values['failed']} diverged"
        lines.append(f"- {label}: {settings or 'as written'} ({trials})")
    return lines


def markdown_row(values: Sequence[str]) -> str:
    """Returns a line of a Markdown table."""
    return "| " + " | ".join(values) + " |"


def _cells(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return next(iter(summary["entries"].values()))["cells"]


def _grid(
    summary: Mapping[str, Any], references: References, *, marked: str
) -> list[list[str]]:
    """Returns rows of texts: a heading, the entries from best to worst, references."""
    entries = summary["entries"]
    names = [f"{cell['domain']}/{cell['task']}" for cell in _cells(summary)]
    groups = _group_names(summary)
    average = average_of(summary)
    rows = [["AUC x 100", *names, *groups, AVERAGES[average][0], *FEATURES]]
    for label in sorted(entries, key=lambda k: -(entries[k][average]["mean"] or 0)):
        entry = entries[label]
        speed, loss = entry["train_rows_per_sec"], entry["mean_logloss"]["mean"]
        rows.append(
            [
                marked.format(label) if label == summary["main"] else label,
                *(mean_and_std(cell["auc"]) for cell in entry["cells"]),
                *(mean_and_std(entry["groups"][name]) for name in groups),
                mean_and_std(entry[average]),
                "-" if loss is None else f"{loss:.4f}",
                "-" if speed is None else f"{speed:,.0f}",
                f"{entry['num_parameters']:,}",
                str(entry["seeds"]),
            ]
        )
    for label, values in references.items():
        shown = [UNDEFINED if v is None else f"{v:.2f}" for v in values]
        known = [v for v in values if v is not None]
        mean = f"{np.mean(known):.2f}" if known else UNDEFINED
        blank = [""] * len(FEATURES)
        rows.append([label, *shown, *[""] * len(groups), mean, *blank])
    return rows


def _group_names(summary: Mapping[str, Any]) -> list[str]:
    """Returns the groups of domains to show: none where there is a handful."""
    entries = [entry.get("groups", {}) for entry in summary["entries"].values()]
    common = [name for name in entries[0] if all(name in e for e in entries)]
    return common if any(name.startswith("M") for name in common) else []


def _alarm(values: Mapping[str, Any]) -> list[str]:
    """Returns the sentence that says where transfer hurt, if it is known."""
    if "alarm" not in values:
        return []
    found = values["alarm"]
    counts = f"helped {len(found['helped'])}, unclear {len(found['unclear'])} cells"
    if values["mean"] and values["mean"]["standard_error_seeds"] is None:
        counts += " (by test rows alone: one seed says nothing of seeds)"
    if not found["hurt"]:
        return [f"no sign of negative transfer: transfer {counts}"]
    return [f"NEGATIVE TRANSFER in {', '.join(found['hurt'])}; transfer {counts}"]


def average_of(summary: Mapping[str, Any]) -> str:
    """Returns the key of an entry's average over cells that the table goes by."""
    return str(summary.get("average", "mean_auc"))


def _difference(
    summary: Mapping[str, Any], role: str, values: Mapping[str, Any]
) -> list[str]:
    """Returns what the main entry gains: on average, then by domain and task."""
    mean, name = values["mean"], AVERAGES[average_of(summary)][1]
    lines = [
        f"{summary['main']} - {values['label']} ({role.replace('_', ' ')}), "
        f"{name} x 100: "
        + gain(mean)
        + f"; noise of test rows {_error(mean['standard_error_rows'])}, of seeds "
        f"{_error(mean['standard_error_seeds'])}, p = {_p(mean['p_value'])}"
    ]
    cells = values["cells"]
    width = max((len(f"{c['domain']}/{c['task']}") for c in cells), default=0)
    for cell in cells:
        name = f"{cell['domain']}/{cell['task']}".ljust(width)
        lines.append(f"  {name}  {gain(cell)}  {_verdict(cell)}")
    return lines + [f"  {line}" for line in _alarm(values)]


def gain(values: Mapping[str, Any]) -> str:
    """Returns a difference of `compare_runs` with its standard error, AUC x 100."""
    error = values["standard_error"]
    noise = "" if error is None else f" +-{100 * error:.2f}"
    return f"{100 * values['difference']:+.2f}{noise}"


def _verdict(cell: Mapping[str, Any]) -> str:
    p_value = cell["p_value"]
    if p_value is None or p_value > 0.05:
        return "within noise"
    return "better" if cell["difference"] > 0 else "worse"


def mean_and_std(stats: Mapping[str, float | None]) -> str:
    """Returns a mean over seeds and its deviation, AUC x 100."""
    if stats["mean"] is None:
        return UNDEFINED
    spread = "" if stats["std"] is None else f" +-{100 * stats['std']:.2f}"
    return f"{100 * stats['mean']:.2f}{spread}"


def _error(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f}"


def _p(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
