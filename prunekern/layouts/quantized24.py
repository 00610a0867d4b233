"""Layouts of 2:4 with whole numbers and scales, "sparse24_int8" and "sparse24_int4".

(values, meta, scales): G = ceil(K / 4) groups of four inputs a row, S scales a row, R rows side by
side, T = ceil(N / R) row tiles, C = ceil(G / 8) chunks of 8 groups. Rows and groups beyond N and G
are padding: zeros at positions 0, 1.

    reference, scalar   canonical, see formats/quantized.py
    avx2 (R = 8), avx512, amx (R = 16)
        values   int8: int8 [T, 8C, 2, R]   first kept of R rows, then the second
                 int4: int32 [T, C, 2, R]   8 first kept of a row, then 8 second; bits 4i..4i+3:
                                            group 8c + i
        meta     int32 [T, C, R]            bits 4i..4i+3: group 8c + i, as in the canonical form
        scales   [T, S, R]
    sm80, sm80a8        panels, see quantized24_panels.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunekern.formats import (
    FORMATS,
    QuantizedSparse24,
    from_whole,
    nibbles_of,
    whole_numbers_of,
)
from prunekern.layouts import quantized24_panels
from prunekern.layouts.choice import device_of
from prunekern.layouts.packed import Packed

TILE_ROWS = {"avx2": 8, "avx512": 16, "amx": 16}
_EMPTY_NIBBLE = 0b0100
_KINDS = {cls.stem: cls for cls in FORMATS.values() if cls.bits}


def pack(c: QuantizedSparse24, layout: str) -> tuple[Tensor, ...]:
    """The tensors of one layout; the layout is checked by the caller."""
    if device_of(layout) == "cuda":
        return quantized24_panels.pack(c, layout)
    if layout not in TILE_ROWS:
        return c.values, c.meta, c.scales
    N, K = c.shape
    R, G = TILE_ROWS[layout], -(-K // 4)
    T, C = -(-N // R), -(-G // 8)
    rows, groups = T * R - N, 8 * C - G

    nibbles = pad(nibbles_of(c.meta, G), (0, groups, 0, rows), value=_EMPTY_NIBBLE)
    meta = _words(nibbles.view(T, R, C, 8)).transpose(1, 2).contiguous()
    numbers = pad(whole_numbers_of(c), (0, 2 * groups, 0, rows)).view(T, R, 8 * C, 2)
    values = numbers.permute(0, 2, 3, 1).contiguous()
    if c.bits == 4:
        values = _words((values & 0xF).view(T, C, 8, 2, R).permute(0, 1, 3, 4, 2))
    scales = pad(c.scales, (0, 0, 0, rows)).view(T, R, -1).transpose(1, 2).contiguous()
    return values, meta, scales


def unpack(packed: Packed) -> QuantizedSparse24:
    """What `pack` was given."""
    if device_of(packed.layout) == "cuda":
        return quantized24_panels.unpack(packed)
    values, meta, scales = packed.tensors
    cls = _KINDS[packed.stem]
    if packed.layout not in TILE_ROWS:
        return cls(values=values, meta=meta, scales=scales, shape=packed.shape)
    N, K = packed.shape
    G = -(-K // 4)
    T, C, R = meta.shape

    nibbles = _nibbles(meta).transpose(1, 2).reshape(T * R, 8 * C)[:N, :G]
    nibbles = pad(nibbles, (0, G % 2), value=_EMPTY_NIBBLE)
    canonical_meta = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).contiguous()
    if cls.bits == 4:
        numbers = _nibbles(values).permute(0, 1, 4, 2, 3).reshape(T, 8 * C, 2, R)
        values = (numbers << 4).view(torch.int8) >> 4  # the sign of bit 3
    numbers = values.permute(0, 3, 1, 2).reshape(T * R, 16 * C)[:N, : 2 * G]
    scales = scales.transpose(1, 2).reshape(T * R, -1)[:N].contiguous()
    return from_whole(cls, numbers.contiguous(), canonical_meta, scales, packed.shape)


def _shifts(device: torch.device) -> Tensor:
    return 4 * torch.arange(8, device=device)


def _words(nibbles: Tensor) -> Tensor:
    """[..., 8] of 4 bits to int32 [...], the first lowest."""
    words = (nibbles.long() << _shifts(nibbles.device)).sum(-1)
    return words.to(torch.int32)  # wraps at 2^31: the bits count


def _nibbles(words: Tensor) -> Tensor:
    """The inverse: uint8."""
    return ((words.long().unsqueeze(-1) >> _shifts(words.device)) & 0xF).to(torch.uint8)
