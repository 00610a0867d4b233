"""Tiles of a product in Triton: a pure function of the problem and the chip, no GPU in here.

Decode (M <= 16) is bound by reading W, so it wants loads in flight on every multiprocessor: tiles
of few rows, and K cut into parts until there are two programs a multiprocessor. Prefill is bound
by the tensor cores and by what they are fed: larger tiles read W and x less often.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

DECODE_TOKENS = 16
# Multiprocessors that the interpreter's plans are made for: enough that K is split.
_INTERPRETED_SMS = 8


@dataclass(frozen=True)
class Chip:
    """What a plan depends on.

    Attributes:
        sms: Multiprocessors, or compute units.
        warp_size: 32, on AMD's data center GPUs 64.
    """

    sms: int
    warp_size: int = 32


@dataclass(frozen=True)
class Plan:
    """Tile sizes, parts of K, row tiles that share x, warps and pipeline stages."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    SPLIT_K: int
    GROUP: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        """What Triton takes at a launch."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def plan(M: int, N: int, K: int, element_size: int, chip: Chip) -> Plan:
    """The plan of one product.

    Args:
        M: Tokens.
        N: out_features.
        K: in_features, padded: a multiple of 64.
        element_size: Bytes of an element.
        chip: The GPU.
    """
    decode = M <= DECODE_TOKENS
    # tl.dot takes 16 tokens or more on every backend.
    BLOCK_M = 16 if decode else 32 if M <= 32 else 64
    # float32 is multiplied by plain FMAs, whose operands fill the registers twice as fast.
    BLOCK_N = 32 if decode else 64 if element_size == 4 or M <= 32 else 128
    BLOCK_K = 128 if decode and element_size == 2 and K % 128 == 0 else 64
    warps = 2 if decode else 4 if BLOCK_N == 64 else 8
    tiles = -(-M // BLOCK_M) * -(-N // BLOCK_N)
    # A part of fewer than 4 tiles of K would spend its time on filling the pipeline.
    parts = max(1, min(2 * chip.sms // tiles, K // BLOCK_K // 4, 16))
    return Plan(
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        SPLIT_K=1 << parts.bit_length() - 1,  # a power of two: few kernels are compiled
        GROUP=8,
        num_warps=max(1, warps * 32 // chip.warp_size),  # as many threads on either
        num_stages=3 if chip.warp_size == 32 else 2,  # 64 KB of LDS on AMD
    )


@functools.cache
def chip_of(device: torch.device) -> Chip:
    """The chip of a device; on a CPU one that is made up, for the interpreter."""
    if device.type == "cpu":
        return Chip(_INTERPRETED_SMS)
    found = torch.cuda.get_device_properties(device)
    return Chip(found.multi_processor_count, found.warp_size)


def plan_for(x: Tensor, M: int, N: int, K: int) -> Plan:
    """The plan of M rows of x's dtype on its device."""
    return plan(M, N, K, x.element_size(), chip_of(x.device))
