"""What the products of all formats share inside a kernel."""

import functools
import os
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunekern._triton import INTERPRETED
from prunekern._triton.plan import Plan, chip_of

# Whether to measure tiles on the GPU at hand, instead of taking those planned.
AUTOTUNE = os.environ.get("PRUNEKERN_TRITON_AUTOTUNE") == "1" and not INTERPRETED

# The interpreter multiplies bfloat16 as the integers that it keeps them in, and cuts off what it
# should round.
_MEND_BF16 = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, acc):
    """The product of a and b, plus acc, in float32; float32 operands are not rounded to TF32."""
    if _MEND_BF16:
        if a.dtype == tl.bfloat16:
            a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(acc, DTYPE: tl.constexpr):
    """float32 acc as DTYPE, to nearest even."""
    if _MEND_BF16:
        if DTYPE == tl.bfloat16:
            bits = acc.to(tl.int32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
            acc = bits.to(tl.float32, bitcast=True)
    return acc.to(DTYPE)


@triton.jit
def tile_of(pid, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """(row tile, token tile) of a program: GROUP row tiles share what L2 holds of x and W."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    first = pid // (GROUP * tiles_m) * GROUP
    size = tl.minimum(tiles_n - first, GROUP)
    inside = pid % (GROUP * tiles_m)
    return first + inside % size, inside // size


@triton.jit
def columns_of_part(K, BLOCK_K: tl.constexpr):
    """(first, end) of the columns of a program's part of K: as many tiles for all but the last."""
    size = tl.cdiv(tl.cdiv(K, BLOCK_K), tl.num_programs(1)) * BLOCK_K
    first = tl.program_id(1) * size
    return first, tl.minimum(first + size, K)


@triton.jit
def store_tile(acc, bias, y, n, m, M, N, HAS_BIAS: tl.constexpr):
    """Out features n of tokens m, acc [BLOCK_N, BLOCK_M], into the program's part of y."""
    if HAS_BIAS:
        acc += tl.load(bias + tl.minimum(n, N - 1)).to(tl.float32)[:, None]
    out = y + (tl.program_id(1).to(tl.int64) * M + m)[None, :] * N + n[:, None]
    tl.store(out, rounded(acc, y.dtype.element_ty), (m < M)[None, :] & (n < N)[:, None])


@triton.jit
def add_parts_kernel(
    parts, bias, y, N, elems, SPLIT_K: tl.constexpr, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """The sum of float32 [SPLIT_K, elems] in the order of parts, so the same at each call."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < elems
    acc = tl.load(parts + i, inside, other=0.0)
    for part in tl.static_range(1, SPLIT_K):
        acc += tl.load(parts + part * elems + i, inside, other=0.0)
    if HAS_BIAS:
        acc += tl.load(bias + i % N, inside, other=0.0).to(tl.float32)
    tl.store(y + i, rounded(acc, y.dtype.element_ty), inside)


def add_parts(parts: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """The sum of float32 parts [SPLIT_K, M, N], and bias, into y."""
    SPLIT_K, _, N = parts.shape
    BLOCK = 512
    add_parts_kernel[(triton.cdiv(y.numel(), BLOCK),)](
        parts, bias, y, N, y.numel(), SPLIT_K, BLOCK, HAS_BIAS=bias is not None
    )


Tile = tuple[int, int, int, int]  # BLOCK_N, BLOCK_K, warps, stages


@functools.cache
def tuned(kernel: triton.JITFunction, tiles: tuple[Tile, ...]) -> triton.runtime.Autotuner:
    """The kernel with one of the tiles, measured once for each N, K and tokens of a plan.

    Triton keeps what it found on disk. Parts of K and the tile's tokens stay those of the plan: the
    former decide what is allocated, the latter stand for M. The first call measures: make it
    before a CUDA graph is recorded.
    """
    configs = [
        triton.Config({"BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
        for n, k, warps, stages in tiles
    ]
    return triton.autotune(configs, key=["N", "K", "BLOCK_M"], cache_results=True)(kernel)


def product(
    kernel: triton.JITFunction,
    plan: Callable[..., Plan],
    tiles: tuple[Tile, ...],
    x: Tensor,
    weight: tuple[Tensor, ...],
    bias: Tensor | None,
    N: int,
    K: int,
    **constants: int,
) -> Tensor:
    """A format's x W^T + bias [..., N], once the arguments are checked.

    Args:
        kernel: Takes tokens [M, K], the weight, the bias or None, y, M, N and K. y is [M, N], or
            float32 [parts of K, M, N].
        plan: Of M, N, K, bytes of an element and the chip.
        tiles: What is measured where AUTOTUNE.
        x: [..., K].
        weight: The tensors of W.
        bias: [N] or None.
        N: out_features.
        K: in_features.
        constants: Of the kernel, besides those of a plan.
    """
    tokens = x.reshape(-1, K).contiguous()
    M = len(tokens)
    y = x.new_empty((M, N))
    if M:
        cut = plan(M, N, K, x.element_size(), chip_of(x.device))
        # Partial sums are torch's to allocate: in a CUDA graph from the graph's own pool.
        split = cut.SPLIT_K > 1
        out = x.new_empty((cut.SPLIT_K, M, N), dtype=torch.float32) if split else y
        constants |= {"HAS_BIAS": bias is not None and not split}
        if AUTOTUNE:
            kernel, options = tuned(kernel, tiles), cut.fixed()
        else:
            options = cut.options()

        def grid(tile: dict) -> tuple[int, int]:
            rows, columns = triton.cdiv(N, tile["BLOCK_N"]), triton.cdiv(M, tile["BLOCK_M"])
            return rows * columns, cut.SPLIT_K

        with torch.cuda.device_of(x):
            kernel[grid](
                tokens, *weight, None if split else bias, out, M, N, K, **constants, **options
            )
            if split:
                add_parts(out, bias, y)
    return y.view(*x.shape[:-1], N)
