"""The layouts "sm80" and "sm80a8" of 2:4 with whole numbers.

sm80, as csrc/cuda/sparse24_fragments.h draws it:

Panels of 64 rows x 64 columns as those of 16-bit values (sparse24.py), R = ceil(N / 64),
C = ceil(K / 64). Lane 4 g + t has, of each step of 32 columns and each row tile of 16 rows, the
stored columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of rows g and g + 8. Rows and groups beyond N and G
are padding: the number 0, positions 0, 1, scale 0.

    values uint8   int8   [R, C, 2 steps, 2 pairs of row tiles, 32 lanes, 16]   number + 128
                          bytes: row tile, column half, 2 t or 2 t + 1, row g or g + 8
                   int4   [R, C, 2 steps, 32 lanes, 16]                         number + 8
                          nibbles, low first: row tile, 2 t or 2 t + 1, column half, row g or g + 8
    meta int32     [R, C, 32 lanes, 4 row tiles]   as of 16-bit values
    scales         [R, S, 8 g, 4 row tiles, 2]     of rows g and g + 8 of each tile; S as in the
                   canonical form, but 2 C where a scale is for 32 inputs

sm80a8, of int8 with one scale a row; its kernel rounds x to 8 bits too. Panels of 64 rows x 128
columns, C = ceil(K / 128), two steps of 64:

    values int8    [R, C, 4 row tiles, 2 steps, 32 lanes, 16]
                   lane 4 g + t   stored columns 4 t .. 4 t + 3 of the step of rows g and g + 8 of
                                  the tile, then 4 t + 16 .. 4 t + 19 of both
    meta int32     [R, C, 2 steps, 32 lanes, 4 row tiles]
                   lane 4 g + 2 h + u   bits 4i..4i+3: group 8 h + i of the step of row g + 8 u
    scales         [N]
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunekern.formats import FORMATS, QuantizedSparse24, meta_of_nibbles
from prunekern.formats.quantized import MIN_GROUP, from_whole, whole_numbers_of
from prunekern.layouts.packed import Packed
from prunekern.layouts.sparse24 import (
    inverse,
    pack_panel_meta,
    pack_panel_values,
    padded_nibbles,
    unpack_panel_meta,
    unpack_panel_values,
)

_KINDS = {cls.stem: cls for cls in FORMATS.values()}
# Canonical numbers [64 R, 32 C] as axes: row group R, pair of row tiles, tile of it, half of that,
# its row g; column tile C, step, half of that, t, first or second.
_AXES = (2, 2, 2, 8), (2, 2, 4, 2)
_TO_LANES = {
    8: (
        0,
        5,
        6,
        1,
        4,
        8,
        2,
        7,
        9,
        3,
    ),  # R, C, step, pair, g, t, tile, column half, second, row half
    4: (
        0,
        5,
        6,
        4,
        8,
        1,
        2,
        9,
        7,
        3,
    ),  # R, C, step, g, t, pair, tile, second, column half, row half
}


def _sizes(shape: tuple[int, int]) -> tuple[int, int, int]:
    """(row groups R, column tiles C, whole numbers of a canonical row)."""
    N, K = shape
    return -(-N // 64), -(-K // 64), 2 * -(-K // 4)


def pack(c: QuantizedSparse24, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """(values, meta, scales), see above.

    Raises:
        ValueError: sm80a8 of a weight with more than one scale a row.
    """
    return _pack_a8(c) if layout == "sm80a8" else _pack_sm80(c)


def unpack(packed: Packed) -> QuantizedSparse24:
    """What `pack` was given."""
    return _unpack_a8(packed) if packed.layout == "sm80a8" else _unpack_sm80(packed)


def _pack_sm80(c: QuantizedSparse24) -> tuple[Tensor, Tensor, Tensor]:
    (R, C, numbers), rows = _sizes(c.shape), -c.shape[0] % 64
    codes = whole_numbers_of(c).short() + (1 << (c.bits - 1))
    codes = pad(codes, (0, 32 * C - numbers, 0, rows), value=1 << (c.bits - 1)).byte()
    codes = codes.view(R, *_AXES[0], C, *_AXES[1]).permute(_TO_LANES[c.bits])
    if c.bits == 8:
        values = codes.reshape(R, C, 2, 2, 32, 16)
    else:
        low, high = codes.reshape(R, C, 2, 32, 16, 2).unbind(-1)
        values = low | high << 4

    S = 2 * C if _is_for_a_step(c) else c.scales.shape[1]
    scales = pad(c.scales, (0, S - c.scales.shape[1], 0, rows))
    scales = scales.view(R, 4, 2, 8, S).permute(0, 4, 3, 1, 2)
    return values.contiguous(), pack_panel_meta(c.meta, c.shape), scales.contiguous()


def _is_for_a_step(c: QuantizedSparse24) -> bool:
    return c.scales.shape[1] > 1 and c.group_size == MIN_GROUP


def _unpack_sm80(packed: Packed) -> QuantizedSparse24:
    values, meta, scales = packed.tensors
    cls, (N, K) = _KINDS[packed.stem], packed.shape
    R, C, numbers = _sizes(packed.shape)
    codes = values
    if cls.bits == 4:
        codes = values.unsqueeze(-1).repeat_interleave(2, -1)
        codes[..., 0] &= 0xF
        codes[..., 1] >>= 4
    order = _TO_LANES[cls.bits]
    sizes = (R, *_AXES[0], C, *_AXES[1])
    codes = codes.reshape([sizes[axis] for axis in order]).permute(inverse(order))
    whole = codes.reshape(64 * R, 32 * C)[:N, :numbers].short() - (1 << (cls.bits - 1))

    S = scales.shape[1]
    rows = scales.permute(0, 3, 4, 2, 1).reshape(64 * R, S)
    if S == 2 * C:
        rows = rows[:, : -(-K // MIN_GROUP)]
    meta = unpack_panel_meta(meta, packed.shape)
    return from_whole(cls, whole.char(), meta, rows[:N].contiguous(), packed.shape)


# Canonical nibbles of sm80a8 as axes: R, row tile, row half u, g; C, step, half h, group of it.
_A8_META_AXES = (4, 2, 8), (2, 2, 8)
_A8_META_TO_LANES = (0, 4, 5, 3, 6, 2, 1, 7)  # R, C, step, g, h, u, row tile, group
_A8_COLUMNS = 128


def _pack_a8(c: QuantizedSparse24) -> tuple[Tensor, Tensor, Tensor]:
    if c.scales.shape[1] != 1:
        raise ValueError(
            f"pack: sm80a8 must have one scale a row, got {c.scales.shape[1]}; compress the weight "
            "with group_size=-1 or take the layout sm80"
        )
    N, K = c.shape
    R, C = -(-N // 64), -(-K // _A8_COLUMNS)
    values = pack_panel_values(c.values.view(torch.int16), (N, 64 * C))  # a pair is one column
    nibbles = padded_nibbles(c.meta, c.shape, 64 * R, 32 * C)
    nibbles = nibbles.view(R, *_A8_META_AXES[0], C, *_A8_META_AXES[1]).permute(_A8_META_TO_LANES)
    words = (nibbles << 4 * torch.arange(8, device=c.device)).sum(-1)
    meta = words.reshape(R, C, 2, 32, 4).to(torch.int32)  # wraps at 2^31: the bits count
    return values.view(torch.int8), meta, c.scales.flatten()


def _unpack_a8(packed: Packed) -> QuantizedSparse24:
    values, meta, scales = packed.tensors
    (N, K), (R, C) = packed.shape, meta.shape[:2]
    G = -(-K // 4)
    pairs = unpack_panel_values(values.view(torch.int16), N, G)
    nibbles = (meta.long().unsqueeze(-1) >> 4 * torch.arange(8, device=meta.device)) & 0xF
    sizes = (R, *_A8_META_AXES[0], C, *_A8_META_AXES[1])
    nibbles = nibbles.reshape([sizes[axis] for axis in _A8_META_TO_LANES])
    nibbles = nibbles.permute(inverse(_A8_META_TO_LANES)).reshape(64 * R, 32 * C)
    return _KINDS[packed.stem](
        values=pairs.view(torch.int8),
        meta=meta_of_nibbles(nibbles[:N, :G]),
        scales=scales.view(N, 1),
        shape=packed.shape,
    )
