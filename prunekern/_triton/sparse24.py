"""y[M,N] = x[M,K] W[N,K]^T + bias with W 2:4, in Triton, and W's conversions.

The layout "triton" of W (layouts.py) has rows of whole tiles and metadata ordered by chunk, so that
a tile of BLOCK_N rows and BLOCK_K columns is read in whole sectors:

              BLOCK_K columns, BLOCK_K / 4 groups               chunk of 32 columns
    values n  a b | c d | e f | ...   BLOCK_K / 2 kept      meta  c   word of n, n + 1, n + 2, ...
         n+1  g h | i j | ...                                  c+1    word of n, n + 1, n + 2, ...

    in registers   group (a b), nibble 1100:  a at 0, b at 3  ->  a 0 0 b
                   y^T[BLOCK_N, BLOCK_M] += W tile [BLOCK_N, BLOCK_K] x^T tile [BLOCK_K, BLOCK_M]

W is the first operand of the product: its rows lie along the longer side of an mma (16), tokens
along the shorter (8).

Limit: bytes of W, 1.125 a weight at 16 bits, each read once, for few tokens; above some tens the
dense product's arithmetic, 2 M N K: Triton has no sparse dot. Inline PTX is elementwise in Triton,
on layouts that the compiler is free to choose, where mma.sp wants its own in each lane. Gluon pins
layouts, but its kernels run neither on AMD's GPUs nor in the interpreter, and where mma.sp exists
the CUDA kernels stand before these ("sm80"). So decode gains what the bytes give, prefill nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunekern._triton import check_linear
from prunekern._triton.blocks import add_parts_kernel, dot, tile_of
from prunekern._triton.plan import Plan, plan_for

COLUMNS = 64  # rows are padded to a multiple of these
CHUNK = 32  # columns of a word of metadata


@triton.jit
def _load_groups(values, meta, n, k, N, row_elems, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """(first kept, second, first position, second) [BLOCK_N, BLOCK_K / 4] of rows n, columns k on.

    Rows beyond N are those of the last: what they give is not stored.
    """
    n = tl.minimum(n, N - 1)
    kept = k // 2 + tl.arange(0, BLOCK_K // 2)
    pairs = tl.load(values + n.to(tl.int64)[:, None] * row_elems + kept[None, :])
    first, second = tl.split(tl.reshape(pairs, (BLOCK_N, BLOCK_K // 4, 2)))
    chunks = k // 32 + tl.arange(0, BLOCK_K // 32)
    words = tl.load(meta + chunks.to(tl.int64)[None, :] * N + n[:, None])
    nibbles = words[:, :, None] >> (4 * tl.arange(0, 8))[None, None, :]
    nibbles = tl.reshape(nibbles, (BLOCK_N, BLOCK_K // 4))
    return first, second, nibbles & 3, (nibbles >> 2) & 3


@triton.jit
def _expand(first, second, p, q, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """The dense tile [BLOCK_N, BLOCK_K] of groups."""
    position = tl.arange(0, 4)[None, None, :]
    kept = tl.where(
        q[:, :, None] == position, second[:, :, None], tl.zeros_like(second)[:, :, None]
    )
    kept = tl.where(p[:, :, None] == position, first[:, :, None], kept)
    return tl.reshape(kept, (BLOCK_N, BLOCK_K))


@triton.jit
def sparse24_linear_kernel(
    x,
    values,
    meta,
    bias,
    y,  # [M, N], or with SPLIT_K > 1 partial sums float32 [SPLIT_K, M, N]
    M,
    N,
    K,
    row_elems,  # of values
    k_tiles,  # of a program
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One tile of y, or of one of the SPLIT_K parts of its sums."""
    tile_n, tile_m = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    part = tl.program_id(1)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_K)
    token = x + tl.minimum(m, M - 1).to(tl.int64)[None, :] * K
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    begin = part * k_tiles * BLOCK_K
    for k in range(begin, tl.minimum(begin + k_tiles * BLOCK_K, 2 * row_elems), BLOCK_K):
        first, second, p, q = _load_groups(values, meta, n, k, N, row_elems, BLOCK_N, BLOCK_K)
        w = _expand(first, second, p, q, BLOCK_N, BLOCK_K)
        if EVEN_K:
            tile_x = tl.load(token + (k + columns)[:, None])
        else:
            tile_x = tl.load(token + (k + columns)[:, None], (k + columns)[:, None] < K, other=0.0)
        acc = dot(w, tile_x, acc)
    if HAS_BIAS:
        acc += tl.load(bias + tl.minimum(n, N - 1)).to(tl.float32)[:, None]
    out = y + (part.to(tl.int64) * M + m)[None, :] * N + n[:, None]
    tl.store(out, acc.to(y.dtype.element_ty), (m < M)[None, :] & (n < N)[:, None])


def linear(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, N: int, K: int) -> Tensor:
    """See `prunekern.reference.linear`."""
    tiles = -(-K // COLUMNS)
    check_linear(
        "sparse24_linear_triton",
        x,
        (
            ("values", values, None, (N, tiles * COLUMNS // 2)),
            ("meta", meta, torch.int32, (tiles * COLUMNS // CHUNK, N)),
        ),
        bias,
        N,
        K,
    )
    rows = x.reshape(-1, K).contiguous()
    y = x.new_empty((*x.shape[:-1], N))
    if len(rows):
        with torch.cuda.device_of(x):
            launch(rows, values, meta, bias, y, plan_for(x, len(rows), N, tiles * COLUMNS))
    return y


def launch(
    x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, y: Tensor, plan: Plan
) -> None:
    """The product of x [M, K] into y, by a plan."""
    (M, K), (N, row_elems) = x.shape, values.shape
    split = plan.SPLIT_K > 1
    # Partial sums come from torch's caching allocator: in a CUDA graph from the graph's own pool.
    target = x.new_empty((plan.SPLIT_K, M, N), dtype=torch.float32) if split else y
    grid = (triton.cdiv(M, plan.BLOCK_M) * triton.cdiv(N, plan.BLOCK_N), plan.SPLIT_K)
    sparse24_linear_kernel[grid](
        x, values, meta, bias, target, M, N, K, row_elems,
        triton.cdiv(2 * row_elems // plan.BLOCK_K, plan.SPLIT_K),
        plan.BLOCK_M, plan.BLOCK_N, plan.BLOCK_K, plan.SPLIT_K, plan.GROUP,
        HAS_BIAS=bias is not None and not split,
        EVEN_K=K % plan.BLOCK_K == 0,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )  # fmt: skip
    if split:
        BLOCK = 512
        add_parts_kernel[(triton.cdiv(M * N, BLOCK),)](
            target, bias, y, N, M * N, plan.SPLIT_K, BLOCK, HAS_BIAS=bias is not None
        )
