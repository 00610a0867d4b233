"""Layouts of 2:4.

(values, meta): G = ceil(K / 4) groups a row, R rows side by side, T = ceil(N / R) row tiles,
C = ceil(G / 8) chunks of 8 groups. Rows and groups beyond N and G are padding: +0, positions 0, 1.

    reference, scalar   canonical: values [N, 2G], meta uint8 [N, ceil(G/2)]
    avx2 (R = 8), avx512, avx512bf16, amx (R = 16)
        values bfloat16   [T, 8C, R, 2]     a row's kept pair is one 32-bit word
               others     [T, 8C, 2, R]     first kept of R rows, then the second
        meta int32        [T, C, R]         bits 4i..4i+3: group 8c + i
               avx2, avx512   first | second << 2, as in the canonical form
               others         pair | 8 * (i & 1), pair 0..5 = 01 02 03 12 13 23
    triton: rows padded to whole tiles of 64 columns, C = 2 ceil(K / 64)
        values            [N, 16C]          rows of whole sectors
        meta int32        [C, N]            bit j: column 32c + j of row n is stored, two of four
    cusparselt, cutlass: see rivals.py
    sm80, sm90a: panels of 64 rows x 64 columns, R = ceil(N / 64), C = ceil(K / 64), four row tiles
    of 16 and two steps of 32 each; lanes as csrc/cuda/sparse24_fragments.h draws them
        values            [R, C, 4 row tiles, 2 steps, 32 lanes, 8]
               lane 4 g + t   stored columns 2 t, 2 t + 1 of the step of rows g and g + 8 of the
                              tile, then 2 t + 8, 2 t + 9 of both
        meta int32        [R, C, 32 lanes, 4 row tiles]
               lane 4 g + 2 s + h   bits 4i..4i+3: group 4 h + i of step s of row g, and from bit 16
                              on of row g + 8
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunekern import rivals
from prunekern.formats import (
    Sparse24,
    compress_sparse24,
    decompress,
    groups_of_four,
    meta_of_nibbles,
    nibbles_of,
    take_kept,
)
from prunekern.layouts.choice import PANEL_LAYOUTS, RIVALS
from prunekern.layouts.packed import Packed

TILE_ROWS = {"avx2": 8, "avx512": 16, "avx512bf16": 16, "amx": 16}
PAIR_CODES = ("avx512bf16", "amx")

_EMPTY_NIBBLE = 0b0100
_NIBBLE_OF_PAIR = torch.tensor([0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110])
_PAIR_OF_NIBBLE = torch.zeros(16, dtype=torch.int64)
_PAIR_OF_NIBBLE[_NIBBLE_OF_PAIR] = torch.arange(6)
_NIBBLE_OF_STORED = torch.zeros(16, dtype=torch.int64)
_NIBBLE_OF_STORED[1 << (_NIBBLE_OF_PAIR & 3) | 1 << (_NIBBLE_OF_PAIR >> 2)] = _NIBBLE_OF_PAIR


def _shifts(device: torch.device) -> Tensor:
    return 4 * torch.arange(8, device=device)


def pack(c: Sparse24, layout: str) -> tuple[Tensor, Tensor]:
    """The tensors of one layout; the layout is checked by the caller."""
    if layout in ("reference", "scalar"):
        return c.values, c.meta
    if layout in PANEL_LAYOUTS:
        return _pack_panels(c)
    if layout == "triton":
        return _pack_triton(c)
    if layout in RIVALS["sparse24"]:
        return rivals.pack(decompress(c), layout)
    N, K = c.shape
    R = TILE_ROWS[layout]
    G = -(-K // 4)
    T, C = -(-N // R), -(-G // 8)
    rows, groups = T * R - N, 8 * C - G

    nibbles = pad(nibbles_of(c.meta, G), (0, groups, 0, rows), value=_EMPTY_NIBBLE).long()
    if layout in PAIR_CODES:
        odd_group = 8 * (torch.arange(8 * C, device=c.device) % 2)
        nibbles = _PAIR_OF_NIBBLE.to(c.device)[nibbles] | odd_group
    words = (nibbles.view(T, R, C, 8) << _shifts(c.device)).sum(-1)
    meta = words.to(torch.int32).transpose(1, 2).contiguous()  # wraps at 2^31: the bits count

    values = pad(c.values, (0, 2 * groups, 0, rows)).view(T, R, 8 * C, 2)
    order = (0, 2, 1, 3) if c.dtype == torch.bfloat16 else (0, 2, 3, 1)
    return values.permute(order).contiguous(), meta


def fake_pack(
    layout: str, values: Tensor, meta: Tensor, out_features: int, in_features: int
) -> tuple[Tensor, Tensor]:
    """The shapes and dtypes of what the op of this layout returns."""
    if layout in PANEL_LAYOUTS:
        panels = (-(-out_features // 64), -(-in_features // 64))
        words = meta.new_empty((*panels, 32, 4), dtype=torch.int32)
        return values.new_empty((*panels, 4, 2, 32, 8)), words
    if layout == "triton":
        C = 2 * -(-in_features // 64)
        words = meta.new_empty((C, out_features), dtype=torch.int32)
        return values.new_empty((out_features, 16 * C)), words
    R = TILE_ROWS[layout]
    T, C = -(-out_features // R), -(-in_features // 32)
    pair = (R, 2) if values.dtype == torch.bfloat16 else (2, R)
    return values.new_empty((T, 8 * C, *pair)), meta.new_empty((T, C, R), dtype=torch.int32)


def unpack(packed: Packed) -> Sparse24:
    """What `pack` was given."""
    values, meta = packed.tensors
    if packed.layout in ("reference", "scalar"):
        return Sparse24(values=values, meta=meta, shape=packed.shape)
    if packed.layout in PANEL_LAYOUTS:
        unpacker = getattr(torch.ops.prunekern, f"sparse24_unpack_{packed.layout}", None)
        if unpacker is None or values.device.type != "cuda":
            return _unpack_panels(packed)
        values, meta = unpacker(values, meta, *packed.shape)
        return Sparse24(values=values, meta=meta, shape=packed.shape)
    if packed.layout == "triton":
        return _unpack_triton(packed)
    if packed.layout in RIVALS["sparse24"]:
        return compress_sparse24(rivals.unpack(values, meta, packed.layout, packed.shape))
    N, K = packed.shape
    G = -(-K // 4)
    T, C, R = meta.shape

    nibbles = (meta.long().unsqueeze(-1) >> _shifts(meta.device)) & 0xF
    nibbles = nibbles.transpose(1, 2).reshape(T * R, 8 * C)[:N, :G]
    if packed.layout in PAIR_CODES:
        nibbles = _NIBBLE_OF_PAIR.to(meta.device)[nibbles & 7]

    order = (0, 2, 1, 3) if packed.dtype == torch.bfloat16 else (0, 3, 1, 2)
    rows = values.permute(order).reshape(T * R, 16 * C)[:N, : 2 * G]
    return Sparse24(values=rows.contiguous(), meta=meta_of_nibbles(nibbles), shape=packed.shape)


# Canonical rows in panels, as axes: row group R, row tile, half of it, its row g; column tile C,
# step, half of that, and the rest of a column. Permuted so they are in the order of the lanes.
_VALUES_TO_LANES = (0, 4, 1, 5, 3, 7, 6, 2, 8)  # R, C, row tile, step, g, t, column half, row half
_META_TO_LANES = (0, 4, 3, 5, 6, 1, 2, 7)  # R, C, g, step, column half h, row tile, row half


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _pack_panels(c: Sparse24) -> tuple[Tensor, Tensor]:
    N, K = c.shape
    G = -(-K // 4)
    R, C = -(-N // 64), -(-K // 64)
    rows, groups = 64 * R - N, 16 * C - G

    values = pad(c.values, (0, 2 * groups, 0, rows)).view(R, 4, 2, 8, C, 2, 2, 4, 2)
    values = values.permute(_VALUES_TO_LANES).reshape(R, C, 4, 2, 32, 8)

    nibbles = pad(nibbles_of(c.meta, G), (0, groups, 0, rows), value=_EMPTY_NIBBLE).long()
    nibbles = nibbles.view(R, 4, 2, 8, C, 2, 2, 4).permute(_META_TO_LANES)
    words = (nibbles.reshape(R, C, 32, 4, 8) << _shifts(c.device)).sum(-1)
    return values.contiguous(), words.to(torch.int32)  # wraps at 2^31: the bits count


def _unpack_panels(packed: Packed) -> Sparse24:
    values, meta = packed.tensors
    N, K = packed.shape
    G = -(-K // 4)
    R, C = meta.shape[:2]

    values = values.view(R, C, 4, 2, 8, 4, 2, 2, 2).permute(_inverse(_VALUES_TO_LANES))
    nibbles = (meta.long().unsqueeze(-1) >> _shifts(meta.device)) & 0xF
    nibbles = nibbles.view(R, C, 8, 2, 2, 4, 2, 4).permute(_inverse(_META_TO_LANES))
    return Sparse24(
        values=values.reshape(64 * R, 32 * C)[:N, : 2 * G].contiguous(),
        meta=meta_of_nibbles(nibbles.reshape(64 * R, 16 * C)[:N, :G]),
        shape=packed.shape,
    )


def _pack_triton(c: Sparse24) -> tuple[Tensor, Tensor]:
    N, K = c.shape
    G = -(-K // 4)
    C = 2 * -(-K // 64)
    nibbles = pad(nibbles_of(c.meta, G), (0, 8 * C - G), value=_EMPTY_NIBBLE).long()
    stored = 1 << (nibbles & 3) | 1 << (nibbles >> 2)
    words = (stored.view(N, C, 8) << _shifts(c.device)).sum(-1)
    meta = words.to(torch.int32).t()  # wraps at 2^31: the bits count
    # clone, as contiguous() leaves a column as it is, with strides that no view of bytes takes
    meta = meta.clone(memory_format=torch.contiguous_format)
    return pad(c.values, (0, 16 * C - 2 * G)), meta


def _unpack_triton(packed: Packed) -> Sparse24:
    values, meta = packed.tensors
    N, K = packed.shape
    G = -(-K // 4)
    stored = (meta.t().long().unsqueeze(-1) >> _shifts(meta.device)) & 0xF
    nibbles = _NIBBLE_OF_STORED.to(meta.device)[stored]
    return Sparse24(
        values=values[:, : 2 * G].contiguous(),
        meta=meta_of_nibbles(nibbles.reshape(N, -1)[:, :G]),
        shape=packed.shape,
    )


def kept_mask(c: Sparse24) -> Tensor:
    """Bool [N, K]: the positions that metadata name, whatever their values are."""
    N, K = c.shape
    nibbles = nibbles_of(c.meta, -(-K // 4)).unsqueeze(-1)
    position = torch.arange(4, device=c.device)
    return (((nibbles & 3) == position) | ((nibbles >> 2) == position)).view(N, -1)[:, :K]


def is_transposable(c: Sparse24) -> bool:
    """Whether W^T is 2:4, too: at most two positions of every four outputs of an input."""
    return bool((groups_of_four(kept_mask(c).t()).sum(-1) <= 2).all())


def transpose(c: Sparse24) -> Sparse24:
    """W^T, canonical, to the bit: for gradients, grad W = grad (W^T)^T.

    Free slots of its pairs are +0 at the lowest position that is left.

    Raises:
        ValueError: W^T is not 2:4.
    """
    N, K = c.shape
    meta = compress_sparse24(kept_mask(c).t().to(c.dtype)).meta
    transposed = Sparse24(values=c.values.new_empty(0), meta=meta, shape=(K, N))
    return transposed.with_values(take_kept(decompress(c).t(), transposed))
