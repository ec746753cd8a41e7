"""Runs `models.train` with the fake method in a process of its own.

usage: run_fake.py <signal number or 0> <call> <arguments of models.train>
The process sends itself the signal at the start of that call of the step function.
"""

import os
import sys

from models import train
from models.training.loop import Loop
from tests.models.training import fakes

if __name__ == "__main__":
    number, at_call = int(sys.argv[1]), int(sys.argv[2])
    plain_run, calls = Loop.run, []

    def run(self, iterators, steps):
        calls.append(steps)
        if number and len(calls) == at_call:
            os.kill(os.getpid(), number)
        return plain_run(self, iterators, steps)

    Loop.run = run
    with fakes.registered():
        sys.exit(train.main(sys.argv[3:]))
