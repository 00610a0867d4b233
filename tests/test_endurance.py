"""The mixed load of tests/endurance, short, and what a fork after use must do."""

import subprocess
import sys
from pathlib import Path

import pytest

# Without prunekern.fork the child waits for OpenMP threads that it did not inherit.
FORK = """
import os, signal, torch, prunekern
from prunekern.testing import random_weight
torch.set_num_threads(2)
weight = prunekern.compress(random_weight("2:4", 1024, 1024, torch.float32), "2:4")
packed = prunekern.pack(weight, "scalar")
x = torch.randn(4, 1024)
y = prunekern.linear(x, packed)
child = os.fork()
if child == 0:
    signal.alarm(20)  # the default action ends the process
    torch.randn(10**6).exp()
    os._exit(0 if torch.equal(prunekern.linear(x, packed), y) else 3)
assert os.waitpid(child, 0)[1] == 0, "the child hangs or differs"
assert torch.equal(prunekern.linear(x, packed), y)
"""


def run(*arguments):
    tests = Path(__file__).parent
    return subprocess.run(
        [sys.executable, *arguments], cwd=tests, capture_output=True, text=True, timeout=600
    )


def test_a_fork_after_use_computes():
    out = run("-c", FORK)
    assert out.returncode == 0, out.stderr


def test_mixed_load_for_some_seconds_computes_the_same_to_the_bit():
    out = run("-m", "endurance", "--minutes", "0.1", "--seed", "7")
    assert "results" in out.stdout, out.stderr  # memory is for a longer run to judge


@pytest.mark.slow
def test_mixed_load_for_a_minute_leaves_memory_threads_and_files_as_they_are():
    out = run("-m", "endurance", "--minutes", "1", "--seed", "8")
    assert out.returncode == 0, out.stdout + out.stderr
