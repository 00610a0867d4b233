"""Canonical formats: what a pruned weight is on disk and between any two layouts.

Each format is a frozen dataclass of plain tensors on any device. `compress` makes one from a dense
weight, `decompress` gives the weight back, `validate` refuses whatever could make a kernel read out
of bounds or decode wrongly. N is out_features, K in_features, G = ceil(K / 4) groups a row.

    2:4        values [N, 2G]        meta uint8 [N, ceil(G/2)]: 4 bits a group, first | second << 2
    2:4-int8   values int8 [N, 2G]   meta as 2:4   scales [N, S]
    2:4-int4   values uint8 [N, G], two of 4 bits  meta as 2:4   scales [N, S]
    csr        crow_indices int32 [N+1]   col_indices uint16 [nnz]   values [nnz]
    bitmask    bitmask uint8 [N, ceil(K/8)], low bit first           values [nnz], row by row

The weight comes back to the bit, but for int8 and int4, which are rounded once, by `compress`.
A file for each family: sparse24.py, quantized.py, unstructured.py; canonical.py is what they share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunekern.formats.canonical import DTYPES, Specs, Who, check_weight
from prunekern.formats.quantized import (
    MIN_GROUP,
    PER_ROW,
    QuantizedSparse24,
    Sparse24Int4,
    Sparse24Int8,
    compress_quantized,
    decompress_quantized,
    dequantize,
    from_whole,
    group_size_of,
    validate_quantized,
    whole_numbers_of,
)
from prunekern.formats.sparse24 import (
    Sparse24,
    compress_sparse24,
    decompress_sparse24,
    groups_of_four,
    meta_of_nibbles,
    nibbles_of,
    positions_of,
    validate_sparse24,
)
from prunekern.formats.unstructured import (
    CSR,
    Bitmask,
    column_type,
    compress_bitmask,
    compress_csr,
    decompress_bitmask,
    decompress_csr,
    pack_bits,
    row_pointer_type,
    rows_of,
    unpack_bits,
    validate_bitmask,
    validate_csr,
)

__all__ = [
    "CSR",
    "DTYPES",
    "FORMATS",
    "MIN_GROUP",
    "PER_ROW",
    "Bitmask",
    "Canonical",
    "QuantizedSparse24",
    "Sparse24",
    "Sparse24Int4",
    "Sparse24Int8",
    "Specs",
    "check_format",
    "check_group_size",
    "check_weight",
    "column_type",
    "compress",
    "compress_bitmask",
    "compress_csr",
    "compress_sparse24",
    "decompress",
    "dequantize",
    "from_tensors",
    "from_whole",
    "group_size_of",
    "groups_of_four",
    "meta_of_nibbles",
    "nbytes",
    "nibbles_of",
    "pack_bits",
    "row_pointer_type",
    "rows_of",
    "take_kept",
    "tensor_names",
    "tensor_specs",
    "unpack_bits",
    "validate",
    "whole_numbers_of",
]

Canonical = Sparse24 | Sparse24Int8 | Sparse24Int4 | CSR | Bitmask
FORMATS: dict[str, type] = {
    c.kernel: c for c in (Sparse24, Sparse24Int8, Sparse24Int4, CSR, Bitmask)
}
_COMPRESS = {Sparse24: compress_sparse24, CSR: compress_csr, Bitmask: compress_bitmask}
_DECOMPRESS = {
    Sparse24: decompress_sparse24,
    Sparse24Int8: decompress_quantized,
    Sparse24Int4: decompress_quantized,
    CSR: decompress_csr,
    Bitmask: decompress_bitmask,
}
_VALIDATE = {
    Sparse24: validate_sparse24,
    Sparse24Int8: validate_quantized,
    Sparse24Int4: validate_quantized,
    CSR: validate_csr,
    Bitmask: validate_bitmask,
}


def check_format(kernel: str, who: str = "compress") -> None:
    """Raises ValueError unless `kernel` is one of FORMATS."""
    if kernel not in FORMATS:
        raise ValueError(f"{who}: kernel must be one of {', '.join(FORMATS)}, got {kernel!r}")


def check_group_size(kernel: str, group_size: int | None, who: str = "compress") -> None:
    """Raises ValueError unless it is None, or one that a format with scales takes."""
    if group_size is None:
        return
    if not FORMATS[kernel].bits:
        raise ValueError(f"{who}: group_size must be left out for {kernel}, got {group_size!r}")
    is_size = type(group_size) is int and group_size >= MIN_GROUP
    if group_size != PER_ROW and not (is_size and group_size & (group_size - 1) == 0):
        raise ValueError(
            f"{who}: group_size must be a power of two from {MIN_GROUP} on, or {PER_ROW} for one "
            f"scale a row, got {group_size!r}"
        )


def compress(weight: Tensor, kernel: str, group_size: int | None = None) -> Canonical:
    """Canonical form of a dense weight in the format that `kernel` names.

    Args:
        weight: [N, K], float32, bfloat16 or float16; zeros are what is left out.
        kernel: "2:4", "2:4-int8", "2:4-int4", "csr" or "bitmask".
        group_size: Inputs of a row that share a scale, for int8 and int4: a power of two from 32
            on, or -1 for one scale a row; by default one a row for int8, 64 for int4.

    Raises:
        ValueError: Another kernel, dtype or rank, an empty weight, one that is not 2:4, or one
            with NaN or infinity where it is rounded.
    """
    check_format(kernel)
    check_group_size(kernel, group_size, "compress")
    cls = FORMATS[kernel]
    if issubclass(cls, QuantizedSparse24):
        return compress_quantized(weight, cls, group_size)
    return _COMPRESS[cls](weight)


def decompress(c: Canonical) -> Tensor:
    """The dense weight [N, K], what was left out +0.0.

    To the bit the one that was compressed; of int8 and int4, whole number * scale rounded to the
    dtype of the scales. `dequantize` has it in float32.
    """
    return _DECOMPRESS[type(c)](c)


def take_kept(dense: Tensor, c: Canonical) -> Tensor:
    """What `dense` [N, K] holds at the positions that `c` keeps, in the order of `c.values`.

    A group of 2:4 has two positions, kept or not; beyond K there are zeros.
    """
    N, K = c.shape
    if c.pattern == "2:4":
        return groups_of_four(dense).gather(2, positions_of(c.meta, K)).view(N, -1)
    if isinstance(c, Bitmask):
        return dense[unpack_bits(c.bitmask, K)]
    return dense[rows_of(c), c.col_indices.to(torch.int64)]


def validate(c: Canonical, name: str = "") -> None:
    """Refuses canonical tensors that a kernel could not take.

    Args:
        c: Canonical tensors, perhaps from a file.
        name: Of the layer, for the message.

    Raises:
        ValueError: What is wrong, where, what was expected and what was found.
    """
    if type(c) not in FORMATS.values():
        kinds = ", ".join(kind.__name__ for kind in FORMATS.values())
        raise ValueError(f"{name or 'validate'}: weight must be {kinds}, got {type(c).__name__}")
    try:
        N, K = c.shape
        whole = all(isinstance(n, int) and n >= 1 for n in (N, K))
    except (TypeError, ValueError):
        whole = False
    who = Who(name or c.stem)
    who.check(whole, "shape", "be two positive whole numbers", c.shape)
    for key, t in c.tensors().items():
        who.check(isinstance(t, Tensor), key, "be a tensor", type(t).__name__)
        who.check(t.device == c.device, key, f"be on {c.device} as values are", t.device)
        who.check(t.device.type != "meta", key, "hold data", "a meta tensor")
        who.check(t.layout == torch.strided, key, "be strided", t.layout)
        who.check(t.is_contiguous(), key, "be contiguous", f"strides {t.stride()}")
    floats = "scales" if c.bits else "values"
    who.check(c.dtype in DTYPES, floats, "be float32, bfloat16 or float16", c.dtype)
    if c.bits:
        _check_scales(c, who)
    specs = tensor_specs(c.kernel, (N, K), c.dtype, c.values.numel(), c.group_size)
    for key, (dtype, wanted) in specs.items():
        who.check_tensor(key, getattr(c, key), dtype, wanted)
    _VALIDATE[type(c)](c, who)


def _check_scales(c: QuantizedSparse24, who: Who) -> None:
    who.check(c.scales.dim() == 2, "scales", "have 2 dimensions", c.scales.dim())
    try:
        group_size_of(c.shape[1], c.scales.shape[1])
    except ValueError as error:
        raise ValueError(f"{who.name}: {error}") from None


def nbytes(c: Canonical) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for t in c.tensors().values())


def tensor_names(kernel: str) -> tuple[str, ...]:
    """Names of the tensors of a format."""
    return FORMATS[kernel].tensor_names()


def tensor_specs(
    kernel: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    nnz: int = 0,
    group_size: int | None = None,
) -> Specs:
    """Name -> (dtype, shape) of each canonical tensor of a weight, without one.

    Args:
        kernel: One of FORMATS.
        shape: (N, K) of the dense weight.
        dtype: Of the kept weights, or of their scales.
        nnz: How many are kept; means something for "csr" and "bitmask" only.
        group_size: Inputs that share a scale, for int8 and int4.
    """
    check_format(kernel, "tensor_specs")
    return FORMATS[kernel].specs(shape, dtype, nnz=nnz, group_size=group_size)


def from_tensors(kernel: str, tensors: dict[str, Tensor], shape: tuple[int, int]) -> Canonical:
    """The inverse of `tensors()`. Not validated: call `validate` on what comes from outside.

    Raises:
        ValueError: Tensors are missing or not of this format.
    """
    check_format(kernel, "from_tensors")
    wanted = tensor_names(kernel)
    if set(tensors) != set(wanted):
        raise ValueError(
            f"from_tensors: tensors of {kernel} must be {list(wanted)}, got {sorted(tensors)}"
        )
    return FORMATS[kernel](**tensors, shape=tuple(shape))
