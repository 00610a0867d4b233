"""Whose part of a weight is whose: the ranges that DTensor's `Shard` means.

Of `size` rows or columns over P processes process i has a chunk of ceil(size / P) from i times that
on, the last ones less. So a plain nn.Linear, an activation and a sparse weight are cut alike.

    column parallel   rows of W, outputs       y is cut, x is whole, dL/dx is a sum of parts
    row parallel      columns of W, inputs     x is cut, y is a sum of parts
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from prunekern import formats, slicing
from prunekern.formats import Canonical

ROWS, COLUMNS = 0, 1
_SIZES = ("out_features", "in_features")
# Metadata of two groups of four share a byte, and DTensor cuts at elements.
_MULTIPLE_OF_24 = 8


def check_cut(who: str, kernel: str, shape: tuple[int, int], dim: int, parts: int) -> None:
    """Raises ValueError unless every process gets a part that it can compute with."""
    size = shape[dim]
    chunk = -(-size // parts)
    if chunk * (parts - 1) >= size:
        raise ValueError(
            f"{who}: {_SIZES[dim]} must leave each of {parts} processes some, got {size} in chunks "
            f"of {chunk}; take fewer processes or leave the layer whole"
        )
    if kernel == "2:4" and dim == COLUMNS and parts > 1 and chunk % _MULTIPLE_OF_24:
        raise ValueError(
            f"{who}: in_features must be cut at multiples of {_MULTIPLE_OF_24} for 2:4, got {size} "
            f"in chunks of {chunk} for {parts} processes; take another number of processes, pad "
            "the layer or leave it whole"
        )


def part_range(size: int, parts: int, index: int) -> tuple[int, int]:
    """Begin and end of the part of process `index`."""
    chunk = -(-size // parts)
    return chunk * index, min(chunk * (index + 1), size)


def part_of(whole: Canonical, dim: int, mesh: DeviceMesh) -> Canonical:
    """This process's rows (0) or columns (1) of a weight."""
    begin, end = part_range(whole.shape[dim], mesh.size(), mesh.get_local_rank())
    slices = slicing.slice_rows if dim == ROWS else slicing.slice_columns
    return slices(whole, begin, end)


def gather_parts(part: Canonical, shape: tuple[int, int], dim: int, mesh: DeviceMesh) -> Canonical:
    """The weight of this shape whose part each process has; all processes must call it."""
    group, parts = mesh.get_group(), mesh.size()
    gathered = {name: _gather(t, group, parts) for name, t in part.tensors().items()}
    weights = []
    for i in range(parts):
        begin, end = part_range(shape[dim], parts, i)
        own = (end - begin, shape[1]) if dim == ROWS else (shape[0], end - begin)
        tensors = {name: pieces[i] for name, pieces in gathered.items()}
        if part.kernel == "2:4":
            specs = formats.tensor_specs(part.kernel, own, part.dtype)
            tensors = {name: t.view(specs[name][1]) for name, t in tensors.items()}
        elif part.kernel == "bitmask":
            tensors["bitmask"] = tensors["bitmask"].view(own[0], -1)
        weights.append(formats.from_tensors(part.kernel, tensors, own))
    join = slicing.concatenate_rows if dim == ROWS else slicing.concatenate_columns
    return join(weights)


def _gather(t: Tensor, group: dist.ProcessGroup, parts: int) -> list[Tensor]:
    """Each process's flattened tensor, of any size: as bytes, since backends lack dtypes."""
    data = t.contiguous().flatten().view(torch.uint8)
    size = torch.tensor([data.numel()], device=t.device)
    sizes = [torch.empty_like(size) for _ in range(parts)]
    dist.all_gather(sizes, size, group=group)
    counts = [int(s) for s in sizes]
    padded = torch.nn.functional.pad(data, (0, max(counts) - data.numel()))
    pieces = [torch.empty_like(padded) for _ in range(parts)]
    dist.all_gather(pieces, padded, group=group)
    return [p[:n].clone().view(t.dtype) for p, n in zip(pieces, counts, strict=True)]
