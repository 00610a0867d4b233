"""y[M,N] = x[M,K] W[N,K]^T + bias with W in compressed sparse rows, in Triton.

The layout "triton" of W (layouts) orders rows by length and puts STRIP of them together, each
padded to as many vectors of VECTOR entries as the strip's longest has:

    chunk of STRIP x VECTOR   row  5  a b c d e f g h    next chunk  row  5  i j . . . . . .
                              row  2  k l m n o p q r                row  2  s . . . . . . .
                              row 11  t u v w x y z A                row 11  . . . . . . . .

A lane reads a vector of values and one of columns, 16 bytes each at 16 bits, a warp whole sectors;
float32 values in two halves, the second of which L1 has.
Neighbours in the order of length differ by little, so what padding costs is the last vector's
rest: VECTOR / 2 entries a row on average, 1 % of a row of 400. Padding to whole rows of chunks or
in the order of rows would cost several times that.

Limit: 4 bytes a kept weight with 16-bit columns, 0.4 a weight at 90 % zeros, for a token or two;
from there the gathers of x, one a kept weight and token, served by L1 and L2: M nnz of them, about
8 instructions each. At 50 % zeros bitmask is better at every M.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunekern._triton import check_linear
from prunekern._triton.blocks import product, rounded, tile_of
from prunekern._triton.plan import Chip, Plan
from prunekern.layouts.csr import CSR_STRIP as STRIP
from prunekern.layouts.csr import CSR_VECTOR as VECTOR

# Where tiles are measured: strips are the layout's, which leaves how many of a row's vectors
# are read at a time, and by how many warps. The loop has no copies to shared memory to stage.
TRIED = tuple(
    (STRIP, 32 * warps // STRIP * VECTOR * vectors, warps, 2)
    for warps in (1, 2, 4, 8)
    for vectors in (1, 2)
)


@triton.jit
def _columns_of_eight(t, VECTORS: tl.constexpr):
    """The eight columns of [VECTORS, 8], a row of which one thread holds, without moving any."""
    t0246, t1357 = tl.split(t.reshape(VECTORS, 4, 2))
    t04, t26 = tl.split(t0246.reshape(VECTORS, 2, 2))
    t15, t37 = tl.split(t1357.reshape(VECTORS, 2, 2))
    t0, t4 = tl.split(t04)
    t2, t6 = tl.split(t26)
    t1, t5 = tl.split(t15)
    t3, t7 = tl.split(t37)
    return t0, t1, t2, t3, t4, t5, t6, t7


@triton.jit
def csr_linear_kernel(
    x,
    values,
    columns,
    rows,  # [3, stored_rows]: row of W, its length, where its strip starts, in chunks
    bias,
    y,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # rows of a strip
    BLOCK_K: tl.constexpr,  # entries of each that a program reads at a time
    GROUP: tl.constexpr,
    VECTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """One strip of rows for BLOCK_M tokens."""
    VECTORS: tl.constexpr = BLOCK_N * BLOCK_K // VECTOR
    CHUNK: tl.constexpr = BLOCK_N * VECTOR
    stored_rows = tl.cdiv(N, BLOCK_N) * BLOCK_N
    strip, tile_m = tile_of(tl.program_id(0), M, stored_rows, BLOCK_M, BLOCK_N, GROUP)
    first_row = strip * BLOCK_N
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    token = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * K

    # The first row of a strip is its longest.
    chunks = tl.cdiv(tl.load(rows + stored_rows + first_row), VECTOR)
    start = tl.load(rows + 2 * stored_rows + first_row).to(tl.int64) * CHUNK
    vectors = tl.arange(0, VECTORS)
    left = tl.load(rows + stored_rows + first_row + vectors % BLOCK_N) - vectors // BLOCK_N * VECTOR
    within = vectors[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]

    acc = tl.zeros((BLOCK_M, VECTORS), tl.float32)
    for c in range(0, chunks, BLOCK_K // VECTOR):
        at = start + c * CHUNK + within
        stored = (vectors < (chunks - c) * BLOCK_N)[:, None]
        w = _columns_of_eight(tl.load(values + at, stored, other=0.0), VECTORS)
        k = _columns_of_eight(tl.load(columns + at, stored, other=0), VECTORS)
        for e in tl.static_range(VECTOR):
            # Padding reads no token: 0 times infinity is not 0.
            kept = (e < left - c * VECTOR)[None, :]
            x_kept = tl.load(token + k[e].to(tl.int32)[None, :], kept, other=0.0)
            acc += x_kept.to(tl.float32) * w[e].to(tl.float32)[None, :]

    sums = tl.sum(acc.reshape(BLOCK_M, BLOCK_K // VECTOR, BLOCK_N), axis=1)
    n = tl.load(rows + first_row + tl.arange(0, BLOCK_N))
    if HAS_BIAS:
        sums += tl.load(bias + n, n < N, other=0.0).to(tl.float32)[None, :]
    out = y + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out, rounded(sums, y.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])


def plan(M: int, N: int, K: int, element_size: int, chip: Chip) -> Plan:
    """The plan of one product: a vector a thread, and W read once for up to 16 tokens.

    Those take 78 registers of a thread: sums, and gathers under way. The arguments are those of
    `bitmask.plan`; strips are of one size whatever the weight's.
    """
    threads = 128
    return Plan(
        BLOCK_M=min(16, triton.next_power_of_2(M)),
        BLOCK_N=STRIP,
        BLOCK_K=threads // STRIP * VECTOR,
        GROUP=8,
        SPLIT_K=1,
        num_warps=threads // chip.warp_size,
        num_stages=2,
    )


def linear(
    x: Tensor,
    values: Tensor,
    col_indices: Tensor,
    rows: Tensor,
    bias: Tensor | None,
    N: int,
    K: int,
) -> Tensor:
    """See `prunekern.reference.linear`."""
    check_linear(
        "csr_linear_triton",
        x,
        (
            ("values", values, None, (len(col_indices), STRIP, VECTOR)),
            (
                "col_indices",
                col_indices,
                torch.uint16 if K <= 65536 else torch.int32,
                (len(values), STRIP, VECTOR),
            ),
            ("crow_indices", rows, torch.int32, (3, triton.cdiv(N, STRIP) * STRIP)),
        ),
        bias,
        N,
        K,
    )
    weight = values, col_indices, rows
    return product(csr_linear_kernel, plan, TRIED, x, weight, bias, N, K, VECTOR=VECTOR)
