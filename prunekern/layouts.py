"""Layouts: the order in which each kernel reads a compressed weight. The specification.

A packed weight names its kernel: `Packed.layout` is the variant's name and its tensors are what
`torch.ops.prunekern.<stem>_linear_<layout>` takes. The packers in C++ equal `pack_reference` bit
for bit, and `unpack` is the exact inverse of both.

2:4 (values, meta): G = ceil(K / 4) groups a row, R rows side by side, T = ceil(N / R) row tiles,
C = ceil(G / 8) chunks of 8 groups. Rows and groups beyond N and G are padding: +0, positions 0, 1.

    reference, scalar   canonical: values [N, 2G], meta uint8 [N, ceil(G/2)]
    avx2 (R = 8), avx512, avx512bf16 (R = 16)
        values bfloat16   [T, 8C, R, 2]     a row's kept pair is one 32-bit word
               others     [T, 8C, 2, R]     first kept of R rows, then the second
        meta int32        [T, C, R]         bits 4i..4i+3: group 8c + i
               avx2, avx512   first | second << 2, as in the canonical form
               avx512bf16     pair | 8 * (i & 1), pair 0..5 = 01 02 03 12 13 23
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

bitmask (values, bitmask, offsets)

    reference, scalar   canonical values and bitmask; offsets int64 [N+1]: where each row starts
    avx2, avx512, avx512bf16: tiles of 4 rows, chunks of 64 columns, T = ceil(N/4), C = ceil(K/64)
        bitmask int64     [T, C, 4]         bit j of word t, c, r: weight (4t + r, 64c + j) is kept
        values            in the order of those bits, then 64 zeros: kernels read whole vectors
        offsets int64     [T+1]             where each tile starts
    triton: tiles of 32 rows x 128 columns, T = ceil(N / 32), C = ceil(K / 128)
        values            in the order of tiles, row by row, each tile +0 up to a multiple of 16
        bitmask int32     [T, C, 128]       byte b (row by row) of a tile: byte b // 128 of word
                                            b % 128, bits as in the canonical form
        offsets int32     [TC+1]            where each tile starts, in units of 16 values

csr (values, col_indices, crow_indices)

    reference           canonical values and columns; crow_indices int64
    scalar, avx2, avx512    the same, values and columns followed by 64 zeros
    triton: rows from the longest to the shortest, those of one length in their order, in strips of
    16; S = ceil(N / 16), and a strip has as many chunks as its longest row needs, C in all
        values, columns   [C, 16, 8]        8 entries of each row of a strip, zeros beyond its end
        crow_indices int32 [3, 16 S]        row (from N on: none), its length, the first chunk of
                                            its strip
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunekern import rivals
from prunekern.formats import (
    CSR,
    Bitmask,
    Canonical,
    Sparse24,
    compress_sparse24,
    decompress,
    nibbles_of,
)

PADDING = 64  # elements that a kernel may read past the last value
TILE_ROWS = {"avx2": 8, "avx512": 16, "avx512bf16": 16}
BITMASK_TILE_ROWS = 4
BITMASK_CHUNK = 64
# Of the layout "triton".
BITMASK_TILE = (32, 128)
BITMASK_UNIT = 16
CSR_STRIP = 16
CSR_VECTOR = 8

# The variants of each format, best first.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "sparse24": ("sm90a", "sm80", "avx512bf16", "avx512", "avx2", "scalar", "triton", "reference"),
    "bitmask": ("avx512bf16", "avx512", "avx2", "scalar", "triton", "reference"),
    "csr": ("avx512", "avx2", "scalar", "triton", "reference"),
}
PANEL_LAYOUTS = ("sm90a", "sm80")
# Variants that exist for comparison: taken only where somebody names them. See rivals.py.
RIVALS: dict[str, tuple[str, ...]] = {"sparse24": ("cusparselt", "cutlass")}
# Layouts for GPUs: first and last compute capability of NVIDIA's that can run them.
CAPABILITIES = {
    "sm90a": ((9, 0), (9, 0)),
    "sm80": ((8, 0), (99, 9)),
    "triton": ((7, 5), (99, 9)),
    "cusparselt": ((8, 0), (99, 9)),
    "cutlass": ((8, 0), (99, 9)),
}
# Layouts that are for some dtypes only.
ONLY_DTYPES = {
    "avx512bf16": (torch.bfloat16,),
    **dict.fromkeys(("sm90a", "sm80", "cusparselt", "cutlass"), (torch.bfloat16, torch.float16)),
}

_EMPTY_NIBBLE = 0b0100
_NIBBLE_OF_PAIR = torch.tensor([0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110])
_PAIR_OF_NIBBLE = torch.zeros(16, dtype=torch.int64)
_PAIR_OF_NIBBLE[_NIBBLE_OF_PAIR] = torch.arange(6)
_NIBBLE_OF_STORED = torch.zeros(16, dtype=torch.int64)
_NIBBLE_OF_STORED[1 << (_NIBBLE_OF_PAIR & 3) | 1 << (_NIBBLE_OF_PAIR >> 2)] = _NIBBLE_OF_PAIR


@dataclass(frozen=True)
class Packed:
    """A compressed weight in the reading order of one kernel.

    Attributes:
        stem: sparse24, bitmask or csr.
        layout: The variant whose order this is.
        shape: (N, K) of the dense weight.
        tensors: What the op takes after x, in its order.
    """

    stem: str
    layout: str
    shape: tuple[int, int]
    tensors: tuple[Tensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the kept weights."""
        return self.tensors[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, padding included."""
        return sum(t.numel() * t.element_size() for t in self.tensors)


def takes_dtype(layout: str, dtype: torch.dtype) -> bool:
    """Whether weights of this dtype can have the layout."""
    return dtype in ONLY_DTYPES.get(layout, (dtype,))


def device_of(layout: str) -> str:
    """Type of the device that the layout is for; "" for "reference", which runs on any."""
    if layout == "reference":
        return ""
    return "cuda" if layout in CAPABILITIES else "cpu"


@dataclass(frozen=True)
class Facts:
    """All that the choice of a layout depends on.

    Attributes:
        device: Type of the device, "cpu", "cuda" or another.
        arch: The compute capability of an NVIDIA GPU, None on other devices: "cuda" without one is
            an AMD GPU.
        isa: Variants that the CPU can run; "triton" where its interpreter is on.
        dtype: Of the weight.
        available: (stem, layout) of the ops that were built.
    """

    device: str
    arch: tuple[int, int] | None
    isa: frozenset[str]
    dtype: torch.dtype
    available: frozenset[tuple[str, str]]


def why_not(stem: str, layout: str, facts: Facts) -> str:
    """Why a weight can not have this layout, or ""."""
    if layout == "reference":
        return ""
    if not takes_dtype(layout, facts.dtype):
        return f"{layout} is for {_dtypes(layout)}, not for {facts.dtype}"
    if layout == "triton" and facts.device == "cpu" and layout not in facts.isa:
        return "triton runs on a cpu only in its interpreter: start Python with TRITON_INTERPRET=1"
    if facts.device != device_of(layout) and (layout, facts.device) != ("triton", "cpu"):
        return f"{layout} runs on {device_of(layout)}, not on {facts.device}"
    if (stem, layout) not in facts.available:
        return f"{layout} was not built" if layout != "triton" else "the triton package is missing"
    if facts.device == "cpu":
        return "" if layout in facts.isa else f"this CPU lacks instructions of {layout}"
    if facts.arch is None:
        return "" if layout == "triton" else f"{layout} needs an NVIDIA GPU"
    first, last = CAPABILITIES[layout]
    if first <= facts.arch <= last:
        return ""
    wanted = ".".join(map(str, first)) + ("" if first == last else " or more")
    return (
        f"{layout} needs compute capability {wanted}, this GPU has {facts.arch[0]}.{facts.arch[1]}"
    )


def layout_for(stem: str, facts: Facts) -> str:
    """The layout to take for a weight, from facts alone: no look at the machine in here.

    Returns:
        The first of LAYOUTS[stem] that is built, made for the device, runs there and takes the
        dtype; "reference", which is plain torch, takes all. All of them take every shape.
    """
    return next(
        layout
        for layout in LAYOUTS[stem]
        if device_of(layout) in ("", facts.device) and not why_not(stem, layout, facts)
    )


def why_reference(stem: str, facts: Facts) -> str:
    """Where `layout_for` says "reference": why none of the device's own layouts is taken."""
    own = [layout for layout in LAYOUTS[stem] if device_of(layout) == facts.device]
    if not own:
        return f"{stem} has no kernels for {facts.device}"
    return "; ".join(why_not(stem, layout, facts) for layout in own)


def _dtypes(layout: str) -> str:
    return " or ".join(map(str, ONLY_DTYPES[layout]))


def check_layout(stem: str, layout: str, dtype: torch.dtype, who: str = "pack") -> None:
    """Raises ValueError unless the format has this layout and the layout takes the dtype."""
    known = LAYOUTS[stem] + RIVALS.get(stem, ())
    if layout not in known:
        raise ValueError(
            f"{who}: layout of {stem} must be one of {', '.join(known)}, got {layout!r}"
        )
    if not takes_dtype(layout, dtype):
        raise ValueError(f"{who}: {layout} must have {_dtypes(layout)} weights, got {dtype}")


def pack(c: Canonical, layout: str) -> Packed:
    """Canonical tensors in the order of one layout, by the op in C++ where there is one.

    Raises:
        ValueError: The format has no such layout, or not for this dtype.
    """
    check_layout(c.stem, layout, c.dtype)
    packer = getattr(torch.ops.prunekern, f"{c.stem}_pack_{layout}", None)
    if packer is None or c.device.type != device_of(layout):
        return pack_reference(c, layout)
    first, second = (c.values, c.meta) if isinstance(c, Sparse24) else (c.values, c.bitmask)
    return Packed(c.stem, layout, c.shape, tuple(packer(first, second, *c.shape)))


def pack_reference(c: Canonical, layout: str) -> Packed:
    """What `pack` returns, in plain torch on any device: the specification."""
    check_layout(c.stem, layout, c.dtype)
    pack_one = {Sparse24: _pack_sparse24, Bitmask: _pack_bitmask, CSR: _pack_csr}[type(c)]
    return Packed(c.stem, layout, c.shape, pack_one(c, layout))


def unpack(packed: Packed) -> Canonical:
    """The canonical tensors that were packed, to the bit; for the two of rivals.py see there."""
    unpack_one = {"sparse24": _unpack_sparse24, "bitmask": _unpack_bitmask, "csr": _unpack_csr}
    return unpack_one[packed.stem](packed)


# ------------------------------------------------------------------------------------------- 2:4


def _shifts(device: torch.device) -> Tensor:
    return 4 * torch.arange(8, device=device)


def _pack_sparse24(c: Sparse24, layout: str) -> tuple[Tensor, Tensor]:
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
    if layout == "avx512bf16":
        odd_group = 8 * (torch.arange(8 * C, device=c.device) % 2)
        nibbles = _PAIR_OF_NIBBLE.to(c.device)[nibbles] | odd_group
    words = (nibbles.view(T, R, C, 8) << _shifts(c.device)).sum(-1)
    meta = words.to(torch.int32).transpose(1, 2).contiguous()  # wraps at 2^31: the bits count

    values = pad(c.values, (0, 2 * groups, 0, rows)).view(T, R, 8 * C, 2)
    order = (0, 2, 1, 3) if c.dtype == torch.bfloat16 else (0, 2, 3, 1)
    return values.permute(order).contiguous(), meta


def _unpack_sparse24(packed: Packed) -> Sparse24:
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
    if packed.layout == "avx512bf16":
        nibbles = _NIBBLE_OF_PAIR.to(meta.device)[nibbles & 7]

    order = (0, 2, 1, 3) if packed.dtype == torch.bfloat16 else (0, 3, 1, 2)
    rows = values.permute(order).reshape(T * R, 16 * C)[:N, : 2 * G]
    return Sparse24(values=rows.contiguous(), meta=_meta_of(nibbles), shape=packed.shape)


def _meta_of(nibbles: Tensor) -> Tensor:
    """[N, G] of any integers to canonical metadata, the inverse of `nibbles_of`."""
    nibbles = pad(nibbles, (0, nibbles.shape[1] % 2), value=_EMPTY_NIBBLE).to(torch.uint8)
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).contiguous()


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
        meta=_meta_of(nibbles.reshape(64 * R, 16 * C)[:N, :G]),
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
        meta=_meta_of(nibbles.reshape(N, -1)[:, :G]),
        shape=packed.shape,
    )


# --------------------------------------------------------------------------------------- bitmask


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


def _pack_bitmask(c: Bitmask, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    if layout in ("reference", "scalar"):
        return c.values, c.bitmask, _row_starts(c.bitmask)
    if layout == "triton":
        return _pack_tiles(c)
    N, K = c.shape
    T, C = -(-N // BITMASK_TILE_ROWS), -(-K // BITMASK_CHUNK)
    padded = pad(c.bitmask, (0, 8 * C - c.bitmask.shape[1], 0, T * BITMASK_TILE_ROWS - N))
    rows = padded.contiguous().view(torch.int64)  # little endian: byte 0 is bits 0..7
    words = rows.view(T, BITMASK_TILE_ROWS, C).transpose(1, 2).contiguous()
    kept = _bits(words, 64)
    values = pad(c.values[_canonical_order(kept)], (0, PADDING))
    offsets = pad(kept.sum((1, 2, 3)).cumsum(0), (1, 0))
    return values, words, offsets


def _unpack_bitmask(packed: Packed) -> Bitmask:
    values, words, _ = packed.tensors
    if packed.layout in ("reference", "scalar"):
        return Bitmask(values=values, bitmask=words, shape=packed.shape)
    if packed.layout == "triton":
        return _unpack_tiles(packed)
    N, K = packed.shape
    T, C, rows = words.shape
    canonical = values.new_empty(values.numel() - PADDING)
    canonical[_canonical_order(_bits(words, 64))] = values[:-PADDING]
    by_row = words.transpose(1, 2).flatten().view(torch.uint8).view(T * rows, 8 * C)
    return Bitmask(
        values=canonical, bitmask=by_row[:N, : -(-K // 8)].contiguous(), shape=packed.shape
    )


def _slots_of_tiles(kept: Tensor) -> tuple[Tensor, Tensor]:
    """(for each value in the order of tiles, its place among padded ones; offsets)."""
    counts = kept.sum((2, 3)).flatten()
    units = pad((-(-counts // BITMASK_UNIT)).cumsum(0), (1, 0))
    gaps = units[:-1] * BITMASK_UNIT - (counts.cumsum(0) - counts)
    values = torch.arange(int(counts.sum()), device=kept.device)
    return values + gaps.repeat_interleave(counts), units.to(torch.int32)


def _pack_tiles(c: Bitmask) -> tuple[Tensor, Tensor, Tensor]:
    N, K = c.shape
    rows, columns = BITMASK_TILE
    T, C = -(-N // rows), -(-K // columns)
    padded = pad(c.bitmask, (0, C * columns // 8 - c.bitmask.shape[1], 0, T * rows - N))
    tiles = padded.view(T, rows, C, columns // 8).transpose(1, 2)
    kept = _bits(tiles, 8).flatten(3)
    slots, offsets = _slots_of_tiles(kept)
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
    slots, _ = _slots_of_tiles(kept)
    canonical = values.new_empty(len(slots))
    canonical[_canonical_order(kept)] = values[slots]
    by_row = tiles.transpose(1, 2).reshape(T * rows, C * columns // 8)
    return Bitmask(
        values=canonical, bitmask=by_row[:N, : -(-K // 8)].contiguous(), shape=packed.shape
    )


# ------------------------------------------------------------------------------------------- csr


def _pack_csr(c: CSR, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    crow = c.crow_indices.to(torch.int64)
    if layout == "reference":
        return c.values, c.col_indices, crow
    if layout == "triton":
        return _pack_strips(c)
    padding = c.col_indices.new_zeros(PADDING)
    return pad(c.values, (0, PADDING)), torch.cat([c.col_indices, padding]), crow


def _unpack_csr(packed: Packed) -> CSR:
    if packed.layout == "triton":
        return _unpack_strips(packed)
    values, columns, crow = packed.tensors
    nnz = values.numel() - (0 if packed.layout == "reference" else PADDING)
    return CSR(
        values=values[:nnz].clone(),
        col_indices=columns[:nnz].clone(),
        crow_indices=crow.to(torch.int32 if nnz < 2**31 else torch.int64),
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
