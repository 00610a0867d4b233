"""y[M,N] = x[M,K] W[N,K]^T + bias with W 2:4, in Triton, and W's conversions.

The layout "triton" of W (layouts) has rows of whole tiles and metadata ordered by chunk, so that
a tile of BLOCK_N rows and BLOCK_K columns is read in whole sectors:

              BLOCK_K columns, BLOCK_K / 4 groups               chunk of 32 columns
    values n  a b | c d | e f | ...   BLOCK_K / 2 kept      meta  c   word of n, n + 1, n + 2, ...
         n+1  g h | i j | ...                                  c+1    word of n, n + 1, n + 2, ...

    in registers   pair (a b), bits 1001:  stored at 0 and 3  ->  a 0 0 b, two permutations
                   y^T[BLOCK_N, BLOCK_M] += W tile [BLOCK_N, BLOCK_K] x^T tile [BLOCK_K, BLOCK_M]

W is the first operand of the product: its rows lie along the longer side of an mma (16), tokens
along the shorter (8).

Limit: bytes of W, 1.125 a weight at 16 bits, each read once, for few tokens; above some tens the
dense product's arithmetic, 2 M N K. Issue: 106 instructions of a warp for 1024 weights (the loop
on sm_80), of the 917 that a T4 has time for while it reads them, the 172 of an A100; 44 of them
expand pairs. Shifts and masks, which other chips expand by, make it 186. At one token plain FMAs
would need the expansion as well, and 64 more to convert and add.

Triton has no sparse dot, and its inline PTX is elementwise, on layouts that the compiler is free to
choose. Gluon's `inline_asm` (Triton 3.9) can: it hands a lane's registers over in the order of a
linear layout, and one mma.sp m16n8k32 on layouts of its fragments, tried in the emulator, was
right. It is not taken: it runs neither on AMD's GPUs nor below 8.0 nor in the interpreter, and
where mma.sp exists the CUDA kernels stand before these ("sm80"). So decode gains what the bytes
give, prefill nothing.
"""

from __future__ import annotations

import itertools
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunekern._triton import check_linear
from prunekern._triton.blocks import Tile, columns_of_part, dot, product, store_tile, tile_of
from prunekern._triton.plan import chip_of, plan

COLUMNS = 64  # rows are padded to a multiple of these
CHUNK = 32  # columns of a word of metadata


@triton.jit
def _load_tile(pairs, meta, n, k, N, row_pairs, BLOCK_K: tl.constexpr):
    """Stored pairs [BLOCK_N, BLOCK_K / 4] and metadata [BLOCK_N, BLOCK_K / 32] of rows n, from
    column k on.

    Rows beyond N are the last one again: what they give is not stored.
    """
    n = tl.minimum(n, N - 1).to(tl.int64)
    groups = k // 4 + tl.arange(0, BLOCK_K // 4)
    chunks = k // 32 + tl.arange(0, BLOCK_K // 32)
    pair = tl.load(pairs + n[:, None] * row_pairs + groups[None, :])
    return pair, tl.load(meta + chunks.to(tl.int64)[None, :] * N + n[:, None])


def _table(element: int) -> tuple[int, ...]:
    """What an element of a group is, in eight bytes, as two words.

    Byte `bits & 7` has a nibble for each of the element's bytes: 0 and 1 are those of the pair's
    first, 2 and 3 of its second, 4 is zero.
    """
    table = bytearray(8 * b"\x44")
    for first, second in itertools.combinations(range(4), 2):
        if element in (first, second):
            table[(1 << first | 1 << second) & 7] = 0x10 if element == first else 0x32
    return struct.unpack("<2i", table)


_TABLES = tl.constexpr(sum(map(_table, range(4)), ()))


@triton.jit
def _permute(a, b, selector):
    """PTX's prmt: of the eight bytes of a and b those four that the selector's nibbles name."""
    prmt: tl.constexpr = "prmt.b32 $0, $1, $2, $3;"
    return tl.inline_asm_elementwise(prmt, "=r,r,r,r", [a, b, selector], tl.int32, True, 1)


@triton.jit
def _permuted(pair, words, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """(left, right) of _expand: an instruction each, and 3.5 a group for what selects the bytes.

    codes   a nibble a group, bits & 7, as the fourth bit follows from three
    e0 - e3 a byte a group, four of them by one look-up: what element 0, 1, 2 or 3 is
    both    of a group e0 and e1, or e2 and e3: what selects its left, or right, from its pair
    """
    codes = (words & 0x77777777)[:, :, None] >> (16 * tl.arange(0, 2))
    e0 = _permute(_TABLES[0], _TABLES[1], codes)[:, :, :, None]
    e1 = _permute(_TABLES[2], _TABLES[3], codes)[:, :, :, None]
    e2 = _permute(_TABLES[4], _TABLES[5], codes)[:, :, :, None]
    e3 = _permute(_TABLES[6], _TABLES[7], codes)[:, :, :, None]
    both = 0x40 + 0x11 * tl.arange(0, 4)
    left = tl.reshape(_permute(e0, e1, both), (BLOCK_N, BLOCK_K // 4))
    right = tl.reshape(_permute(e2, e3, both), (BLOCK_N, BLOCK_K // 4))
    return _permute(pair, 0, left), _permute(pair, 0, right)


@triton.jit
def _selected(pair, words, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """(left, right) of _expand, by a shift of one element and a mask each."""
    SIZE: tl.constexpr = pair.dtype.primitive_bitwidth // 2
    bits = tl.reshape(words[:, :, None] >> (4 * tl.arange(0, 8)), (BLOCK_N, BLOCK_K // 4))
    low = (tl.full((), 1, pair.dtype) << SIZE) - 1
    left = tl.where((bits & 1) != 0, pair, pair << SIZE)
    left = tl.where((bits & 2) != 0, left, left & low)
    right = tl.where((bits & 8) != 0, pair, (pair >> SIZE) & low)
    right = tl.where((bits & 4) != 0, right, right & ~low)
    return left, right


@triton.jit
def _expand(
    pair,
    words,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRMT: tl.constexpr,
):
    """The dense tile [BLOCK_N, BLOCK_K] of pairs, each an integer of two elements.

    A group becomes two such integers; "." is 0:

        stored at    0 1    0 2    0 3    1 2    1 3    2 3
        left        a b    a .    a .    . a    . a    . .
        right       . .    b .    . b    b .    . b    a b

    PRMT: the chip has PTX's permutation of bytes, which serves elements of 16 bits.
    """
    SIZE: tl.constexpr = pair.dtype.primitive_bitwidth // 2
    integer = tl.int16 if SIZE == 16 else tl.int32
    if PRMT and SIZE == 16:
        left, right = _permuted(pair, words, BLOCK_N, BLOCK_K)
    else:
        left, right = _selected(pair, words, BLOCK_N, BLOCK_K)
    halves = tl.reshape(tl.join(left, right), (BLOCK_N, BLOCK_K // 2))
    elements = tl.join(halves.to(integer), (halves >> SIZE).to(integer))
    return tl.reshape(elements, (BLOCK_N, BLOCK_K)).to(DTYPE, bitcast=True)


@triton.jit
def sparse24_linear_kernel(
    x,
    pairs,  # values as integers, two elements each
    meta,
    bias,
    y,  # [M, N], or partial sums, float32 [parts of K, M, N]
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRMT: tl.constexpr,
):
    """A tile of y, or of the partial sums of part_k columns."""
    tile_n, tile_m = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_K)
    token = x + tl.minimum(m, M - 1).to(tl.int64)[None, :] * K
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    row_pairs = tl.cdiv(K, 64) * 16
    first, end = columns_of_part(K, BLOCK_K)
    for k in range(first, end, BLOCK_K):
        pair, words = _load_tile(pairs, meta, n, k, N, row_pairs, BLOCK_K)
        w = _expand(pair, words, x.dtype.element_ty, BLOCK_N, BLOCK_K, PRMT)
        if EVEN_K:
            tile_x = tl.load(token + (k + columns)[:, None])
        else:
            tile_x = tl.load(token + (k + columns)[:, None], (k + columns)[:, None] < K, other=0.0)
        acc = dot(w, tile_x, acc)
    store_tile(acc, bias, y, n, m, M, N, HAS_BIAS)


@triton.jit
def sparse24_decompress_kernel(
    pairs, meta, dense, N, K, row_pairs, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """A tile of dense [N, K] from the layout "triton"."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K
    pair, words = _load_tile(pairs, meta, n, k, N, row_pairs, BLOCK_K)
    w = _expand(pair, words, dense.dtype.element_ty, BLOCK_N, BLOCK_K, False)
    k += tl.arange(0, BLOCK_K)
    out = dense + n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(out, w, (n < N)[:, None] & (k < K)[None, :])


@triton.jit
def sparse24_pack_kernel(
    values, meta, packed_values, packed_meta, N, G, tiles, BLOCK_N: tl.constexpr
):
    """BLOCK_N rows of a tile of 64 columns, from canonical values [N, 2 G] and meta."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = tl.program_id(1)
    rows, wide_n = (n < N)[:, None], n.to(tl.int64)[:, None]

    stored = tile * 32 + tl.arange(0, 32)[None, :]
    value = tl.load(values + wide_n * (2 * G) + stored, rows & (stored < 2 * G), other=0)
    tl.store(packed_values + wide_n * (32 * tiles) + stored, value, rows)

    group = tile * 16 + tl.arange(0, 16)[None, :]
    byte = meta + wide_n * ((G + 1) // 2) + group // 2
    nibble = tl.load(byte, rows & (group < G), other=0x44).to(tl.int32) >> (4 * (group % 2))
    bits = (1 << (nibble & 3)) | (1 << ((nibble >> 2) & 3))
    word = tl.sum(tl.reshape(bits << (4 * (group % 8)), (BLOCK_N, 2, 8)), 2)
    chunk = tile * 2 + tl.arange(0, 2)[None, :]
    tl.store(packed_meta + chunk.to(tl.int64) * N + n[:, None], word, rows)


@triton.jit
def _goes_first(worth, other, LOWER: tl.constexpr):
    """1 where the other element is kept before this one: among equals the lower position is."""
    return (other >= worth if LOWER else other > worth).to(tl.int32)


@triton.jit
def sparse24_compress_kernel(
    weight, values, meta, broken, N, K, LARGEST: tl.constexpr, BLOCK_N: tl.constexpr
):
    """BLOCK_N rows of 64 columns of dense [N, K], as integers, to the canonical form.

    LARGEST: the two largest magnitudes of four are kept. Else the non-zeros, and `broken` counts
    the groups that have more than two.
    """
    SIGN: tl.constexpr = 1 << (weight.dtype.element_ty.primitive_bitwidth - 1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows, wide_n = (n < N)[:, None], n.to(tl.int64)[:, None]
    k = tl.program_id(1) * 64 + tl.arange(0, 64)[None, :]
    elements = tl.load(weight + wide_n * K + k, rows & (k < K), other=0)
    even, odd = tl.split(tl.reshape(elements, (BLOCK_N, 16, 2, 2)))
    (a, c), (b, d) = tl.split(even), tl.split(odd)
    magnitude = tl.reshape(elements & (SIGN - 1), (BLOCK_N, 16, 2, 2)).to(tl.int32)
    if LARGEST:
        worth = magnitude
    else:
        # A negative zero goes before a positive one, which may be left out without a loss.
        negative_zero = (tl.reshape(elements, (BLOCK_N, 16, 2, 2)) != 0).to(tl.int32)
        worth = tl.where(magnitude != 0, 2, negative_zero)
        nonzeros = tl.sum(tl.sum((magnitude != 0).to(tl.int32), 3), 2)
        tl.atomic_add(broken, tl.sum(tl.sum((nonzeros > 2).to(tl.int32), 1), 0))
    even, odd = tl.split(worth)
    (wa, wc), (wb, wd) = tl.split(even), tl.split(odd)
    keep_a = _goes_first(wa, wb, False) + _goes_first(wa, wc, False) + _goes_first(wa, wd, False)
    keep_b = _goes_first(wb, wa, True) + _goes_first(wb, wc, False) + _goes_first(wb, wd, False)
    keep_c = _goes_first(wc, wa, True) + _goes_first(wc, wb, True) + _goes_first(wc, wd, False)
    keep_a, keep_b, keep_c = keep_a < 2, keep_b < 2, keep_c < 2
    keep_d = keep_a.to(tl.int32) + keep_b.to(tl.int32) + keep_c.to(tl.int32) < 2

    first = tl.where(keep_a, a, tl.where(keep_b, b, c))
    second = tl.where(keep_d, d, tl.where(keep_c, c, b))
    G = tl.cdiv(K, 4)
    stored = tl.program_id(1) * 32 + tl.arange(0, 32)[None, :]
    pair = tl.reshape(tl.join(first, second), (BLOCK_N, 32))
    tl.store(values + wide_n * (2 * G) + stored, pair, rows & (stored < 2 * G))

    nibble = tl.where(keep_a, 0, tl.where(keep_b, 1, 2))
    nibble |= tl.where(keep_d, 3, tl.where(keep_c, 2, 1)) << 2
    low, high = tl.split(tl.reshape(nibble, (BLOCK_N, 8, 2)))
    byte = tl.program_id(1) * 8 + tl.arange(0, 8)[None, :]
    bytes_of_row = tl.cdiv(G, 2)
    out = meta + wide_n * bytes_of_row + byte
    tl.store(out, (low | high << 4).to(tl.uint8), rows & (byte < bytes_of_row))


def _integers(t: Tensor, elements: int = 1) -> Tensor:
    """The same memory as integers of one or two elements each."""
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return t.view(sizes[t.element_size() * elements])


def tried(K: int) -> tuple[Tile, ...]:
    """What is measured where tiles are: those whose columns cut K's tiles of 64 evenly."""
    tiles = (16, 64, 1), (32, 64, 2), (64, 64, 2), (64, 64, 4), (128, 64, 4), (128, 64, 8)
    if triton.cdiv(K, COLUMNS) % 2 == 0:
        tiles += ((64, 128, 4),)
    return tuple((*tile, stages) for tile in tiles for stages in (2, 3, 4))


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
    return product(
        sparse24_linear_kernel,
        plan,
        tried(K),
        x,
        (_integers(values, 2), meta),
        bias,
        N,
        K,
        EVEN_K=K % COLUMNS == 0,
        PRMT=chip_of(x.device).has_prmt,
    )


_BLOCK_N = 32  # of the conversions


def decompress(values: Tensor, meta: Tensor, N: int, K: int) -> Tensor:
    """The dense weight [N, K] of the layout "triton", see `prunekern.decompress`."""
    dense = values.new_empty((N, K))
    pairs = _integers(values, 2)
    grid = (triton.cdiv(N, _BLOCK_N), triton.cdiv(K, COLUMNS))
    with torch.cuda.device_of(values):
        sparse24_decompress_kernel[grid](
            pairs, meta, dense, N, K, pairs.shape[1], _BLOCK_N, COLUMNS
        )
    return dense


def pack(values: Tensor, meta: Tensor, N: int, K: int) -> tuple[Tensor, Tensor]:
    """Canonical tensors in the layout "triton", see `prunekern.layouts.pack_reference`."""
    tiles = triton.cdiv(K, COLUMNS)
    packed_values = values.new_empty((N, tiles * COLUMNS // 2))
    packed_meta = meta.new_empty((tiles * COLUMNS // CHUNK, N), dtype=torch.int32)
    grid = (triton.cdiv(N, _BLOCK_N), tiles)
    with torch.cuda.device_of(values):
        sparse24_pack_kernel[grid](
            _integers(values), meta, _integers(packed_values), packed_meta,
            N, triton.cdiv(K, 4), tiles, _BLOCK_N,
        )  # fmt: skip
    return packed_values, packed_meta


def compress(weight: Tensor, largest: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Canonical values and metadata of a dense weight [N, K], on its device.

    Args:
        weight: Contiguous.
        largest: Whether to prune in passing, to the two largest magnitudes of each four.

    Returns:
        values, meta and, as an int32 tensor of one number, how many groups have more than two
        non-zeros: where that is not 0, and largest not set, the first two mean nothing.
    """
    N, K = weight.shape
    G = triton.cdiv(K, 4)
    values = weight.new_empty((N, 2 * G))
    meta = weight.new_empty((N, triton.cdiv(G, 2)), dtype=torch.uint8)
    broken = weight.new_zeros(1, dtype=torch.int32)
    grid = (triton.cdiv(N, _BLOCK_N), triton.cdiv(K, 64))
    with torch.cuda.device_of(weight):
        sparse24_compress_kernel[grid](
            _integers(weight), _integers(values), meta, broken, N, K, largest, _BLOCK_N
        )
    return values, meta, broken
