"""What worker processes write to the terminal is kept off it, and not lost."""

import subprocess
import sys

import pytest

from pipeline.errors import JobError

CODE = """
import os, sys
from pipeline import quiet
from pipeline.errors import JobError
with quiet.workers(["--direct_running_mode=multi_processing"]):
    os.system("echo from a worker >&2")
    print("from the launcher", file=sys.stderr)
    {then}
print("after", file=sys.stderr)
"""


def run(then):
    code = CODE.replace("{then}", then)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_workers_are_silent_and_the_launcher_is_not():
    assert run("pass") == (0, "from the launcher\nafter\n")


@pytest.mark.parametrize(
    ("error", "is_shown"), [(JobError, False), (MemoryError, True)]
)
def test_workers_words_are_shown_when_the_cause_is_not_the_users(error, is_shown):
    status, text = run(f"raise {error.__name__}('no')")
    assert status != 0
    assert ("from a worker" in text) == is_shown
    assert f"{error.__name__}: no" in text
