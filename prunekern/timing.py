"""How long one layer takes in each storage on this machine.

All contenders take turns, over as many copies of the weight as fill what a cache would leave of a
model, and a time is that of the best turn: what a machine does besides only adds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekern import formats
from prunekern.nn import SparseLinear, count_broken_groups
from prunekern.pruning.masks import layer_mask, nm_mask

DENSE = "dense"
# Storages that keep every bit of the weights; the others round them.
EXACT = tuple(kernel for kernel, kind in formats.FORMATS.items() if not kind.bits)
ROUNDED = tuple(kernel for kernel in formats.FORMATS if kernel not in EXACT)

FEW_TOKENS = 64  # up to which turns are short
NOISE = 0.03  # a storage must be faster than dense by this share to count as faster
_COPIED_BYTES = 32e6  # of dense copies: none stays in a cache that a model would not leave it
_MOST_COPIES = 24
_CALLS = {True: 24, False: 2}  # few tokens or not -> calls of a turn
_TURNS = {True: 15, False: 5}  # and turns
_FEWEST_ZEROS = 0.1  # below, every storage is as large as dense or larger
_STEP = 0.05  # a weight is timed as if its sparsity were a multiple of it


@dataclass(frozen=True)
class Stored:
    """A storage and the share of zeros that it is to hold."""

    kernel: str
    sparsity: float


DENSE_STORED = Stored(DENSE, 0.0)
_KNOWN: dict[tuple, dict[str, float]] = {}  # what `fastest_storage` timed in this process


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


def layer_seconds(
    shape: tuple[int, int],
    stored: Sequence[Stored],
    tokens: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[int, dict[Stored, float]]:
    """Tokens -> storage -> seconds of y = x W^T, of a random W; dense is among them.

    Args:
        shape: (N, K) of W.
        stored: Contenders.
        tokens: Rows of x.
        dtype: Of W and x.
        device: Where they are.
    """
    N, K = shape
    size = N * K * torch.finfo(dtype).bits // 8
    count = min(max(3, round(_COPIED_BYTES / size)), _MOST_COPIES)
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(0)) / K**0.5
    layers = {one: _copies(one, weight, dtype, device, count) for one in (DENSE_STORED, *stored)}
    found = {}
    for M in tokens:
        x = torch.randn(M, K, generator=torch.Generator().manual_seed(M)).to(device, dtype)
        found[M] = _take_turns(layers, x)
    return found


def fastest_storage(weight: Tensor, tokens: int = 1) -> tuple[str, str]:
    """Which format runs a weight fastest here, as it is: its zeros are given.

    Each kind of weight, by shape, dtype, zeros in steps of 5 % and whether it is 2:4, is timed
    once in a process.

    Args:
        weight: [N, K], on the device that it will run on.
        tokens: Rows of x.

    Returns:
        (format, ""), or ("dense", why).
    """
    zeros = 1 - weight.count_nonzero().item() / weight.numel()
    if zeros < _FEWEST_ZEROS:
        return DENSE, f"fewer than {_FEWEST_ZEROS:.0%} of its weights are zero; prune it first"
    sparsity = min(round(round(zeros / _STEP) * _STEP, 2), 0.99)
    kernels = [
        k for k in EXACT if formats.FORMATS[k].pattern != "2:4" or not count_broken_groups(weight)
    ]
    key = (tuple(weight.shape), sparsity, tuple(kernels), tokens, weight.dtype, weight.device)
    if key not in _KNOWN:
        stored = [Stored(kernel, sparsity) for kernel in kernels]
        found = layer_seconds(tuple(weight.shape), stored, [tokens], weight.dtype, weight.device)[
            tokens
        ]
        _KNOWN[key] = {one.kernel: found[DENSE_STORED] / found[one] for one in stored}
    kernel, factor = max(_KNOWN[key].items(), key=lambda item: item[1])
    if factor > 1 + NOISE:
        return kernel, ""
    return DENSE, (
        f"nothing is faster here at {tokens} token{'s' * (tokens > 1)} with {sparsity:.0%} zeros: "
        f"{kernel} reaches {factor:.2f}x of dense"
    )


def check_tokens(tokens: int, who: str) -> None:
    """Raises ValueError unless `tokens` is a positive whole number."""
    if type(tokens) is not int or tokens < 1:
        raise ValueError(f"{who}: tokens must be a whole number of 1 or more, got {tokens!r}")


def _take_turns(layers: Mapping[Stored, list[nn.Module]], x: Tensor) -> dict[Stored, float]:
    few = len(x) <= FEW_TOKENS
    calls = _CALLS[few]
    best = dict.fromkeys(layers, math.inf)
    for turn in range(_TURNS[few]):
        for one, copies in layers.items():
            first = turn * calls % len(copies)
            used = (copies[first:] + copies[:first])[:calls]
            best[one] = min(best[one], seconds_of(used, x) / len(used))
    return best


def _copies(
    stored: Stored, weight: Tensor, dtype: torch.dtype, device: torch.device, count: int
) -> list[nn.Module]:
    """Layers of one weight, each with memory of its own."""
    if stored.kernel == DENSE:
        return [_linear(weight.to(device, dtype, copy=True)) for _ in range(count)]
    scores = weight.abs()
    is_24 = formats.FORMATS[stored.kernel].pattern == "2:4"
    mask = nm_mask(scores, 2, 4) if is_24 else layer_mask(scores, stored.sparsity)
    pruned = weight.masked_fill(~mask, 0.0).to(device, dtype)
    canonical = formats.compress(pruned, stored.kernel)
    return [SparseLinear(canonical) for _ in range(count)]


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
