"""`--profile`: traces some steps and says where their time goes."""

import logging
import pathlib
from collections import Counter

import tensorflow as tf

from models.training.config import ProfileConfig

_log = logging.getLogger(__name__)
PROFILE_DIR = "profile"
_TOP_OPS = 12


class StepProfiler:
    """Traces steps `start_step` to `start_step + num_steps` of a run, once."""

    def __init__(self, config: ProfileConfig, workdir: pathlib.Path):
        self._start = config.start_step
        self._stop = config.start_step + config.num_steps
        self._enabled = config.num_steps > 0
        self._dir = workdir / PROFILE_DIR
        self._is_open = False
        self._steps = 0
        self._secs = 0.0
        self._rows = 0

    def before(self, step: int, steps: int) -> int:
        """Starts the trace if it is due; returns how many steps the call may do."""
        if not self._enabled or step >= self._stop:
            return steps
        if step < self._start:
            return min(steps, self._start - step)
        if not self._is_open:
            tf.profiler.experimental.start(str(self._dir))
            self._is_open = True
        self._steps += min(steps, self._stop - step)
        return min(steps, self._stop - step)

    def after(self, step: int, *, rows: int, secs: float) -> None:
        """Counts the call, and ends the trace if it is due."""
        if self._is_open:
            self._rows += rows
            self._secs += secs
            if step >= self._stop:
                self.close()

    def close(self) -> None:
        """Ends the trace and logs the summary."""
        if not self._is_open:
            return
        self._is_open, self._enabled = False, False
        tf.profiler.experimental.stop()
        for line in self.report():
            _log.info("profile: %s", line)

    def report(self) -> list[str]:
        """Returns what the trace says, line by line."""
        paths = sorted(self._dir.rglob("*.xplane.pb"))
        per_step = 1e3 * self._secs / max(1, self._steps)
        lines = [
            f"{self._steps} steps, {per_step:.2f} ms a step, "
            f"{self._rows / self._secs:,.0f} rows/s"
        ]
        if not paths:
            return [*lines, f"no trace was written to {self._dir}"]
        busy = op_millis(paths[-1])
        wait = sum(ms for op, ms in busy.items() if "IteratorGetNext" in op)
        share = wait / max(1e-9, 1e3 * self._secs)
        lines.append(f"waiting for input: {100 * share:.1f} % of the step")
        total = sum(busy.values())
        lines += [
            f"{op}: {ms / self._steps:.2f} ms a step ({100 * ms / total:.0f} % of ops)"
            for op, ms in busy.most_common(_TOP_OPS)
        ]
        return [*lines, f"open {self._dir} with TensorBoard for the whole trace"]


def op_millis(path: pathlib.Path) -> Counter[str]:
    """Returns milliseconds by op type in a trace; ops of several threads add up."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    busy: Counter[str] = Counter()
    for plane in space.planes:
        names = {key: data.name for key, data in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                name, _, op = names.get(event.metadata_id, "").rpartition(":")
                # "<node name>:<op type>" is an executed op, "A::B" a runtime span.
                is_span = not name or name.endswith(":") or not op.isidentifier()
                if not is_span and op != "While":
                    busy[op] += event.duration_ps / 1e9
    return busy
