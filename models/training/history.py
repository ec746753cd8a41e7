"""`history.jsonl`: one line an evaluation."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from models.training import workdir as workdir_lib


class History:
    """Appends evaluations, and forgets those that a resumed run will do again."""

    def __init__(self, workdir: pathlib.Path):
        self._path = workdir / workdir_lib.HISTORY_FILE

    def add(self, values: Mapping[str, Any]) -> None:
        """Appends one evaluation."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")

    def cut(self, step: int) -> None:
        """Keeps evaluations up to `step`; a half-written last line goes too."""
        if self._path.exists():
            kept = [line for line in read_history(self._path) if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            workdir_lib.write_atomic(self._path, text)


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the evaluations of a run, oldest first; complete lines only."""
    lines = path.read_text("utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]
