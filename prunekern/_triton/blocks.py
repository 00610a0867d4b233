"""What the products of all formats share inside a kernel."""

import functools
import os

import triton
import triton.language as tl
from torch import Tensor

from prunekern._triton import INTERPRETED

# Whether to measure tiles on the GPU at hand, instead of taking those of plan.py.
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


@functools.cache
def tuned(kernel: triton.JITFunction) -> triton.runtime.Autotuner:
    """The kernel with tiles that are measured once for each N, K and tokens of a plan.

    Triton keeps what it found on disk. Parts of K and the tile's tokens stay those of the plan, as
    they decide what is allocated. The first call measures: make it before a CUDA graph is recorded.
    """
    configs = [
        triton.Config({"BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
        for n, k, warps in ((16, 64, 1), (32, 64, 2), (64, 64, 2), (64, 64, 4), (64, 128, 4),
                            (128, 64, 4), (128, 64, 8))
        for stages in (2, 3, 4)
    ]  # fmt: skip

    def fitting(configs, arguments, **_):
        columns = 4 * arguments["row_pairs"], arguments["part_k"]
        return [c for c in configs if not any(k % c.kwargs["BLOCK_K"] for k in columns)]

    return triton.autotune(
        configs,
        key=["N", "K", "BLOCK_M"],
        prune_configs_by={"early_config_prune": fitting},
        cache_results=True,
    )(kernel)
