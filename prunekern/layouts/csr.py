"""Layouts of CSR, each of three tensors: values, col_indices, crow_indices.

Reading order by variant:

reference           canonical values and columns; crow_indices int64
scalar, avx2, avx512    the same, values and columns followed by 64 zeros
triton: rows from the longest to the shortest, those of one length in their order, in strips of
16; S = ceil(N / 16), and a strip has as many chunks as its longest row needs, C in all
    values, columns   [C, 16, 8]        8 entries of each row of a strip, zeros beyond its end
    crow_indices int32 [3, 16 S]        row (from N on: none), its length, the first chunk of
                                        its strip
simt: see csr_simt.py
cusparse: see rivals.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunekern.formats import CSR, column_type, row_pointer_type
from prunekern.layouts import csr_simt
from prunekern.layouts.packed import PADDING, Packed

# Of the layout "triton".
CSR_STRIP = 16
CSR_VECTOR = 8


def pack(c: CSR, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of one layout; the layout is checked by the caller."""
    crow = c.crow_indices.to(torch.int64)
    if layout == "reference":
        return c.values, c.col_indices, crow
    if layout == "triton":
        return _pack_strips(c)
    if layout == "simt":
        return csr_simt.pack(c)
    if layout == "cusparse":
        index = row_pointer_type(len(c.values))
        return c.values, c.col_indices.to(index), crow.to(index)
    padding = c.col_indices.new_zeros(PADDING)
    return pad(c.values, (0, PADDING)), torch.cat([c.col_indices, padding]), crow


def unpack(packed: Packed) -> CSR:
    """What `pack` was given."""
    if packed.layout == "triton":
        return _unpack_strips(packed)
    if packed.layout == "simt":
        return csr_simt.unpack(*packed.tensors, packed.shape)
    values, columns, crow = packed.tensors
    nnz = values.numel() - (0 if packed.layout in ("reference", "cusparse") else PADDING)
    return CSR(
        values=values[:nnz].clone(),
        col_indices=columns[:nnz].to(column_type(packed.shape[1]), copy=True),
        crow_indices=crow.to(row_pointer_type(nnz)),
        shape=packed.shape,
    )


def _slots_of_strips(lengths: Tensor, places: Tensor, starts: Tensor) -> Tensor:
    """For each entry in canonical order, its place among the padded ones.

    Args:
        lengths: Of each row.
        places: Of each row in the order of lengths.
        starts: Of each row the first chunk of its strip.
    """
    entry = torch.arange(int(lengths.sum()), device=lengths.device)
    entry -= (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    chunk = starts.repeat_interleave(lengths) + entry // CSR_VECTOR
    row = (places % CSR_STRIP).repeat_interleave(lengths)
    return (chunk * CSR_STRIP + row) * CSR_VECTOR + entry % CSR_VECTOR


def _columns_as_int(columns: Tensor) -> Tensor:
    """Their bits where torch has no indexing: of uint16."""
    return columns.view(torch.int16) if columns.dtype == torch.uint16 else columns


def _pack_strips(c: CSR) -> tuple[Tensor, Tensor, Tensor]:
    N = c.shape[0]
    S = -(-N // CSR_STRIP)
    lengths = pad(c.crow_indices.to(torch.int64).diff(), (0, CSR_STRIP * S - N))
    ordered, rows = lengths.sort(descending=True, stable=True)
    chunks = -(-ordered[::CSR_STRIP] // CSR_VECTOR)
    starts = (chunks.cumsum(0) - chunks).repeat_interleave(CSR_STRIP)
    places = rows.argsort()
    slots = _slots_of_strips(lengths, places, starts[places])
    shape = (int(chunks.sum()), CSR_STRIP, CSR_VECTOR)
    values, columns = c.values.new_zeros(shape), c.col_indices.new_zeros(shape)
    values.view(-1)[slots] = c.values
    _columns_as_int(columns).view(-1)[slots] = _columns_as_int(c.col_indices)
    return values, columns, torch.stack([rows, ordered, starts]).to(torch.int32)


def _unpack_strips(packed: Packed) -> CSR:
    values, columns, crow = packed.tensors
    rows, ordered, starts = crow.long()
    places = rows.argsort()
    lengths = ordered[places]
    slots = _slots_of_strips(lengths, places, starts[places])
    starts_of_rows = pad(lengths[: packed.shape[0]].cumsum(0), (1, 0))
    # The padded ones first: their number is a shape, which torch.compile knows.
    short = values.numel() < 2**31 or len(slots) < 2**31
    return CSR(
        values=values.view(-1)[slots],
        col_indices=_columns_as_int(columns).view(-1)[slots].view(columns.dtype),
        crow_indices=starts_of_rows.to(torch.int32 if short else torch.int64),
        shape=packed.shape,
    )


def transpose(c: CSR) -> CSR:
    """W^T, canonical: for gradients, grad W = grad (W^T)^T."""
    N, K = c.shape
    rows = torch.arange(N, device=c.device).repeat_interleave(c.crow_indices.long().diff())
    columns = c.col_indices.long()
    order = columns.argsort(stable=True)  # each column's by row, as they were
    return CSR(
        values=c.values[order],
        col_indices=rows[order].to(torch.int32).to(column_type(N)),
        crow_indices=pad(columns.bincount(minlength=K).cumsum(0), (1, 0)).to(c.crow_indices.dtype),
        shape=(K, N),
    )
