"""Processes that end with the one that started them, however that ends."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence

# Prepares the new process from inside and becomes the command.  A `preexec_fn` would be
# forked from a process with threads, where gRPC's fork handlers now and then abort.
# 1: PR_SET_PDEATHSIG of <sys/prctl.h>; a parent that is gone already sends nothing.
_LAUNCH = """
import ctypes, os, signal, sys
parent, processors, *command = sys.argv[1:]
if processors:
    os.sched_setaffinity(0, map(int, processors.split(",")))
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(parent):
    sys.exit(128 + signal.SIGTERM)
os.execvp(command[0], command)
"""
_PYTHON = sys.executable


def following(command: Sequence[str], processors: Iterable[int] = ()) -> list[str]:
    """Returns a command that runs `command` and asks it to end when the caller ends.

    The kernel sends SIGTERM when the thread that started it is gone, kill -9 included.

    Args:
      command: Program and arguments.
      processors: Those it may use; none: those of the caller.
    """
    allowed = ",".join(map(str, sorted(processors)))
    launch = [_PYTHON, "-I", "-S", "-c", _LAUNCH]
    return [*launch, str(os.getpid()), allowed, *command]


def run(command: Sequence[str]) -> int:
    """Runs a command to its end; returns its status, negative for a signal.

    An exception here (Ctrl-C, an exit by SIGTERM) ends it by SIGTERM first, so that
    it can save, and waits for it.
    """
    with subprocess.Popen(following(command)) as process:
        try:
            return process.wait()
        except BaseException:  # also SystemExit and KeyboardInterrupt
            process.terminate()
            process.wait()
            raise
