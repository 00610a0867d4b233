"""The limits of this machine that a time is held against: measured once a run.

    seconds >= max((W + x + y bytes) / read bandwidth, 2 M kept weights / peak)

`prunekern.compare.limits` measures them: bandwidth by reading 1 GB once, peak by torch's dense
product at its best size, with whatever the CPU has for it (FMA, AVX512-BF16, AMX). A share of the
limit above 1 means that the machine was slower while it was measured.
"""

from __future__ import annotations

import functools
import statistics

import torch

from prunekern.compare.limits import Limits, measure_limits
from prunekern.formats import DTYPES

_READ = 1 << 30  # bytes; far above any L2 of a GPU


@functools.cache
def limits(device: str = "cpu") -> Limits:
    """Bandwidth and the peak of each dtype; some seconds at the first call."""
    dtypes = {name(dtype): dtype for dtype in DTYPES}
    return measure_limits(dtypes) if device == "cpu" else _gpu_limits(dtypes)


def name(dtype: torch.dtype) -> str:
    """The name without "torch."."""
    return str(dtype).removeprefix("torch.")


def _gpu_limits(dtypes: dict[str, torch.dtype]) -> Limits:
    from clock import gpu_seconds

    source = torch.ones(_READ // 4, device="cuda")
    bandwidth = source.nbytes / _median(gpu_seconds, source.sum)
    peaks = {}
    for label, dtype in dtypes.items():
        x, w = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
        seconds = _median(gpu_seconds, lambda x=x, w=w: torch.nn.functional.linear(x, w))
        peaks[label] = 2 * 8192**3 / seconds
    return Limits(bandwidth, peaks)


def _median(seconds, run) -> float:
    return statistics.median(seconds(run) for _ in range(5))
