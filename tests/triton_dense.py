"""Triton's dense product as its tutorials write it: what decode is counted against."""

from __future__ import annotations

import functools

import numpy as np
import torch
from gpu_emulation import Counters, Module
from gpu_emulation.compiler import triton_to_ptx
from gpu_emulation.oracles import triton_kernels
from torch import Tensor

# The fewest instructions of those tried at 8 tokens: 16 is the least that tl.dot takes.
BLOCK_M, BLOCK_N, BLOCK_K, WARPS, STAGES = 16, 64, 128, 2, 3


@functools.cache
def _compiled():
    signature = {"x": "*fp16", "w": "*fp16", "y": "*fp16", "m": "i32", "n": "i32", "k": "i32"}
    constants = {"BM": BLOCK_M, "BN": BLOCK_N, "BK": BLOCK_K}
    aligned = ("x", "w", "y", "n", "k")
    ptx, metadata = triton_to_ptx(
        triton_kernels.linear, signature, constants, 80, aligned, num_warps=WARPS, num_stages=STAGES
    )
    return Module(ptx), ptx, metadata


def ptx() -> str:
    """Of the kernel, for sm_80."""
    return _compiled()[1]


def shape() -> tuple[str, int, int]:
    """(kernel, bytes of dynamic shared memory, threads of a block)."""
    metadata = _compiled()[2]
    return metadata.name, metadata.shared, 32 * WARPS


def product(x: Tensor, weight: Tensor) -> tuple[Tensor, Counters, int]:
    """(y, counters, blocks) of fp16 x [M, K] and weight [N, K]; N and K are multiples of 16."""
    module, _, metadata = _compiled()
    (M, K), N = x.shape, len(weight)
    y = torch.full((M, N), torch.nan, dtype=torch.float16)
    grid = (-(-M // BLOCK_M), -(-N // BLOCK_N))
    counters = module.launch(
        metadata.name,
        grid,
        32 * WARPS,
        [x, weight, y, M, N, K, np.zeros(1, np.uint8), None],
        metadata.shared,
        names=["x", "W", "y", "M", "N", "K", "scratch", "profile"],
    )
    return y, counters, grid[0] * grid[1]
