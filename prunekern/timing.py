"""Time of a turn: several layers one after another, on whatever device x is."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.inference_mode()
def seconds_of(layers: Iterable[nn.Module], x: Tensor) -> float:
    """Seconds of all layers on the same x, from an idle device until it is idle again."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for layer in layers:
        layer(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
