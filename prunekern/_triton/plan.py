"""Tiles of a product in Triton: a pure function of the problem and the chip, no GPU in here.

Decode (M <= 16) is bound by reading W, so it wants loads in flight on every multiprocessor: tiles
of few rows, and K cut into parts until there are four programs a multiprocessor. Prefill is bound
by the tensor cores and by what they are fed: larger tiles read W and x less often.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from prunekern._triton import INTERPRETED

DECODE_TOKENS = 16
# Multiprocessors that the interpreter's plans are made for: enough that K is split.
_INTERPRETED_SMS = 8
_PROGRAMS_PER_SM = 4


@dataclass(frozen=True)
class Chip:
    """What a plan depends on.

    Attributes:
        sms: Multiprocessors, or compute units.
        warp_size: 32, on AMD's data center GPUs 64.
        amd: Whose chip it is.
    """

    sms: int
    warp_size: int = 32
    amd: bool = False

    @property
    def has_prmt(self) -> bool:
        """Whether kernels may use PTX's permutation of bytes: on NVIDIA's, not interpreted."""
        return not self.amd and not INTERPRETED


@dataclass(frozen=True)
class Plan:
    """How a product is cut.

    Attributes:
        BLOCK_M: Tokens of a tile.
        BLOCK_N: Out features of a tile.
        BLOCK_K: In features of a step.
        GROUP: Row tiles that share x in L2.
        SPLIT_K: Parts of K.
        num_warps: Of a program.
        num_stages: Steps whose loads are in flight.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    GROUP: int
    SPLIT_K: int
    num_warps: int
    num_stages: int

    def fixed(self) -> dict[str, int]:
        """Constants of the kernel that are never measured."""
        return {"BLOCK_M": self.BLOCK_M, "GROUP": self.GROUP}

    def options(self) -> dict[str, int]:
        """All constants of the kernel, and what else Triton takes at a launch."""
        tile = {"BLOCK_N": self.BLOCK_N, "BLOCK_K": self.BLOCK_K}
        return self.fixed() | tile | {"num_warps": self.num_warps, "num_stages": self.num_stages}


def plan(M: int, N: int, K: int, element_size: int, chip: Chip) -> Plan:
    """The plan of one product.

    Args:
        M: Tokens.
        N: out_features.
        K: in_features.
        element_size: Bytes of an element.
        chip: The GPU.
    """
    # mma takes tokens by 8, AMD's instructions by 16.
    BLOCK_M = 8 if M <= 8 and not chip.amd else 16 if M <= DECODE_TOKENS else 32
    BLOCK_N = 64
    if element_size == 4:
        BLOCK_N = 32  # plain FMAs, whose operands fill the registers twice as fast
    elif M > 32:
        BLOCK_M, BLOCK_N = 64, 128
    BLOCK_K = 64
    warps = 2 if M <= DECODE_TOKENS else 4 if BLOCK_N <= 64 else 8
    tiles = -(-M // BLOCK_M) * -(-N // BLOCK_N)
    steps = -(-K // BLOCK_K)
    # A part of fewer than 4 steps would spend its time on filling the pipeline.
    parts = max(1, min(_PROGRAMS_PER_SM * chip.sms // tiles, steps // 4, 16))
    part_steps = -(-steps // parts)
    return Plan(
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        GROUP=8,
        SPLIT_K=-(-steps // part_steps),
        num_warps=max(1, warps * 32 // chip.warp_size),  # as many threads on either
        num_stages=2 if chip.amd else 3,  # 64 KB of LDS on AMD
    )


@functools.cache
def chip_of(device: torch.device) -> Chip:
    """The chip of a device; on a CPU one that is made up, for the interpreter."""
    if device.type == "cpu":
        return Chip(_INTERPRETED_SMS)
    found = torch.cuda.get_device_properties(device)
    return Chip(found.multi_processor_count, found.warp_size, torch.version.hip is not None)
