"""Parts of canonical weights, and weights of parts, exact to the bit, without a dense weight.

    slice_rows(c, begin, end)       outputs begin .. end - 1      column parallel: N is shared out
    slice_columns(c, begin, end)    inputs begin .. end - 1       row parallel: K is shared out
    concatenate_rows(parts)         the inverse of slice_rows; also what fuses projections
    concatenate_columns(parts)      the inverse of slice_columns

Positions are kept as they are, also of values that are zero. A group of four inputs of 2:4 can not
be cut: columns are sliced at multiples of 4 there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunekern.formats import (
    CSR,
    Bitmask,
    Canonical,
    Sparse24,
    column_type,
    meta_of_nibbles,
    nibbles_of,
    pack_bits,
    row_pointer_type,
    rows_of,
    unpack_bits,
)


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
    _check_range("slice_rows", begin, end, N)
    shape = (end - begin, K)
    if isinstance(c, CSR):
        crow = c.crow_indices[begin : end + 1].to(torch.int64)
        entries = slice(int(crow[0]), int(crow[-1]))
        return _csr(c.values[entries].clone(), c.col_indices[entries], crow - crow[0], shape)
    if isinstance(c, Bitmask):
        starts = pad(_kept(c).sum(1).cumsum(0), (1, 0))
        values = c.values[int(starts[begin]) : int(starts[end])].clone()
        return Bitmask(values=values, bitmask=c.bitmask[begin:end].clone(), shape=shape)
    # All tensors of 2:4 have a row for each output.
    return type(c)(**{k: t[begin:end].clone() for k, t in c.tensors().items()}, shape=shape)


def slice_columns(c: Canonical, begin: int, end: int) -> Canonical:
    """W[:, begin:end] of the same format.

    Args:
        c: W [N, K].
        begin: First input; of 2:4 a multiple of 4.
        end: One past the last, begin < end <= K; of 2:4 a multiple of 4, or K.

    Raises:
        ValueError: The range is empty or outside, cuts a group of 2:4, or the weight has scales.
    """
    N, K = c.shape
    _check_columns("slice_columns", c)
    _check_range("slice_columns", begin, end, K)
    shape = (N, end - begin)
    if isinstance(c, Sparse24):
        if begin % 4 or (end % 4 and end != K):
            raise ValueError(
                f"slice_columns: begin and end must be multiples of 4 for 2:4, got {begin}, {end}"
            )
        groups = slice(begin // 4, -(-end // 4))
        values = c.values.view(N, -1, 2)[:, groups].reshape(N, -1).clone()
        nibbles = nibbles_of(c.meta, -(-K // 4))[:, groups]
        return Sparse24(values=values, meta=meta_of_nibbles(nibbles), shape=shape)
    if isinstance(c, CSR):
        columns = c.col_indices.to(torch.int64)
        inside = (columns >= begin) & (columns < end)
        counts = _rows(c)[inside].bincount(minlength=N)
        crow = pad(counts.cumsum(0), (1, 0))
        return _csr(c.values[inside], columns[inside] - begin, crow, shape)
    kept = _kept(c)
    inside = torch.zeros_like(kept)
    inside[:, begin:end] = True
    bitmask = pack_bits(kept[:, begin:end].contiguous())
    return Bitmask(values=c.values[inside[kept]], bitmask=bitmask, shape=shape)


def concatenate_rows(parts: Sequence[Canonical]) -> Canonical:
    """[W_0; W_1; ...]: outputs of all parts one after the other.

    Args:
        parts: Of one format, dtype, device, group size and number of inputs.

    Raises:
        ValueError: None, or parts that do not fit together.
    """
    first = _check_parts("concatenate_rows", parts, same=1)
    shape = (sum(part.shape[0] for part in parts), first.shape[1])
    tensors = [part.tensors() for part in parts]
    if isinstance(first, CSR):
        lengths = torch.cat([t["crow_indices"].to(torch.int64).diff() for t in tensors])
        columns = torch.cat([t["col_indices"].to(torch.int64) for t in tensors])
        values = torch.cat([t["values"] for t in tensors])
        return _csr(values, columns, pad(lengths.cumsum(0), (1, 0)), shape)
    return type(first)(**{k: torch.cat([t[k] for t in tensors]) for k in tensors[0]}, shape=shape)


def concatenate_columns(parts: Sequence[Canonical]) -> Canonical:
    """[W_0, W_1, ...]: inputs of all parts one after the other.

    Args:
        parts: Of one format, dtype, device and number of outputs; of 2:4 all but the last with a
            multiple of 4 inputs.

    Raises:
        ValueError: None, or parts that do not fit together.
    """
    first = _check_parts("concatenate_columns", parts, same=0)
    _check_columns("concatenate_columns", first)
    N, K = first.shape[0], sum(p.shape[1] for p in parts)
    if isinstance(first, Sparse24):
        ragged = [p.shape[1] for p in parts[:-1] if p.shape[1] % 4]
        if ragged:
            raise ValueError(
                "concatenate_columns: in_features of all parts but the last must be multiples of 4 "
                f"for 2:4, got {ragged[0]}"
            )
        nibbles = torch.cat([nibbles_of(p.meta, -(-p.shape[1] // 4)) for p in parts], 1)
        values = torch.cat([p.values for p in parts], 1)
        return Sparse24(values=values, meta=meta_of_nibbles(nibbles), shape=(N, K))
    rows = torch.cat([_rows(p) for p in parts])
    order = rows.argsort(stable=True)  # parts stay in their order within a row
    values = torch.cat([p.values for p in parts])[order]
    if isinstance(first, Bitmask):
        kept = torch.cat([_kept(p) for p in parts], 1)
        return Bitmask(values=values, bitmask=pack_bits(kept), shape=(N, K))
    columns, begin = [], 0
    for part in parts:
        columns.append(part.col_indices.to(torch.int64) + begin)
        begin += part.shape[1]
    crow = pad(rows.bincount(minlength=N).cumsum(0), (1, 0))
    return _csr(values, torch.cat(columns)[order], crow, (N, K))


def _csr(values: Tensor, columns: Tensor, crow: Tensor, shape: tuple[int, int]) -> CSR:
    """With the smallest index types that fit."""
    return CSR(
        values=values,
        col_indices=columns.to(column_type(shape[1]), copy=True),
        crow_indices=crow.to(row_pointer_type(values.numel())),
        shape=shape,
    )


def _kept(c: Bitmask) -> Tensor:
    """Bool [N, K]."""
    return unpack_bits(c.bitmask, c.shape[1])


def _rows(c: CSR | Bitmask) -> Tensor:
    """int64 [nnz]: the row of each value."""
    return _kept(c).nonzero()[:, 0] if isinstance(c, Bitmask) else rows_of(c)


def _check_columns(who: str, c: Canonical) -> None:
    if c.bits:
        raise ValueError(f"{who}: weight must have no scales, got {c.kernel}; slice it by rows")


def _check_range(who: str, begin: int, end: int, size: int) -> None:
    if not 0 <= begin < end <= size:
        raise ValueError(f"{who}: range must lie in 0..{size} and hold one, got {begin}..{end}")


def _check_parts(who: str, parts: Sequence[Canonical], same: int) -> Canonical:
    if not parts:
        raise ValueError(f"{who}: parts must be one or more, got none")
    first = parts[0]
    for part in parts:
        for what, ours, wanted in (
            ("kernel", part.kernel, first.kernel),
            ("dtype", part.dtype, first.dtype),
            ("device", part.device, first.device),
            ("group_size", part.group_size, first.group_size),
            (("out_features", "in_features")[same], part.shape[same], first.shape[same]),
        ):
            if ours != wanted:
                raise ValueError(f"{who}: {what} of all parts must be {wanted}, got {ours}")
    return first
