"""What this machine can do at most, measured: the two lines of a roofline.

    bandwidth   bytes a second of a product that reads a large matrix once and does little with it
    peak        FLOP a second of torch's dense product of square matrices, at its best size

Both are bests and not medians: a limit is what was reached at least once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

READ_BYTES = 2**30  # far above any L3, or a quarter of the free memory
SQUARES = (512, 1024, 2048)
PASSES = 6


@dataclass(frozen=True)
class Limits:
    """Of one machine.

    Attributes:
        bytes_per_s: Read from memory.
        flops_per_s: dtype -> of dense products.
    """

    bytes_per_s: float
    flops_per_s: dict[str, float]

    def seconds(self, nbytes: float, flops: float, dtype: str) -> float:
        """max(bytes / bandwidth, FLOPs / peak): no product that does so much can be faster.

        Args:
            nbytes: That have to come from memory.
            flops: That have to be done, two a multiplication.
            dtype: A key of `flops_per_s`.
        """
        return max(nbytes / self.bytes_per_s, flops / self.flops_per_s[dtype])


def measure_limits(dtypes: dict[str, torch.dtype]) -> Limits:
    """Two or three seconds of reading and multiplying, on torch's own threads.

    Args:
        dtypes: Name -> dtype, whose peaks are wanted.
    """
    return Limits(_bytes_per_s(), {name: _flops_per_s(dtype) for name, dtype in dtypes.items()})


def _bytes_per_s() -> float:
    columns = 4096
    size = min(READ_BYTES, psutil.virtual_memory().available // 4)
    # Written, as pages that nobody wrote are all the same page of zeros.
    matrix = torch.ones(max(1, size // (4 * columns)), columns)
    vector = torch.ones(columns)
    return matrix.nbytes / _fastest(lambda: torch.mv(matrix, vector))


def _flops_per_s(dtype: torch.dtype) -> float:
    best = 0.0
    for size in SQUARES:
        x, weight = (torch.randn(size, size).to(dtype) for _ in range(2))
        seconds = _fastest(lambda x=x, w=weight: torch.nn.functional.linear(x, w))
        best = max(best, 2 * size**3 / seconds)
    return best


def _fastest(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(PASSES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
