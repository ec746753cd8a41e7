"""The HTML report: one self-contained file, plots as inline SVG."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from features.dataset import Dataset
from models.audit import Matrix
from models.comparison import text
from models.metrics.auc import calibration_bins
from models.training.evaluate import Scores
from models.training.history import read_history
from models.training.result import Result, load_matrices
from models.training.workdir import HISTORY_FILE

TEMPLATE = pathlib.Path(__file__).parent.parent / "templates" / "report.html.j2"
matplotlib.rcParams["svg.hashsalt"] = "isthmus"  # the same report, the same bytes


def write_report(
    path: str | pathlib.Path,
    summary: Mapping[str, Any],
    results: Mapping[str, Sequence[Result]],
    dataset: Dataset,
    references: text.References | None = None,
) -> None:
    """Writes the report of a comparison; `references` are columns of its table."""
    main = results.get(summary["main"]) or next(iter(results.values()))
    scores = Scores.load(main[0].scores_paths["test"])
    plots = {
        "Rows by domain": _rows(dataset),
        "Test AUC by domain and task, spread over seeds": _aucs(summary),
        "Validation AUC over training": _curves(results),
        f"Calibration of {summary['main']}, by domain": _calibration(scores),
        f"Scores of {summary['main']}, by domain": _histograms(scores),
    }
    for label, runs in results.items():
        for audit in sorted(runs[0].workdir.glob("audit_*.csv")):
            what = audit.stem.removeprefix("audit_").replace("_", " ")
            plots[f"Mean {what} of {label} over training"] = audit_figure(audit)
        for name, matrix in load_matrices(runs[0].workdir).items():
            plots[f"{label}: {name}"] = matrix_figure(matrix)
    template = jinja2.Template(TEMPLATE.read_text("utf-8"), autoescape=True)
    page = template.render(
        title=summary["title"],
        table=text.to_text(summary, references),
        dataset=dataset.info,
        plots={name: _svg(figure) for name, figure in plots.items()},
    )
    pathlib.Path(path).write_text(page, "utf-8")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _figure(width: float = 9, height: float = 3.2) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _legend(axes: Any) -> None:
    """Puts the legend beside the plot, where it hides nothing."""
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))


def _rows(dataset: Dataset) -> Figure:
    figure, axes = _figure()
    names = list(dataset.info.fitted.domains)
    below = np.zeros(len(names))
    for split in ("train", "validation", "test"):
        rows = np.array([dataset.info.num_rows(split, name) for name in names])
        axes.bar(names, rows, bottom=below, label=split)
        below = below + rows
    axes.set_ylabel("rows")
    _legend(axes)
    return figure


def _aucs(summary: Mapping[str, Any]) -> Figure:
    figure, axes = _figure()
    entries = summary["entries"]
    for index, (label, entry) in enumerate(entries.items()):
        place, means, spreads = [], [], []
        for cell_index, cell in enumerate(entry["cells"]):
            if cell["auc"]["mean"] is not None:
                place.append(cell_index + 0.8 * index / len(entries))
                means.append(cell["auc"]["mean"])
                spreads.append(cell["auc"]["std"] or 0)
        axes.errorbar(place, means, yerr=spreads, fmt="o", ms=4, label=label)
    cells = next(iter(entries.values()))["cells"]
    axes.set_xticks(np.arange(len(cells)) + 0.4)
    names = [f"{c['domain']}\n{c['task']}" for c in cells]
    axes.set_xticklabels(names, fontsize=7)
    axes.set_ylabel("AUC")
    _legend(axes)
    return figure


def _curves(results: Mapping[str, Sequence[Result]]) -> Figure:
    figure, axes = _figure()
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    for index, (label, runs) in enumerate(results.items()):
        for number, path in enumerate(history_paths(runs[0].workdir)):
            lines = [x for x in read_history(path) if x["metric"] is not None]
            axes.plot(
                [x["epoch"] for x in lines],
                [x["metric"] for x in lines],
                color=colours[index % len(colours)],
                lw=0.8,
                label="_" if number else label,
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation AUC")
    if axes.lines:
        _legend(axes)
    return figure


def history_paths(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the histories of a run, or of each run of a family."""
    return sorted([*workdir.glob(HISTORY_FILE), *workdir.glob(f"*/*/{HISTORY_FILE}")])


def audit_figure(path: pathlib.Path) -> Figure:
    """Bars of the mean weight by domain, and points of it by feature value.

    Raises:
      ValueError: For a file that is no audit.
    """
    try:
        table = pd.read_csv(path)[["source", "value", "rows", "mean_weight"]]
    except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(
            f"report: {path} must be an audit that a run wrote; it cannot be read: "
            f"{str(error).strip()}. Delete it to leave it out, or train again."
        ) from error
    whole = table[table["value"].isna()]
    figure, axes = _figure()
    places = np.arange(len(whole))
    axes.bar(places, whole["mean_weight"].fillna(0.0), color="lightgray")
    for place, name in zip(places, whole["source"], strict=True):
        own = table[(table["source"] == name) & table["value"].notna()]
        spread = np.linspace(-0.35, 0.35, max(len(own), 1))[: len(own)]
        size = 60 * own["rows"] / own["rows"].max()
        axes.scatter(place + spread, own["mean_weight"], s=size, alpha=0.6)
    axes.set_xticks(places)
    axes.set_xticklabels(whole["source"], fontsize=7)
    axes.set_ylabel("mean weight")
    axes.set_ylim(0, 1)
    return figure


def matrix_figure(matrix: Matrix) -> Figure:
    """A heat map of a table in [0, 1]."""
    height = 1 + 0.22 * len(matrix.rows)
    figure, axes = _figure(2.5 + 0.28 * len(matrix.columns), height)
    image = axes.imshow(matrix.values, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(matrix.columns)), matrix.columns, rotation=90, size=6)
    axes.set_yticks(range(len(matrix.rows)), matrix.rows, size=6)
    figure.colorbar(image)
    return figure


def _probs(scores: Scores) -> np.ndarray:
    return 1 / (1 + np.exp(-scores.logits.astype(np.float64)))


def _calibration(scores: Scores) -> Figure:
    figure, axes = _figure(4.5, 4)
    probs = _probs(scores)
    for index, name in enumerate(scores.domains):
        chosen = (scores.domain == index) & (scores.label_mask[:, 0] > 0)
        if chosen.sum() < 10:
            continue
        bins = calibration_bins(scores.labels[chosen, 0], probs[chosen, 0])
        axes.plot(
            [b.mean_prob for b in bins], [b.mean_label for b in bins], ".-", label=name
        )
    axes.plot([0, 1], [0, 1], "k:", lw=1)
    axes.set_xlabel(f"predicted {scores.tasks[0]}")
    axes.set_ylabel("observed")
    _legend(axes)
    return figure


def _histograms(scores: Scores) -> Figure:
    figure, axes = _figure()
    probs = _probs(scores)[:, 0]
    for index, name in enumerate(scores.domains):
        axes.hist(
            probs[scores.domain == index],
            bins=50,
            range=(0, 1),
            density=True,
            histtype="step",
            label=name,
        )
    axes.set_xlabel(f"predicted {scores.tasks[0]}")
    _legend(axes)
    return figure
