"""Progress of a running job: workers log rows, the launcher draws bars.

A log line is the one channel that every runner carries from a worker to the
launcher while the job runs; metrics of the local runner come at the end only.
"""

import logging
import re
import threading
import types

import tqdm

_LOGGER = logging.getLogger("pipeline.progress")
# Where the local runner writes what its worker processes log.
_RELAYS = (
    "apache_beam.runners.portability.local_job_service",
    "apache_beam.runners.portability.fn_api_runner.worker_handlers",
)
_LINE = re.compile(r"rows done in stage (\w+): (\d+)")


def report(stage: str, rows: int) -> None:
    """Says that a worker finished `rows` rows of a stage."""
    _LOGGER.info("rows done in stage %s: %d", stage, rows)


class ProgressBars(logging.Filter):
    """Context manager that turns progress lines into one bar a stage, with rows/s."""

    def __init__(self, show: bool) -> None:
        super().__init__()
        self.show = show
        self._bars: dict[str, tqdm.tqdm] = {}
        self._levels: dict[str, int] = {}
        self._lock = threading.Lock()  # each worker's log has a thread of its own

    def __enter__(self) -> "ProgressBars":
        if self.show:
            for name in (_LOGGER.name, *_RELAYS):
                logger = logging.getLogger(name)
                self._levels[name] = logger.level
                logger.setLevel(logging.INFO)
                logger.addFilter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        for bar in self._bars.values():
            bar.close()
        for name, level in self._levels.items():
            logging.getLogger(name).removeFilter(self)
            logging.getLogger(name).setLevel(level)

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes progress lines out of the log; what is wrong comes as an error."""
        found = _LINE.search(record.getMessage())
        if found is None:
            return record.levelno >= logging.CRITICAL
        with self._lock:
            self._update(found[1], int(found[2]))
        return False

    def _update(self, stage: str, rows: int) -> None:
        if stage not in self._bars:
            # No stage sees more rows than were read, and reading comes first.
            total = max((bar.n for bar in self._bars.values()), default=None)
            for bar in self._bars.values():
                bar.close()
            self._bars[stage] = tqdm.tqdm(
                desc=f"{stage:>8}",
                total=total,
                unit=" rows",
                unit_scale=True,
                mininterval=0.5,
            )
        self._bars[stage].update(rows)
