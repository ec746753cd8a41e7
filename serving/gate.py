"""The publish gate: no domain may fall beyond its noise against the published version.

Every export keeps the scores of its evaluated rows (`assets.extra/gate_scores.npz`).
A candidate is compared with the published version on the rows both have scored, by
DeLong's paired test per domain and task.
"""

import dataclasses
import pathlib
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from features.dataset import Dataset
from models.method import Method
from models.metrics.compare import compare_runs
from models.training.evaluate import Scores, score

SCORES_FILE = "gate_scores.npz"
# One-sided 1 %: with a dozen domains a harmless candidate is then refused once in
# about ten exports, not at every second one.
NOISE_FACTOR = 2.33
MIN_SHARED_SHARE = 0.5


class GateError(RuntimeError):
    """The candidate must not be published; the text names the domains and numbers."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the gate decided (a refusal is a `GateError`).

    Attributes:
      compared_with: Version compared with, or None.
      text: The decision in words.
      differences: `domain/task` -> AUC of the candidate minus the published one's.
    """

    compared_with: int | None
    text: str
    differences: dict[str, float]


def candidate_scores(method: Method, dataset: Dataset, split: str) -> Scores:
    """Returns the candidate's scores of a split."""
    return score(method, dataset, split)


def save_scores(export_dir: pathlib.Path, scores: Scores) -> None:
    """Keeps the scores beside the model, for the next candidate's gate."""
    folder = export_dir / "assets.extra"
    folder.mkdir(exist_ok=True)
    scores.save(folder / SCORES_FILE)


def decide(
    candidate: Scores,
    published_dir: pathlib.Path | None,
    *,
    mode: str,
    scores_path: pathlib.Path | None = None,
) -> Decision:
    """Compares the candidate with the published version.

    Args:
      candidate: Scores of the candidate.
      published_dir: The newest published version, or None.
      mode: "noise" or "off".
      scores_path: Scores to compare with instead of those the version keeps: of an
        earlier model on the candidate's rows, where these are new every day.

    Raises:
      GateError: When a cell fell by more than `NOISE_FACTOR` standard errors, or the
        two cannot be compared.
    """
    if mode == "off":
        return Decision(None, "off", {})
    if published_dir is None:
        return Decision(None, "first version, nothing to compare with", {})
    version = int(published_dir.name)
    path = scores_path or published_dir / "assets.extra" / SCORES_FILE
    published = _load_scores(path, version)
    ours, theirs = _shared_rows(candidate, published, version)
    result = compare_runs(
        domain=candidate.domain[ours],
        labels=candidate.labels[ours],
        label_mask=candidate.label_mask[ours],
        runs_a=[candidate.logits[ours]],
        runs_b=[published.logits[theirs]],
        domains=candidate.domains,
        tasks=candidate.tasks,
    )
    _refuse_falls(result["cells"], version)
    differences = {_name(cell): cell["difference"] for cell in result["cells"]}
    worst = min(differences, key=differences.__getitem__, default="")
    text = f"no domain fell beyond its noise against version {version}"
    if worst:
        text += f" (lowest: {worst} {differences[worst]:+.4f} AUC)"
    return Decision(version, text, differences)


def _load_scores(path: pathlib.Path, version: int) -> Scores:
    if not path.exists():
        raise GateError(
            f"gate: the scores of the published version {version} must be there; "
            f"there is no {path}. Publish once with --gate off."
        )
    try:
        return Scores.load(path)
    except (ValueError, LookupError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise GateError(
            f"gate: {path} must be scores that an export wrote; it cannot be read: "
            f"{error}. Publish once with --gate off."
        ) from error


def _refuse_falls(cells: Iterable[Mapping[str, Any]], version: int) -> None:
    """Raises when a cell of `compare_runs` fell beyond its noise."""
    fallen = []
    for cell in cells:
        difference, noise = cell["difference"], cell["standard_error_rows"] or 0.0
        if difference < -NOISE_FACTOR * noise:
            fallen.append(
                f"{_name(cell)} AUC {cell['auc_b']:.4f} -> {cell['auc_a']:.4f} "
                f"({difference:+.4f}, noise {noise:.4f})"
            )
    if fallen:
        raise GateError(
            f"gate: no domain may fall beyond {NOISE_FACTOR} standard errors against "
            f"version {version}; fell: {'; '.join(fallen)}. Not published. Train "
            "again, or decide for yourself with --gate off."
        )


def _name(cell: Mapping[str, Any]) -> str:
    return f"{cell['domain']}/{cell['task']}"


def _shared_rows(
    candidate: Scores, published: Scores, version: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the rows that both scored; the same domains and tasks."""
    if (candidate.domains, candidate.tasks) != (published.domains, published.tasks):
        raise GateError(
            f"gate: domains and tasks must be those of version {version} "
            f"({published.domains}, {published.tasks}); the candidate has "
            f"{candidate.domains}, {candidate.tasks}. Use another export_dir, or "
            "--gate off."
        )
    shared, ours, theirs = np.intersect1d(
        candidate.row_id, published.row_id, return_indices=True
    )
    wanted = MIN_SHARED_SHARE * len(np.unique(candidate.row_id))
    if len(shared) < wanted:
        raise GateError(
            f"gate: at least {MIN_SHARED_SHARE:.0%} of the candidate's rows must have "
            f"been scored by version {version} too; got {len(shared)} of "
            f"{candidate.num_rows}. Export the published run again on this data set, "
            "or use --gate off."
        )
    return ours, theirs
