"""y[M,N] = x[M,K] W[N,K]^T + bias with W as a bitmask, in Triton.

The layout "triton" of W (layouts) has tiles of TILE_N rows and TILE_K columns, those of a row of
tiles one after the other:

    values     the kept of a tile, row by row, +0 up to a whole UNIT
    offsets    where a tile's values start, in UNITs
    bitmask    the tile's bytes, row by row: byte i of word w is byte w of the i-th quarter

    byte    1 0 0 1 0 1 1 0       low bit first
    before  0 1 1 1 2 2 3 4       kept before in the byte: one product of the bits, a nibble each
            + kept before the byte: a prefix sum over the tile's bytes
            = index into the tile's values

A program reads a tile's values as one run of whole sectors, gathers them into a dense tile through
shared memory and multiplies that. Lanes hold neighbouring bytes, hence the quarters: with the four
bytes of a word next to each other lanes would gather 32 bytes apart, eight from the same bank.
W is the first operand of the product: its rows lie along the longer side of an mma (16), tokens
along the shorter (8).

Limit: 1/8 byte and the kept values a weight, 1.125 at 50 % zeros and 16 bits, each read once. For
few tokens the expansion binds on data center GPUs, some 530 instructions and 150 wavefronts of
shared memory per 1024 weights where an A100's bandwidth leaves time for 347 and 87; on others
bandwidth does. Above some tens of tokens the dense product's 2 M N K FLOPs bind. float32, without
tensor cores, is bound at any M by the operands of its FMAs: 2400 wavefronts, as lanes read rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunekern._triton import check_linear
from prunekern._triton.blocks import columns_of_part, dot, product, store_tile, tile_of
from prunekern._triton.plan import Chip, Plan
from prunekern.layouts.bitmask import BITMASK_TILE
from prunekern.layouts.bitmask import BITMASK_UNIT as UNIT

TILE_N, TILE_K = BITMASK_TILE
# Where tiles are measured. Those of W are the layout's, which leaves warps and stages.
TRIED = tuple((TILE_N, TILE_K, warps, stages) for warps in (2, 4, 8) for stages in (1, 2, 3, 4))


@triton.jit
def _halves(t, SHIFT: tl.constexpr):
    """[..., 2]: t and its bits from SHIFT on, both in the thread that has t."""
    return tl.join(t, t >> SHIFT)


@triton.jit
def _expand(stored, words, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """The dense tile [BLOCK_N, BLOCK_K] of values stored for it and words of the bitmask."""
    BYTES: tl.constexpr = BLOCK_N * BLOCK_K // 8
    words = words.to(tl.uint32, bitcast=True)
    quarters = _halves(_halves(words, 16), 8) & 0xFF
    byte = tl.permute(quarters, (1, 2, 0)).reshape(BYTES)
    # Bit j to bit 4 j.
    bits = (byte | byte << 12) & 0x000F000F
    bits = (bits | bits << 6) & 0x03030303
    bits = (bits | bits << 3) & 0x11111111
    kept = (bits * 0x11111111 >> 28).to(tl.int32)
    before = tl.cumsum(kept, 0) - kept
    # A nibble: the kept bits before its own, 7 at most, and its own as bit 3.
    nibbles = (bits * 0x11111110) | bits << 3
    nibbles = _halves(_halves(_halves(nibbles, 16), 8), 4).reshape(BYTES, 8)
    index = before[:, None] + (nibbles & 7).to(tl.int32)
    w = tl.gather(stored, index.reshape(8 * BYTES), 0)
    w = tl.where((nibbles & 8).reshape(8 * BYTES) != 0, w, tl.zeros_like(w))
    return w.reshape(BLOCK_N, BLOCK_K)


@triton.jit
def bitmask_linear_kernel(
    x,
    values,
    bitmask,
    offsets,
    bias,
    y,  # [M, N], or of parts of K sums float32 [parts, M, N]
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """A tile of y, or of the partial sums of part_k columns."""
    TILE: tl.constexpr = BLOCK_N * BLOCK_K
    tile_n, tile_m = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    token = x + tl.minimum(m, M - 1).to(tl.int64)[None, :] * K
    tiles = tl.cdiv(K, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    first, end = columns_of_part(K, BLOCK_K)
    for column in range(first, end, BLOCK_K):
        tile = tile_n * tiles + column // BLOCK_K
        start = tl.load(offsets + tile)
        # A multiple of UNIT, so the compiler knows that a vector is read wholly or not at all.
        elems = (tl.load(offsets + tile + 1) - start) * UNIT
        within = tl.arange(0, TILE)
        stored = tl.load(values + start.to(tl.int64) * UNIT + within, within < elems, other=0.0)
        words = tl.load(bitmask + tile.to(tl.int64) * (TILE // 32) + tl.arange(0, TILE // 32))
        w = _expand(stored, words, BLOCK_N, BLOCK_K)
        k = (column + tl.arange(0, BLOCK_K))[:, None]
        if EVEN_K:
            tile_x = tl.load(token + k)
        else:
            tile_x = tl.load(token + k, k < K, other=0.0)
        acc = dot(w, tile_x, acc)
    store_tile(acc, bias, y, n, m, M, N, HAS_BIAS)


def plan(M: int, N: int, K: int, element_size: int, chip: Chip) -> Plan:
    """The plan of one product; tiles of W are those of the layout.

    Args:
        M: Tokens.
        N: out_features.
        K: in_features.
        element_size: Bytes of an element.
        chip: The GPU.
    """
    # AMD's instructions take 16 tokens, mma 8.
    BLOCK_M = 16 if M <= 16 else 32 if M <= 32 else 64
    programs = triton.cdiv(M, BLOCK_M) * triton.cdiv(N, TILE_N)
    tiles = triton.cdiv(K, TILE_K)
    # Two programs a multiprocessor, but 4 tiles of K each: fewer would not fill the pipeline.
    parts = max(1, min(2 * chip.sms // programs, tiles // 4, 16))
    part_tiles = triton.cdiv(tiles, parts)
    # 64 tokens of float32, multiplied by plain FMAs, need the registers of 256 threads.
    threads = 256 if BLOCK_M == 64 and element_size == 4 else 128
    return Plan(
        BLOCK_M,
        TILE_N,
        TILE_K,
        GROUP=8,
        SPLIT_K=triton.cdiv(tiles, part_tiles),
        num_warps=threads // chip.warp_size,
        # Stages of float32 are twice as large, and AMD has 64 KB of LDS.
        num_stages=2 if chip.amd or element_size == 4 else 3,
    )


def linear(
    x: Tensor,
    values: Tensor,
    bitmask: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    N: int,
    K: int,
) -> Tensor:
    """See `prunekern.reference.linear`."""
    rows, tiles = triton.cdiv(N, TILE_N), triton.cdiv(K, TILE_K)
    check_linear(
        "bitmask_linear_triton",
        x,
        (
            ("values", values, None, (triton.cdiv(len(values), UNIT) * UNIT,)),
            ("bitmask", bitmask, torch.int32, (rows, tiles, TILE_N * TILE_K // 32)),
            ("offsets", offsets, torch.int32, (rows * tiles + 1,)),
        ),
        bias,
        N,
        K,
    )
    return product(
        bitmask_linear_kernel,
        plan,
        TRIED,
        x,
        (values, bitmask, offsets),
        bias,
        N,
        K,
        UNIT=UNIT,
        EVEN_K=K % TILE_K == 0,
    )
