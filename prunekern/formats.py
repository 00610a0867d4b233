"""Canonical formats: what a pruned weight is on disk and between any two layouts.

Each format is a frozen dataclass of plain tensors on any device. `compress` makes one from a dense
weight, `decompress` gives the weight back to the bit, `validate` refuses whatever could make a
kernel read out of bounds or decode wrongly. N is out_features, K in_features, G = ceil(K / 4)
groups a row.

    2:4       values [N, 2G]   meta uint8 [N, ceil(G/2)]: 4 bits a group, first | second << 2
    csr       crow_indices int32 [N+1]   col_indices uint16 [nnz]   values [nnz]
    bitmask   bitmask uint8 [N, ceil(K/8)], low bit first           values [nnz], row by row
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Columns fit in 16 bits up to this many, row pointers in 32 bits below that many values.
_UINT16_COLUMNS = 65536
_INT32_VALUES = 2**31

_EMPTY_NIBBLE = 0b0100  # positions 0 and 1: what an unused group holds
_MORE_THAN_TWO = 255


def _int_view(t: Tensor) -> Tensor:
    """The bits of a float tensor, as integers of its size."""
    return t.view(torch.int32 if t.element_size() == 4 else torch.int16)


@dataclass(frozen=True)
class _Canonical:
    values: Tensor
    shape: tuple[int, int]

    kernel: ClassVar[str]  # the name users give: "2:4", "csr", "bitmask"
    stem: ClassVar[str]  # the name ops, files and kernels have: sparse24, csr, bitmask

    @property
    def dtype(self) -> torch.dtype:
        """Of the kept weights."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.values.device

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, as a state dict holds them."""
        return {name: getattr(self, name) for name in tensor_names(self.kernel)}

    def map(self, f) -> _Canonical:
        """The same weight with f applied to each tensor."""
        return type(self)(**{k: f(t) for k, t in self.tensors().items()}, shape=self.shape)

    def with_values(self, values: Tensor) -> _Canonical:
        """Other numbers at the same positions: `values` in the order and shape of this one's."""
        return replace(self, values=values)

    def to(self, device=None, dtype: torch.dtype | None = None) -> _Canonical:
        """On another device, or with the kept weights in another dtype."""
        moved = self.map(lambda t: t.to(device)) if device is not None else self
        if dtype is None or dtype == self.dtype:
            return moved
        return moved.with_values(moved.values.to(dtype))


@dataclass(frozen=True)
class Sparse24(_Canonical):
    """At most two of every four inputs of a row kept, stored as two.

    Attributes:
        values: [N, 2G], the kept pair of each group in order of its positions.
        meta: uint8 [N, ceil(G/2)], two groups a byte, the even one in the low nibble.
        shape: (N, K) of the dense weight.
    """

    meta: Tensor
    kernel: ClassVar[str] = "2:4"
    stem: ClassVar[str] = "sparse24"


@dataclass(frozen=True)
class CSR(_Canonical):
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


@dataclass(frozen=True)
class Bitmask(_Canonical):
    """One bit a weight, and the kept weights.

    Attributes:
        values: [nnz], row by row.
        bitmask: uint8 [N, ceil(K/8)], bit k % 8 of byte k // 8; bits beyond K are zero.
        shape: (N, K) of the dense weight.
    """

    bitmask: Tensor
    kernel: ClassVar[str] = "bitmask"
    stem: ClassVar[str] = "bitmask"


Canonical = Sparse24 | CSR | Bitmask
FORMATS: dict[str, type] = {c.kernel: c for c in (Sparse24, CSR, Bitmask)}


def check_format(kernel: str, who: str = "compress") -> None:
    """Raises ValueError unless `kernel` is one of FORMATS."""
    if kernel not in FORMATS:
        raise ValueError(f"{who}: kernel must be one of {', '.join(FORMATS)}, got {kernel!r}")


def check_weight(weight: Tensor, who: str = "compress") -> None:
    """Raises ValueError unless `weight` is a dense, non-empty matrix of a dtype in DTYPES."""
    if not isinstance(weight, Tensor):
        raise ValueError(f"{who}: weight must be a tensor, got {type(weight).__name__}")
    if weight.layout != torch.strided:
        raise ValueError(f"{who}: weight must be dense, got {weight.layout}; call .to_dense()")
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(
            f"{who}: weight must be a non-empty matrix [out_features, in_features], "
            f"got shape {list(weight.shape)}"
        )
    if weight.dtype not in DTYPES:
        raise ValueError(
            f"{who}: weight must be float32, bfloat16 or float16, got {weight.dtype}; "
            "convert it first"
        )
    if weight.device.type == "meta":
        raise ValueError(f"{who}: weight must hold data, got a meta tensor; load the model first")


def compress(weight: Tensor, kernel: str) -> Canonical:
    """Canonical form of a dense weight in the format that `kernel` names.

    Args:
        weight: [N, K], float32, bfloat16 or float16; zeros are what is left out.
        kernel: "2:4", "csr" or "bitmask".

    Raises:
        ValueError: Another kernel, dtype or rank, an empty weight, or one that is not 2:4.
    """
    check_format(kernel)
    return {"2:4": compress_sparse24, "csr": compress_csr, "bitmask": compress_bitmask}[kernel](
        weight
    )


def decompress(c: Canonical) -> Tensor:
    """The dense weight [N, K], to the bit; what was left out is +0.0."""
    if isinstance(c, Sparse24):
        return _decompress_sparse24(c)
    N, K = c.shape
    dense = torch.zeros(N, K, dtype=c.dtype, device=c.device)
    if isinstance(c, CSR):
        dense[_rows(c), c.col_indices.to(torch.int64)] = c.values
    else:
        dense[kept_bits(c)] = c.values
    return dense


def _rows(c: CSR) -> Tensor:
    """int64 [nnz]: the row of each value."""
    return torch.arange(c.shape[0], device=c.device).repeat_interleave(c.crow_indices.diff())


def take_kept(dense: Tensor, c: Canonical) -> Tensor:
    """What `dense` [N, K] holds at the positions that `c` keeps, in the order of `c.values`.

    A group of 2:4 has two positions, kept or not; beyond K there are zeros.
    """
    N, K = c.shape
    if isinstance(c, Sparse24):
        return groups_of_four(dense).gather(2, _positions(c)).view(N, -1)
    if isinstance(c, Bitmask):
        return dense[kept_bits(c)]
    return dense[_rows(c), c.col_indices.to(torch.int64)]


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
    who = _Who(name or c.stem)
    who.check(whole, "shape", "be two positive whole numbers", c.shape)
    for key, t in c.tensors().items():
        who.check(isinstance(t, Tensor), key, "be a tensor", type(t).__name__)
        who.check(t.device == c.device, key, f"be on {c.device} as values are", t.device)
        who.check(t.device.type != "meta", key, "hold data", "a meta tensor")
        who.check(t.layout == torch.strided, key, "be strided", t.layout)
        who.check(t.is_contiguous(), key, "be contiguous", f"strides {t.stride()}")
    who.check(c.dtype in DTYPES, "values", "be float32, bfloat16 or float16", c.dtype)
    specs = tensor_specs(c.kernel, (N, K), c.dtype, c.values.numel())
    for key, (dtype, wanted) in specs.items():
        who.check_tensor(key, getattr(c, key), dtype, wanted)
    {Sparse24: _validate_sparse24, CSR: _validate_csr, Bitmask: _validate_bitmask}[type(c)](c, who)


def nbytes(c: Canonical) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for t in c.tensors().values())


def tensor_names(kernel: str) -> tuple[str, ...]:
    """Names of the tensors of a format."""
    return tuple(f.name for f in fields(FORMATS[kernel]) if f.name != "shape")


def tensor_specs(
    kernel: str, shape: tuple[int, int], dtype: torch.dtype, nnz: int = 0
) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Name -> (dtype, shape) of each canonical tensor of a weight, without one.

    Args:
        kernel: "2:4", "csr" or "bitmask".
        shape: (N, K) of the dense weight.
        dtype: Of the kept weights.
        nnz: How many are kept; means nothing for "2:4".
    """
    check_format(kernel, "tensor_specs")
    N, K = shape
    if kernel == "2:4":
        G = -(-K // 4)
        return {"values": (dtype, [N, 2 * G]), "meta": (torch.uint8, [N, -(-G // 2)])}
    values = {"values": (dtype, [nnz])}
    if kernel == "bitmask":
        return values | {"bitmask": (torch.uint8, [N, -(-K // 8)])}
    return values | {
        "col_indices": (column_type(K), [nnz]),
        "crow_indices": (row_pointer_type(nnz), [N + 1]),
    }


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


# ------------------------------------------------------------------------------------------- 2:4


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
    bits = _int_view(groups)
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
    nibbles = torch.nn.functional.pad(nibbles, (0, odd), value=_EMPTY_NIBBLE).to(torch.uint8)
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).contiguous()


def _positions(c: Sparse24) -> Tensor:
    """int64 [N, G, 2]: the two positions of each group."""
    nibbles = nibbles_of(c.meta, -(-c.shape[1] // 4))
    return torch.stack([nibbles & 3, nibbles >> 2], -1).long()


def _decompress_sparse24(c: Sparse24) -> Tensor:
    N, K = c.shape
    G = -(-K // 4)
    positions = _positions(c)
    values = _int_view(c.values).view(N, G, 2)
    groups = torch.zeros(N, G, 4, dtype=values.dtype, device=c.device)
    dense = groups.scatter_(2, positions, values).view(N, 4 * G)[:, :K]
    return dense.contiguous().view(c.dtype)


def _validate_sparse24(c: Sparse24, who: _Who) -> None:
    K = c.shape[1]
    G = -(-K // 4)
    nibbles = nibbles_of(c.meta, 2 * c.meta.shape[1])
    bad = ~_VALID_NIBBLE.to(c.device)[nibbles.long()]
    if bad.any():
        n, g = (int(i) for i in bad.nonzero()[0])
        who.fail(
            "meta",
            "hold two positions in ascending order a group",
            f"{int(bad.sum())} bad groups, the first in row {n}, group {g}: "
            f"{int(nibbles[n, g]):#06b}",
        )
    if G % 2:
        unused = nibbles[:, G] != _EMPTY_NIBBLE
        who.check(
            not unused.any(),
            "meta",
            f"hold {_EMPTY_NIBBLE:#06b} in the unused nibble at the end of a row",
            f"something else in {int(unused.sum())} rows",
        )
    if K % 4:
        last = nibbles[:, G - 1]
        positions = torch.stack([last & 3, last >> 2], -1)
        outside = (positions >= K % 4) & (_int_view(c.values)[:, -2:] != 0)
        who.check(
            not outside.any(),
            "values",
            f"be zero beyond the last input {K - 1}",
            f"others in {int(outside.any(-1).sum())} rows",
        )


# ----------------------------------------------------------------------------------- csr, bitmask


def _kept(weight: Tensor) -> Tensor:
    """Where the bits are not those of +0.0: negative zeros are kept, nothing is lost."""
    return _int_view(weight) != 0


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


def _validate_csr(c: CSR, who: _Who) -> None:
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


def kept_bits(c: Bitmask) -> Tensor:
    """Bool [N, K]: which weights are kept."""
    bits = (c.bitmask.unsqueeze(-1) & _bit_values(c.device)) != 0
    return bits.flatten(1)[:, : c.shape[1]]


def _validate_bitmask(c: Bitmask, who: _Who) -> None:
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
    kept = int(kept_bits(c).sum())
    who.check(kept == nnz, "bitmask", f"have as many bits set as there are values, {nnz}", kept)


class _Who:
    """Says whose tensor is wrong: `<name>: <what> must <rule>, got <value>`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fail(self, what: str, rule: str, got) -> None:
        raise ValueError(f"{self.name}: {what} must {rule}, got {got}")

    def check(self, ok: bool, what: str, rule: str, got) -> None:
        if not ok:
            self.fail(what, rule, got)

    def check_tensor(self, what: str, t: Tensor, dtype: torch.dtype, shape: list[int]) -> None:
        self.check(t.dtype == dtype, what, f"be {dtype}", t.dtype)
        self.check(list(t.shape) == shape, what, f"have the shape {shape}", list(t.shape))
