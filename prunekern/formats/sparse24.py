"""The format "2:4": at most two of every four inputs of a row kept, stored as two.

values [N, 2G]   meta uint8 [N, ceil(G/2)]: 4 bits a group, first | second << 2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunekern.formats.canonical import CanonicalBase, Specs, Who, check_weight, int_view

EMPTY_NIBBLE = 0b0100  # positions 0 and 1: what an unused group holds
_MORE_THAN_TWO = 255


@dataclass(frozen=True)
class Sparse24(CanonicalBase):
    """At most two of every four inputs of a row kept, stored as two.

    Attributes:
        values: [N, 2G], the kept pair of each group in order of its positions.
        meta: uint8 [N, ceil(G/2)], two groups a byte, the even one in the low nibble.
        shape: (N, K) of the dense weight.
    """

    meta: Tensor
    kernel: ClassVar[str] = "2:4"
    stem: ClassVar[str] = "sparse24"
    pattern: ClassVar[str] = "2:4"

    @classmethod
    def specs(cls, shape: tuple[int, int], dtype: torch.dtype, **_) -> Specs:
        """See `tensor_specs`."""
        N, K = shape
        G = -(-K // 4)
        return {"values": (dtype, [N, 2 * G]), "meta": (torch.uint8, [N, -(-G // 2)])}


def _nibble_table() -> Tensor:
    """For each (non-zero bits | negative-zero bits << 4) of a group, the nibble of its kept pair.

    Free slots go to negative zeros first, which would be lost otherwise, then to the lowest index.
    """
    table = []
    for key in range(256):
        nonzero = [i for i in range(4) if key >> i & 1]
        negative = [i for i in range(4) if key >> (4 + i) & 1 and i not in nonzero]
        rest = [i for i in range(4) if i not in nonzero and i not in negative]
        first, second = sorted((nonzero + negative + rest)[:2])
        table.append(first | second << 2 if len(nonzero) <= 2 else _MORE_THAN_TWO)
    return torch.tensor(table, dtype=torch.uint8)


_NIBBLES = _nibble_table()
_VALID_NIBBLE = torch.tensor([i & 3 < i >> 2 for i in range(16)])


def groups_of_four(weight: Tensor) -> Tensor:
    """[N, K] as [N, G, 4], padded with +0.0."""
    K = weight.shape[1]
    padded = torch.nn.functional.pad(weight, (0, -K % 4)) if K % 4 else weight.contiguous()
    return padded.view(weight.shape[0], -1, 4)


def compress_sparse24(weight: Tensor) -> Sparse24:
    """Values and metadata of a weight whose every group of four inputs has at most two non-zeros.

    Raises:
        ValueError: Wrong dtype or shape, or groups with more than two non-zeros: how many there
            are and where the first one is.
    """
    check_weight(weight, "compress_sparse24")
    N, K = weight.shape
    groups = groups_of_four(weight.detach())
    bits = int_view(groups)
    shifts = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=weight.device)
    # By the bits: a comparison of floats takes denormals for zero where torch flushes them.
    nonzero = (bits & torch.iinfo(bits.dtype).max) != 0
    negative = (bits != 0) & ~nonzero
    key = ((nonzero * shifts).sum(-1) + (negative * (shifts << 4)).sum(-1)).long()
    nibbles = _NIBBLES.to(weight.device)[key]
    broken = nibbles == _MORE_THAN_TWO
    if broken.any():
        n, g = (int(i) for i in broken.nonzero()[0])
        raise ValueError(
            f"compress_sparse24: every group of 4 inputs must have at most 2 non-zeros, got "
            f"{int(broken.sum())} of {broken.numel()} groups with more, the first in row {n}, "
            f"columns {4 * g} to {min(4 * g + 4, K) - 1}; prune to 2:4 first"
        )
    positions = torch.stack([nibbles & 3, nibbles >> 2], -1)
    values = bits.gather(2, positions.long()).view(weight.dtype).reshape(N, -1)
    return Sparse24(values=values, meta=meta_of_nibbles(nibbles), shape=(N, K))


def nibbles_of(meta: Tensor, groups: int) -> Tensor:
    """uint8 [N, groups]: first | second << 2 of each group."""
    both = torch.stack([meta & 0xF, meta >> 4], -1)
    return both.flatten(1)[:, :groups]


def meta_of_nibbles(nibbles: Tensor) -> Tensor:
    """[N, G] of any integers to metadata, the inverse of `nibbles_of`."""
    odd = nibbles.shape[1] % 2
    nibbles = torch.nn.functional.pad(nibbles, (0, odd), value=EMPTY_NIBBLE).to(torch.uint8)
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).contiguous()


def positions_of(meta: Tensor, K: int) -> Tensor:
    """int64 [N, G, 2]: the two positions of each group."""
    nibbles = nibbles_of(meta, -(-K // 4))
    return torch.stack([nibbles & 3, nibbles >> 2], -1).long()


def scatter_kept(values: Tensor, meta: Tensor, K: int) -> Tensor:
    """[N, K] with values [N, 2G] of any dtype at the positions of `meta`, zeros elsewhere."""
    N, G = len(meta), -(-K // 4)
    groups = torch.zeros(N, G, 4, dtype=values.dtype, device=values.device)
    groups.scatter_(2, positions_of(meta, K), values.view(N, G, 2))
    return groups.view(N, 4 * G)[:, :K].contiguous()


def decompress_sparse24(c: Sparse24) -> Tensor:
    """The dense weight [N, K], to the bit."""
    return scatter_kept(int_view(c.values), c.meta, c.shape[1]).view(c.dtype)


def validate_sparse24(c: Sparse24, who: Who) -> None:
    """Positions ascend, padding is canonical, nothing lies beyond K."""
    check_positions(c.meta, int_view(c.values), c.shape[1], who)


def check_positions(meta: Tensor, values: Tensor, K: int, who: Who) -> None:
    """What `validate` asks of metadata, given values as integers [N, 2G]."""
    G = -(-K // 4)
    nibbles = nibbles_of(meta, 2 * meta.shape[1])
    bad = ~_VALID_NIBBLE.to(meta.device)[nibbles.long()]
    if bad.any():
        n, g = (int(i) for i in bad.nonzero()[0])
        who.fail(
            "meta",
            "hold two positions in ascending order a group",
            f"{int(bad.sum())} bad groups, the first in row {n}, group {g}: "
            f"{int(nibbles[n, g]):#06b}",
        )
    if G % 2:
        unused = nibbles[:, G] != EMPTY_NIBBLE
        who.check(
            not unused.any(),
            "meta",
            f"hold {EMPTY_NIBBLE:#06b} in the unused nibble at the end of a row",
            f"something else in {int(unused.sum())} rows",
        )
    if K % 4:
        last = nibbles[:, G - 1]
        positions = torch.stack([last & 3, last >> 2], -1)
        outside = (positions >= K % 4) & (values[:, -2:] != 0)
        who.check(
            not outside.any(),
            "values",
            f"be zero beyond the last input {K - 1}",
            f"others in {int(outside.any(-1).sum())} rows",
        )
