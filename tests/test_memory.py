"""How a process gets its memory from the system: `python -m pytest tests/test_memory.py`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainer import memory

FAULTS = """
import resource, sys
import torch
from trainer import memory
if sys.argv[1] == "keep":
    memory.keep_freed()
for _ in range(20):
    torch.zeros(16_000_000)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
memory.give_back()
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


@pytest.mark.skipif(memory._libc() is None, reason="the C library is not glibc")
def test_tensors_are_made_of_memory_that_is_there_already() -> None:
    assert faults("keep") < faults("leave") / 10
