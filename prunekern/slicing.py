"""Rows of canonical weights, and weights of rows, exact to the bit, without a dense weight.

    slice_rows(c, begin, end)    outputs begin .. end - 1
    concatenate_rows(parts)      the inverse; what fuses projections

Positions are kept as they are, also of values that are zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunekern.formats import CSR, Bitmask, Canonical, column_type, row_pointer_type, unpack_bits


def slice_rows(c: Canonical, begin: int, end: int) -> Canonical:
    """W[begin:end, :] of the same format.

    Args:
        c: W [N, K].
        begin: First output.
        end: One past the last, begin < end <= N.

    Raises:
        ValueError: The range is empty or outside.
    """
    N, K = c.shape
    if not 0 <= begin < end <= N:
        raise ValueError(f"slice_rows: range must lie in 0..{N} and hold one, got {begin}..{end}")
    shape = (end - begin, K)
    if isinstance(c, CSR):
        crow = c.crow_indices[begin : end + 1].to(torch.int64)
        entries = slice(int(crow[0]), int(crow[-1]))
        return _csr(c.values[entries].clone(), c.col_indices[entries], crow - crow[0], shape)
    if isinstance(c, Bitmask):
        starts = pad(unpack_bits(c.bitmask, K).sum(1).cumsum(0), (1, 0))
        values = c.values[int(starts[begin]) : int(starts[end])].clone()
        return Bitmask(values=values, bitmask=c.bitmask[begin:end].clone(), shape=shape)
    # All tensors of 2:4 have a row for each output.
    return type(c)(**{k: t[begin:end].clone() for k, t in c.tensors().items()}, shape=shape)


def concatenate_rows(parts: Sequence[Canonical]) -> Canonical:
    """[W_0; W_1; ...]: outputs of all parts one after the other.

    Args:
        parts: Of one format, dtype, device, group size and number of inputs.

    Raises:
        ValueError: None, or parts that do not fit together.
    """
    if not parts:
        raise ValueError("concatenate_rows: parts must be one or more, got none")
    first = parts[0]
    for part in parts:
        for what in ("kernel", "dtype", "device", "group_size"):
            ours, wanted = getattr(part, what), getattr(first, what)
            if ours != wanted:
                raise ValueError(
                    f"concatenate_rows: {what} of all parts must be {wanted}, got {ours}"
                )
        if part.shape[1] != first.shape[1]:
            raise ValueError(
                f"concatenate_rows: in_features of all parts must be {first.shape[1]}, "
                f"got {part.shape[1]}"
            )
    shape = (sum(part.shape[0] for part in parts), first.shape[1])
    if isinstance(first, CSR):
        lengths = torch.cat([part.crow_indices.to(torch.int64).diff() for part in parts])
        columns = torch.cat([part.col_indices.to(torch.int64) for part in parts])
        values = torch.cat([part.values for part in parts])
        return _csr(values, columns, pad(lengths.cumsum(0), (1, 0)), shape)
    tensors = [part.tensors() for part in parts]
    return type(first)(**{k: torch.cat([t[k] for t in tensors]) for k in tensors[0]}, shape=shape)


def _csr(values: Tensor, columns: Tensor, crow: Tensor, shape: tuple[int, int]) -> CSR:
    """With the smallest index types that fit."""
    return CSR(
        values=values,
        col_indices=columns.to(torch.int64).to(column_type(shape[1])),
        crow_indices=crow.to(row_pointer_type(values.numel())),
        shape=shape,
    )
