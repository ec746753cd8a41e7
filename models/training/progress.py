"""A progress line on a terminal, plain log lines elsewhere."""

import logging
import sys
import time

import tqdm

_log = logging.getLogger(__name__)


class Progress:
    """Says where a run stands: steps, rows/s, loss, the last evaluation."""

    def __init__(self, *, name: str, total: int, done: int, every_secs: float):
        self._name = name
        self._total = total
        self._every_secs = every_secs
        self._last = time.monotonic()
        self._note = ""
        self._bar = (
            tqdm.tqdm(total=total, initial=done, desc=name, unit="step")
            if sys.stderr.isatty()
            else None
        )

    def update(self, step: int, *, loss: float | None, rows_per_sec: float) -> None:
        """Shows the state after a call."""
        loss_text = "" if loss is None else f"loss {loss:.4f}, "
        text = f"{loss_text}{rows_per_sec:,.0f} rows/s{self._note}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._last >= self._every_secs:
            self._last = time.monotonic()
            _log.info("%s: step %d/%d, %s", self._name, step, self._total, text)

    def evaluated(self, step: int, metric: str, value: float | None, note: str) -> None:
        """Shows an evaluation."""
        shown = "undefined" if value is None else f"{value:.4f}"
        self._note = f", {metric} {shown}"
        if self._bar is None:
            _log.info(
                "%s: step %d, validation %s %s%s", self._name, step, metric, shown, note
            )

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            self._bar.close()
