"""The formats without a pattern: "csr" and "bitmask". What is kept is whatever is not +0.0.

csr       crow_indices int32 [N+1]   col_indices uint16 [nnz]   values [nnz]
bitmask   bitmask uint8 [N, ceil(K/8)], low bit first           values [nnz], row by row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunekern.formats.canonical import CanonicalBase, Specs, Who, check_weight, int_view

# Columns fit in 16 bits up to this many, row pointers in 32 bits below that many values.
_UINT16_COLUMNS = 65536
_INT32_VALUES = 2**31


@dataclass(frozen=True)
class CSR(CanonicalBase):
    """Compressed sparse rows, under torch's names.

    Attributes:
        values: [nnz], row by row.
        col_indices: [nnz], ascending in each row; uint16 up to 65,536 columns, else int32.
        crow_indices: [N+1], where each row starts; int32, or int64 from 2^31 values.
        shape: (N, K) of the dense weight.
    """

    col_indices: Tensor
    crow_indices: Tensor
    kernel: ClassVar[str] = "csr"
    stem: ClassVar[str] = "csr"

    @classmethod
    def specs(cls, shape: tuple[int, int], dtype: torch.dtype, nnz: int, **_) -> Specs:
        """See `tensor_specs`."""
        N, K = shape
        return {
            "values": (dtype, [nnz]),
            "col_indices": (column_type(K), [nnz]),
            "crow_indices": (row_pointer_type(nnz), [N + 1]),
        }


@dataclass(frozen=True)
class Bitmask(CanonicalBase):
    """One bit a weight, and the kept weights.

    Attributes:
        values: [nnz], row by row.
        bitmask: uint8 [N, ceil(K/8)], bit k % 8 of byte k // 8; bits beyond K are zero.
        shape: (N, K) of the dense weight.
    """

    bitmask: Tensor
    kernel: ClassVar[str] = "bitmask"
    stem: ClassVar[str] = "bitmask"

    @classmethod
    def specs(cls, shape: tuple[int, int], dtype: torch.dtype, nnz: int, **_) -> Specs:
        """See `tensor_specs`."""
        N, K = shape
        return {"values": (dtype, [nnz]), "bitmask": (torch.uint8, [N, -(-K // 8)])}


def _kept(weight: Tensor) -> Tensor:
    """Where the bits are not those of +0.0: negative zeros are kept, nothing is lost."""
    return int_view(weight) != 0


def column_type(K: int) -> torch.dtype:
    """Of the column indices of CSR."""
    return torch.uint16 if K <= _UINT16_COLUMNS else torch.int32


def row_pointer_type(nnz: int) -> torch.dtype:
    """Of the row pointers of CSR."""
    return torch.int32 if nnz < _INT32_VALUES else torch.int64


def compress_csr(weight: Tensor) -> CSR:
    """Every element whose bits are not +0.0, in rows, with the smallest index types that fit.

    Raises:
        ValueError: Wrong dtype or shape.
    """
    check_weight(weight, "compress_csr")
    N, K = weight.shape
    weight = weight.detach().contiguous()
    kept = _kept(weight)
    crow = torch.zeros(N + 1, dtype=torch.int64, device=weight.device)
    torch.cumsum(kept.sum(1), 0, out=crow[1:])
    values = weight[kept]
    columns = kept.nonzero()[:, 1]
    return CSR(
        values=values,
        col_indices=columns.to(column_type(K)),
        crow_indices=crow.to(row_pointer_type(values.numel())),
        shape=(N, K),
    )


def validate_csr(c: CSR, who: Who) -> None:
    """Row pointers ascend from 0 to nnz, columns within each row and below K."""
    K = c.shape[1]
    nnz = c.values.numel()
    crow = c.crow_indices.to(torch.int64)
    who.check(int(crow[0]) == 0, "crow_indices", "start with 0", int(crow[0]))
    who.check(int(crow[-1]) == nnz, "crow_indices", f"end with nnz = {nnz}", int(crow[-1]))
    lengths = crow.diff()
    if (lengths < 0).any():
        n = int((lengths < 0).nonzero()[0])
        who.fail("crow_indices", "never descend", f"{int(crow[n])}, {int(crow[n + 1])} at row {n}")
    columns = c.col_indices.to(torch.int64)
    outside = (columns < 0) | (columns >= K)
    if outside.any():
        j = int(outside.nonzero()[0])
        who.fail("col_indices", f"lie in 0..{K - 1}", f"{int(columns[j])} at {j}")
    if nnz > 1:
        first_of_row = torch.zeros(nnz + 1, dtype=torch.bool, device=c.device)
        first_of_row[crow[:-1]] = True
        unsorted = (columns.diff() <= 0) & ~first_of_row[1:nnz]
        if unsorted.any():
            j = int(unsorted.nonzero()[0])
            who.fail(
                "col_indices",
                "ascend within a row",
                f"{int(columns[j])}, {int(columns[j + 1])} at {j}",
            )


def compress_bitmask(weight: Tensor) -> Bitmask:
    """Every element whose bits are not +0.0, and a bit for each element that says so.

    Raises:
        ValueError: Wrong dtype or shape.
    """
    check_weight(weight, "compress_bitmask")
    weight = weight.detach().contiguous()
    kept = _kept(weight)
    return Bitmask(values=weight[kept], bitmask=pack_bits(kept), shape=tuple(weight.shape))


def _bit_values(device: torch.device) -> Tensor:
    return torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=device)


def pack_bits(mask: Tensor) -> Tensor:
    """Bool [N, K] to uint8 [N, ceil(K/8)], low bit first."""
    N, K = mask.shape
    padded = torch.nn.functional.pad(mask, (0, -K % 8)) if K % 8 else mask
    eights = padded.view(N, -1, 8) * _bit_values(mask.device)
    return eights.sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, K: int) -> Tensor:
    """uint8 [N, ceil(K/8)] to bool [N, K]."""
    return ((bits.unsqueeze(-1) & _bit_values(bits.device)) != 0).flatten(1)[:, :K]


def validate_bitmask(c: Bitmask, who: Who) -> None:
    """As many bits as values, none beyond K."""
    K = c.shape[1]
    nnz = c.values.numel()
    if K % 8:
        tail = c.bitmask[:, -1] >> K % 8
        who.check(
            not tail.any(),
            "bitmask",
            f"be zero beyond column {K - 1}",
            f"bits set in {int((tail != 0).sum())} rows",
        )
    kept = int(unpack_bits(c.bitmask, K).sum())
    who.check(kept == nnz, "bitmask", f"have as many bits set as there are values, {nnz}", kept)


def rows_of(c: CSR) -> Tensor:
    """int64 [nnz]: the row of each value."""
    return torch.arange(c.shape[0], device=c.device).repeat_interleave(c.crow_indices.diff())


def decompress_csr(c: CSR) -> Tensor:
    """The dense weight [N, K], to the bit."""
    dense = torch.zeros(c.shape, dtype=c.dtype, device=c.device)
    dense[rows_of(c), c.col_indices.to(torch.int64)] = c.values
    return dense


def decompress_bitmask(c: Bitmask) -> Tensor:
    """The dense weight [N, K], to the bit."""
    dense = torch.zeros(c.shape, dtype=c.dtype, device=c.device)
    dense[unpack_bits(c.bitmask, c.shape[1])] = c.values
    return dense
