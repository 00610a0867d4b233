"""What the products of all formats share inside a kernel."""

import triton
import triton.language as tl
from torch import Tensor

from prunekern._triton import INTERPRETED

# The interpreter keeps bfloat16 as integers and multiplies them as such.
_WIDEN_BF16 = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, acc):
    """The product of a and b, plus acc, in float32; float32 operands are not rounded to TF32."""
    if _WIDEN_BF16:
        if a.dtype == tl.bfloat16:
            a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


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
    tl.store(y + i, acc.to(y.dtype.element_ty), inside)


def add_parts(parts: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """The sum of float32 parts [SPLIT_K, M, N], and bias, into y."""
    SPLIT_K, _, N = parts.shape
    BLOCK = 512
    add_parts_kernel[(triton.cdiv(y.numel(), BLOCK),)](
        parts, bias, y, N, y.numel(), SPLIT_K, BLOCK, HAS_BIAS=bias is not None
    )
