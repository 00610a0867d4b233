"""The formats "2:4-int8" and "2:4-int4": 2:4 whose kept weights are whole numbers times a scale.

    values   int8  int8 [N, 2G], -127..127
             int4  uint8 [N, G]: the kept pair of a group, first in the low nibble; two's
                   complement, -8..7
    meta     uint8 [N, ceil(G/2)], as "2:4" has it
    scales   [N, S], in the dtype of x and y: W = whole number * scale. A scale is for `group_size`
             neighbouring inputs, S = ceil(K / group_size)

The group size is a power of two from 32 on, so that K and S tell it; S = 1 is one scale a row.
Bytes a weight, 16-bit scales: int8 0.625, int4 0.375, and 2 / group_size of either.

Rounding keeps exactly what whole multiples of a power of two can say. Else a scale is looked for
with the least squared error among those that cut the largest weights off, then fitted to the
rounded weights by least squares; a scale is always rounded to its own dtype first. A scale may be
negative, as -8 has no positive partner.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunekern.formats.canonical import CanonicalBase, Specs, Who, check_weight
from prunekern.formats.sparse24 import check_positions, compress_sparse24, scatter_kept

MIN_GROUP = 32
PER_ROW = -1
_RANGES = {8: (-127, 127), 4: (-8, 7)}  # |int8| fits in int8: kernels take it
_SHRINKS = tuple(1 - i / 20 for i in range(9))  # of the scale that cuts nothing off
_FITS = 2
_CHUNK_ELEMS = 2**20  # of kept weights rounded at a time


@dataclass(frozen=True)
class QuantizedSparse24(CanonicalBase):
    """2:4 of whole numbers and scales.

    Attributes:
        values: The kept pair of each group in order of its positions, as whole numbers.
        meta: uint8 [N, ceil(G/2)], two groups a byte, the even one in the low nibble.
        scales: [N, S], finite.
        shape: (N, K) of the dense weight.
    """

    meta: Tensor
    scales: Tensor
    pattern: ClassVar[str] = "2:4"
    default_group_size: ClassVar[int]

    @property
    def dtype(self) -> torch.dtype:
        """Of the scales, and so of x."""
        return self.scales.dtype

    @property
    def group_size(self) -> int:
        """Inputs of a row that share a scale; from K on, one scale is for the whole row."""
        return group_size_of(self.shape[1], self.scales.shape[1])

    def with_values(self, values: Tensor) -> QuantizedSparse24:
        """Raises ValueError: whole numbers are found by rounding, not set."""
        raise ValueError(
            f"{self.kernel}: values must stay as they were rounded, got others; decompress the "
            "weight, change it and compress it again"
        )

    def to(self, device=None, dtype: torch.dtype | None = None) -> QuantizedSparse24:
        """On another device, or with scales in another dtype."""
        moved = self.map(lambda t: t.to(device)) if device is not None else self
        return moved if dtype is None else replace(moved, scales=moved.scales.to(dtype))


@dataclass(frozen=True)
class Sparse24Int8(QuantizedSparse24):
    """values int8 [N, 2G]."""

    kernel: ClassVar[str] = "2:4-int8"
    stem: ClassVar[str] = "sparse24_int8"
    bits: ClassVar[int] = 8
    default_group_size: ClassVar[int] = PER_ROW

    @classmethod
    def specs(cls, shape: tuple[int, int], dtype: torch.dtype, group_size: int, **_) -> Specs:
        """See `tensor_specs`."""
        return _specs(shape, dtype, group_size, torch.int8, 2)


@dataclass(frozen=True)
class Sparse24Int4(QuantizedSparse24):
    """values uint8 [N, G], two of four bits."""

    kernel: ClassVar[str] = "2:4-int4"
    stem: ClassVar[str] = "sparse24_int4"
    bits: ClassVar[int] = 4
    default_group_size: ClassVar[int] = 64

    @classmethod
    def specs(cls, shape: tuple[int, int], dtype: torch.dtype, group_size: int, **_) -> Specs:
        """See `tensor_specs`."""
        return _specs(shape, dtype, group_size, torch.uint8, 1)


def _specs(
    shape: tuple[int, int],
    dtype: torch.dtype,
    group_size: int,
    number: torch.dtype,
    numbers_a_group: int,
) -> Specs:
    N, K = shape
    G = -(-K // 4)
    S = 1 if group_size == PER_ROW else -(-K // group_size)
    return {
        "values": (number, [N, numbers_a_group * G]),
        "meta": (torch.uint8, [N, -(-G // 2)]),
        "scales": (dtype, [N, S]),
    }


def group_size_of(K: int, scales: int) -> int:
    """The group size of a row of K inputs with so many scales.

    Raises:
        ValueError: There is none: not a power of two from 32 on.
    """
    group = MIN_GROUP
    while group < K and -(-K // group) > scales:
        group *= 2
    if -(-K // group) != scales:
        raise ValueError(
            f"scales must be ceil({K} / group size) a row, the group size a power of two from "
            f"{MIN_GROUP} on, got {scales}"
        )
    return group


def compress_quantized(
    weight: Tensor, cls: type[QuantizedSparse24], group_size: int | None = None
) -> QuantizedSparse24:
    """A dense weight that is 2:4, rounded.

    Raises:
        ValueError: As `compress_sparse24`, and for a weight that is not finite.
    """
    check_weight(weight, f"compress {cls.kernel}")
    weight = weight.detach()
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise ValueError(f"compress {cls.kernel}: weight must be finite, got {bad} NaN or infinite")
    group_size = cls.default_group_size if group_size is None else group_size
    c = compress_sparse24(weight)
    values, scales = [], []
    for rows in c.values.split(max(1, _CHUNK_ELEMS // c.values.shape[1])):
        numbers, scale = round_groups(rows, cls.bits, group_size)
        values.append(numbers)
        scales.append(scale)
    return from_whole(cls, torch.cat(values), c.meta, torch.cat(scales), c.shape)


def from_whole(
    cls: type[QuantizedSparse24],
    numbers: Tensor,
    meta: Tensor,
    scales: Tensor,
    shape: tuple[int, int],
) -> QuantizedSparse24:
    """From whole numbers int8 [N, 2G], in the format's own storage."""
    if cls.bits == 4:
        low, high = (numbers & 0xF).view(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
        numbers = low | high << 4
    return cls(values=numbers.contiguous(), meta=meta, scales=scales, shape=shape)


def whole_numbers_of(c: QuantizedSparse24) -> Tensor:
    """int8 [N, 2G]: what W is divided by its scales."""
    if c.bits == 8:
        return c.values
    pairs = torch.stack([c.values << 4, c.values], -1).view(torch.int8)  # a sign in bit 7
    return (pairs >> 4).flatten(1)


def dequantize(c: QuantizedSparse24) -> Tensor:
    """The dense weight [N, K] in float32: whole number * scale, rounded once."""
    K = c.shape[1]
    numbers = whole_numbers_of(c)
    scales = c.scales.float().repeat_interleave(c.group_size // 2, 1)[:, : numbers.shape[1]]
    # Adding +0.0 turns the -0.0 of a negative scale into it.
    return scatter_kept(numbers.float() * scales + 0.0, c.meta, K)


def decompress_quantized(c: QuantizedSparse24) -> Tensor:
    """The dense weight [N, K] in the dtype of the scales."""
    return dequantize(c).to(c.dtype)


def round_groups(kept: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Whole numbers int8 [N, 2G] and scales [N, S] of kept weights [N, 2G], in their dtype."""
    N, count = kept.shape
    size = count if group_size == PER_ROW else min(group_size // 2, count)
    groups = pad(kept, (0, -count % size)).view(N, -1, size)
    scales = find_scales(groups, bits)
    numbers = round_to(groups.float(), scales.float(), bits)
    return numbers.view(N, -1)[:, :count].to(torch.int8), scales


def round_to(weights: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The nearest whole numbers of `bits` bits for weights [..., n] and scales [...], float32."""
    scales = scales.unsqueeze(-1)
    return (weights / scales.where(scales != 0, torch.inf)).round_().clamp_(*_RANGES[bits])


def find_scales(weights: Tensor, bits: int) -> Tensor:
    """Scales [...] of groups [..., n], in the dtype of the weights; see the head of this file."""
    dtype = weights.dtype
    weights = weights.float()
    low, high = _RANGES[bits]
    extreme = weights.gather(-1, weights.abs().argmax(-1, keepdim=True)).squeeze(-1)
    unit = torch.where(extreme == 0, 1.0, extreme.abs())  # so that squares do not overflow

    def error_of(scales: Tensor) -> Tensor:
        rounded = round_to(weights, scales, bits) * scales.unsqueeze(-1)
        return ((weights - rounded) / unit.unsqueeze(-1)).square_().sum(-1)

    def stored(scales: Tensor) -> Tensor:
        return scales.to(dtype).float()

    mantissa, exponent = torch.frexp(extreme.abs() / high)
    exponent -= (mantissa == 0.5).int()
    power_of_two = ((exponent + 127).clamp(1, 254) << 23).view(torch.float32)
    best = stored(power_of_two.where(extreme != 0, 0.0))
    least = error_of(best)

    def offer(scales: Tensor) -> None:
        nonlocal best, least
        scales = stored(scales)
        error = error_of(scales)
        better = error < least
        best, least = torch.where(better, scales, best), torch.where(better, error, least)

    for limit in (high,) if low == -high else (high, low):  # where the largest weight goes
        for shrink in _SHRINKS:
            offer(shrink * extreme / limit)
    for _ in range(_FITS):
        numbers = round_to(weights, best, bits)
        squares = numbers.square().sum(-1)
        offer(torch.where(squares == 0, 0.0, (numbers * weights).sum(-1) / squares))
    return best.to(dtype)


def validate_quantized(c: QuantizedSparse24, who: Who) -> None:
    """As 2:4; scales are finite, and whole numbers of 8 bits have a negative."""
    if c.bits == 8:
        least = int((c.values == -128).sum())
        who.check(least == 0, "values", "lie in -127..127", f"-128 in {least} places")
    check_positions(c.meta, whole_numbers_of(c), c.shape[1], who)
    bad = int((~torch.isfinite(c.scales)).sum())
    who.check(bad == 0, "scales", "be finite", f"{bad} NaN or infinite")
