"""How one call is timed, and how its weight is kept out of caches.

On a CPU the contenders of a cell rotate over copies of their weights; what copies lack of twice the
L3 is made up by reading a filler between two calls. On a GPU a buffer of twice the L2 is written
before each call, which also covers the time that the launch takes on the host; events look at the
clock.
"""

from __future__ import annotations

import functools
import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

_L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_LEAST, _MOST = 128 << 20, 1 << 30
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "": 1}


@functools.cache
def cold_bytes() -> int:
    """Bytes after whose reading nothing is left in a cache: twice the L3, within bounds."""
    try:
        number, unit = re.fullmatch(r"(\d+)([KMG]?)", _L3.read_text().strip()).groups()
        size = int(number) * _UNITS[unit]
    except (OSError, AttributeError):
        size = 0  # no such file: not Linux, or a CPU without L3
    return min(max(2 * size, _LEAST), _MOST)


class Filler:
    """Reads the next `nbytes` of a buffer of `cold_bytes()` at each call; nothing for 0."""

    def __init__(self, nbytes: int):
        self.parts = None
        if nbytes:
            buffer = torch.ones(cold_bytes() // 4)
            self.parts = itertools.cycle(buffer.split(max(nbytes // 4, 1)))

    def __call__(self) -> None:
        if self.parts:
            next(self.parts).sum()


def cpu_seconds(run: Callable[[], object]) -> float:
    """What one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@functools.cache
def _l2_flush() -> torch.Tensor:
    size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def gpu_seconds(run: Callable[[], object]) -> float:
    """What one call takes on the GPU, L2 flushed."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _l2_flush().zero_()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3
