"""Layouts of the bitmask format, each of three tensors: values, bitmask, offsets.

Reading order by variant:

reference, scalar   canonical values and bitmask; offsets int64 [N+1]: where each row starts
avx2, avx512, avx512bf16, amx: tiles of 4 rows, chunks of 64 columns, T = ceil(N/4), C = ceil(K/64)
    bitmask int64     [T, C, 4]         bit j of word t, c, r: weight (4t + r, 64c + j) is kept
    values            in the order of those bits, then 64 zeros: kernels read whole vectors
    offsets int64     [T+1]             where each tile starts
triton: tiles of 32 rows x 128 columns, T = ceil(N / 32), C = ceil(K / 128)
    values            in the order of tiles, row by row, each tile +0 up to a multiple of 16
    bitmask int32     [T, C, 128]       byte b (row by row) of a tile: byte b // 128 of word
                                        b % 128, bits as in the canonical form
    offsets int32     [TC+1]            where each tile starts, in units of 16 values
sm80: panels of 64 x 64, R = ceil(N / 64), C = ceil(K / 64), four tiles of 16 rows each; lane
4 g + t of a tile has columns 16 t .. 16 t + 15 of rows g and g + 8, in eight nibbles of two
columns, as csrc/cuda/bitmask_fragments.h draws them
    bitmask int32     [R, C, 32 lanes, 4 tiles]   bits 4f..4f+3 of a word: columns 2f, 2f + 1 of row
                                        g, then of row g + 8
    values            [R, C, 4 tiles, 8 nibbles]: the lanes' row g backwards, from the last column
                      of lane 31 to the first of lane 0, then their row g + 8 forwards; each tile
                      +0 up to a multiple of 8
    offsets int32     [4RC+1]           where each tile starts, in units of 8 values
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunekern.formats import Bitmask
from prunekern.layouts.packed import PADDING, Packed

BITMASK_TILE_ROWS = 4
BITMASK_CHUNK = 64
# Of the layout "triton".
BITMASK_TILE = (32, 128)
BITMASK_UNIT = 16
# Of the layout "sm80".
PANEL = 64
PANEL_UNIT = 8


def _row_starts(bitmask: Tensor) -> Tensor:
    """int64 [N+1] of a canonical bitmask."""
    bits = torch.arange(8, device=bitmask.device)
    counts = ((bitmask.unsqueeze(-1) >> bits) & 1).sum((1, 2), dtype=torch.int64)
    return pad(counts.cumsum(0), (1, 0))


def _bits(words: Tensor, count: int) -> Tensor:
    """Bool [..., count]: the lowest bits of words."""
    return ((words.unsqueeze(-1) >> torch.arange(count, device=words.device)) & 1).bool()


def _canonical_order(kept: Tensor) -> Tensor:
    """For each value in packed order, its index in canonical order.

    Args:
        kept: [row tiles, column tiles, rows, columns].
    """
    by_row = kept.transpose(1, 2)
    index = torch.zeros(by_row.shape, dtype=torch.int64, device=kept.device)
    index[by_row] = torch.arange(int(kept.sum()), device=kept.device)
    return index.transpose(1, 2)[kept]


def pack(c: Bitmask, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of one layout; the layout is checked by the caller."""
    if layout in ("reference", "scalar"):
        return c.values, c.bitmask, _row_starts(c.bitmask)
    if layout == "triton":
        return _pack_tiles(c)
    if layout == "sm80":
        return _pack_panels(c)
    N, K = c.shape
    T, C = -(-N // BITMASK_TILE_ROWS), -(-K // BITMASK_CHUNK)
    padded = pad(c.bitmask, (0, 8 * C - c.bitmask.shape[1], 0, T * BITMASK_TILE_ROWS - N))
    rows = padded.contiguous().view(torch.int64)  # little endian: byte 0 is bits 0..7
    words = rows.view(T, BITMASK_TILE_ROWS, C).transpose(1, 2).contiguous()
    kept = _bits(words, 64)
    values = pad(c.values[_canonical_order(kept)], (0, PADDING))
    offsets = pad(kept.sum((1, 2, 3)).cumsum(0), (1, 0))
    return values, words, offsets


def fake_pack(
    layout: str, values: Tensor, bitmask: Tensor, out_features: int, in_features: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes and dtypes of what the op of this layout returns."""
    if layout == "sm80":
        R, C = -(-out_features // PANEL), -(-in_features // PANEL)
        units = torch.library.get_ctx().new_dynamic_size()
        words = bitmask.new_empty((R, C, 32, 4), dtype=torch.int32)
        offsets = bitmask.new_empty((4 * R * C + 1,), dtype=torch.int32)
        return values.new_empty((units * PANEL_UNIT,)), words, offsets
    T, C = -(-out_features // BITMASK_TILE_ROWS), -(-in_features // 64)
    words = bitmask.new_empty((T, C, BITMASK_TILE_ROWS), dtype=torch.int64)
    offsets = bitmask.new_empty((T + 1,), dtype=torch.int64)
    return values.new_empty((values.shape[0] + PADDING,)), words, offsets


def fake_unpack(
    values: Tensor, words: Tensor, offsets: Tensor, out_features: int, in_features: int
) -> tuple[Tensor, Tensor]:
    """The shapes and dtypes of what the op `bitmask_unpack_sm80` returns."""
    nnz = torch.library.get_ctx().new_dynamic_size()
    bitmask = words.new_empty((out_features, -(-in_features // 8)), dtype=torch.uint8)
    return values.new_empty((nnz,)), bitmask


def unpack(packed: Packed) -> Bitmask:
    """What `pack` was given."""
    values, words, _ = packed.tensors
    if packed.layout in ("reference", "scalar"):
        return Bitmask(values=values, bitmask=words, shape=packed.shape)
    if packed.layout == "triton":
        return _unpack_tiles(packed)
    if packed.layout == "sm80":
        unpacker = getattr(torch.ops.prunekern, "bitmask_unpack_sm80", None)
        if unpacker is None or values.device.type != "cuda":
            return _unpack_panels(packed)
        values, rows = unpacker(*packed.tensors, *packed.shape)
        return Bitmask(values=values, bitmask=rows, shape=packed.shape)
    N, K = packed.shape
    T, C, rows = words.shape
    canonical = values.new_empty(values.numel() - PADDING)
    canonical[_canonical_order(_bits(words, 64))] = values[:-PADDING]
    by_row = words.transpose(1, 2).flatten().view(torch.uint8).view(T * rows, 8 * C)
    return Bitmask(
        values=canonical, bitmask=by_row[:N, : -(-K // 8)].contiguous(), shape=packed.shape
    )


def _slots_of_tiles(counts: Tensor, unit: int) -> tuple[Tensor, Tensor]:
    """(for each value in the order of tiles, its place among padded ones; offsets in units).

    Args:
        counts: [tiles] of kept values.
        unit: Of values, that each tile is padded to a multiple of.
    """
    units = pad((-(-counts // unit)).cumsum(0), (1, 0))
    gaps = units[:-1] * unit - (counts.cumsum(0) - counts)
    values = torch.arange(int(counts.sum()), device=counts.device)
    return values + gaps.repeat_interleave(counts), units.to(torch.int32)


def _pack_tiles(c: Bitmask) -> tuple[Tensor, Tensor, Tensor]:
    N, K = c.shape
    rows, columns = BITMASK_TILE
    T, C = -(-N // rows), -(-K // columns)
    padded = pad(c.bitmask, (0, C * columns // 8 - c.bitmask.shape[1], 0, T * rows - N))
    tiles = padded.view(T, rows, C, columns // 8).transpose(1, 2)
    kept = _bits(tiles, 8).flatten(3)
    slots, offsets = _slots_of_tiles(kept.sum((2, 3)).flatten(), BITMASK_UNIT)
    values = c.values.new_zeros(int(offsets[-1]) * BITMASK_UNIT)
    values[slots] = c.values[_canonical_order(kept)]
    words = tiles.reshape(T, C, 4, -1).transpose(2, 3).contiguous().view(torch.int32)
    return values, words.squeeze(-1), offsets


def _unpack_tiles(packed: Packed) -> Bitmask:
    values, words, _ = packed.tensors
    N, K = packed.shape
    rows, columns = BITMASK_TILE
    T, C = words.shape[:2]
    quarters = words.view(torch.uint8).view(T, C, -1, 4).transpose(2, 3)
    tiles = quarters.reshape(T, C, rows, columns // 8)
    kept = _bits(tiles, 8).flatten(3)
    slots, _ = _slots_of_tiles(kept.sum((2, 3)).flatten(), BITMASK_UNIT)
    canonical = values.new_empty(len(slots))
    canonical[_canonical_order(kept)] = values[slots]
    by_row = tiles.transpose(1, 2).reshape(T * rows, C * columns // 8)
    return Bitmask(
        values=canonical, bitmask=by_row[:N, : -(-K // 8)].contiguous(), shape=packed.shape
    )


# Canonical rows in panels, as axes: row group R, tile, half of it, its row g; column tile C,
# quarter t, nibble f, and its column.
_TO_WORDS = (0, 4, 3, 5, 1, 6, 2, 7)  # R, C, g, t, tile, f, half, column
_TO_VALUES = (0, 4, 1, 6, 2, 3, 5, 7)  # R, C, tile, f, half, g, t, column


def _order_of_values(t: Tensor) -> Tensor:
    """Of [R, tile, half, g, C, t, f, column], as the layout "sm80" has them."""
    upper, lower = t.permute(_TO_VALUES).flatten(5).unbind(4)
    return torch.stack([upper.flip(-1), lower], 4)


def _order_and_slots(kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(for each value in packed order its index in canonical order; its place; offsets)."""
    index = torch.zeros(kept.shape, dtype=torch.int64, device=kept.device)
    index[kept] = torch.arange(int(kept.sum()), device=kept.device)
    ordered = _order_of_values(kept)
    slots, offsets = _slots_of_tiles(ordered.flatten(3).sum(-1).flatten(), PANEL_UNIT)
    return _order_of_values(index)[ordered], slots, offsets


def _pack_panels(c: Bitmask) -> tuple[Tensor, Tensor, Tensor]:
    N, K = c.shape
    R, C = -(-N // PANEL), -(-K // PANEL)
    padded = pad(c.bitmask, (0, 8 * C - c.bitmask.shape[1], 0, R * PANEL - N))
    kept = _bits(padded, 8).view(R, 4, 2, 8, C, 4, 8, 2)
    order, slots, offsets = _order_and_slots(kept)
    values = c.values.new_zeros(int(offsets[-1]) * PANEL_UNIT)
    values[slots] = c.values[order]
    bits = torch.arange(32, device=kept.device)
    words = (kept.permute(_TO_WORDS).reshape(R, C, 32, 4, 32).long() << bits).sum(-1)
    return values, words.to(torch.int32), offsets  # wraps at 2^31: the bits count


def _unpack_panels(packed: Packed) -> Bitmask:
    values, words, _ = packed.tensors
    N, K = packed.shape
    R, C = words.shape[:2]
    back = tuple(sorted(range(8), key=_TO_WORDS.__getitem__))
    kept = _bits(words, 32).view(R, C, 8, 4, 4, 8, 2, 2).permute(back).contiguous()
    order, slots, _ = _order_and_slots(kept)
    canonical = values.new_empty(len(slots))
    canonical[order] = values[slots]
    weights = 1 << torch.arange(8, device=kept.device)
    rows = (kept.view(R * PANEL, 8 * C, 8) * weights).sum(-1).to(torch.uint8)
    return Bitmask(
        values=canonical, bitmask=rows[:N, : -(-K // 8)].contiguous(), shape=packed.shape
    )
