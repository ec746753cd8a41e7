"""Processes that end with the one that started them, however that ends."""

import ctypes
import signal
import subprocess
from collections.abc import Sequence

_LIBC = ctypes.CDLL(None)  # here: nothing may be loaded between fork and exec
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def follow_parent() -> None:
    """Asks for SIGTERM when the parent ends, kill -9 included: a `preexec_fn`.

    The kernel sends it when the thread that started this process is gone.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run(command: Sequence[str]) -> int:
    """Runs a command to its end; returns its status, negative for a signal.

    An exception here (Ctrl-C, an exit by SIGTERM) ends it by SIGTERM first, so that
    it can save, and waits for it.
    """
    with subprocess.Popen(command, preexec_fn=follow_parent) as process:
        try:
            return process.wait()
        except BaseException:  # also SystemExit and KeyboardInterrupt
            process.terminate()
            process.wait()
            raise
