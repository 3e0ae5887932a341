"""Freed memory stays with the process while a run computes on the CPU."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from qlora_engine.training.fast import allocator
if sys.argv[1] == "keep":
    assert allocator.keep_freed_memory()
def faults_of_taking_a_block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(48 * 2**20)
    del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults_of_taking_a_block()
print(faults_of_taking_a_block())
allocator.give_back_freed_memory()
print(faults_of_taking_a_block())
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the switch is glibc's")


def faults(how: str) -> list[int]:
    """Pages that the system gave for a block of 48 MiB: the second time, and after memory was given back."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True, timeout=60
    )
    return [int(line) for line in done.stdout.split()]


@glibc
def test_freed_memory_is_taken_again_without_the_system() -> None:
    pages = 48 * 2**20 // 4096
    assert faults("plain")[0] > 0.9 * pages
    again, after_giving_back = faults("keep")
    assert again < 0.01 * pages
    assert after_giving_back > 0.9 * pages
