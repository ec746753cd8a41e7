"""A process that is started ends with its parent, by a signal that lets it save."""

import os
import signal
import subprocess
import sys
import time

import pytest

from features import processes

# What a stage does when it is asked to end; it says when it can be asked.
STAGE = 'trap "touch %s; exit 3" TERM; touch %s; while :; do sleep 0.05; done'
PARENT = """
import signal, sys
from features import processes
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
# Python leaves it ignored where the caller did, as a shell does for background jobs.
signal.signal(signal.SIGINT, signal.default_int_handler)
processes.run(["sh", "-c", sys.argv[1]])
"""


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} is not there"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stage_is_asked_to_end_when_its_parent_is_stopped(tmp_path, number):
    ready, asked = tmp_path / "ready", tmp_path / "asked"
    command = [sys.executable, "-c", PARENT, STAGE % (asked, ready)]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(ready)
        assert not asked.exists()
        parent.send_signal(number)
        code = parent.wait(timeout=20)
    finally:
        parent.kill()
    wait_for(asked)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: -2}[number]


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("kill -9 $$", -9)])
def test_status_is_that_of_the_command(script, status):
    assert processes.run(["sh", "-c", script]) == status


def test_a_command_is_tied_to_the_processors_it_is_given(capfd):
    one = min(os.sched_getaffinity(0))
    show = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
    assert subprocess.call(processes.following(show, {one})) == 0
    assert capfd.readouterr().out == f"{{{one}}}\n"
