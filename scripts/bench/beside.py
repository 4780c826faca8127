"""Other programs that run beside what is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from sdpy.runtime.threads import WAITING

COUNTING = "print(flush=True)\nwhile True: pass"
MULTIPLYING = """
import torch
a = torch.ones(3000, 3000)
a @ a
print(flush=True)
while True:
    a @ a
"""

PROGRAMS: Mapping[str, Sequence[str]] = {
    "nothing": (),
    "one": (COUNTING,),
    "two": (COUNTING,) * 2,
    "four": (COUNTING,) * 4,
    "products": (MULTIPLYING,),
}
"""Python programs by a name for all of them: some that count, on a core each, or one that
multiplies matrices on all cores. Each prints a line when it is at work."""


@contextmanager
def running(programs: Sequence[str]) -> Iterator[None]:
    """Let programs work during the block, as they do where nobody says how threads wait."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for program in programs:
            command = [sys.executable, "-c", program]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()
