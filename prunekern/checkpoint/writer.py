"""Writes safetensors files part by part: in memory there is never more than one layer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from prunekern.checkpoint.files import DTYPES, INDEX, WEIGHTS

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_ALIGNMENT = 8  # of the first tensor in a file, as safetensors pads headers
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Part:
    """Tensors that are made, written and freed together; they share a file.

    Attributes:
        specs: Name -> (dtype, shape), known beforehand.
        make: Gives the tensors.
    """

    specs: dict[str, tuple[torch.dtype, list[int]]]
    make: Callable[[], dict[str, Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.specs.values())


def parse_size(size: int | str, who: str) -> int:
    """Bytes of 5_000_000 or "5MB", in powers of ten as transformers counts.

    Raises:
        ValueError: Neither.
    """
    if isinstance(size, int) and size > 0:
        return size
    match = re.fullmatch(r"(\d+)\s*([KMGT]?B)", size.upper()) if isinstance(size, str) else None
    if not match or not int(match[1]):
        raise ValueError(f'{who}: max_shard_size must be bytes or like "5GB", got {size!r}')
    return int(match[1]) * _UNITS[match[2]]


def write_shards(folder: Path, parts: Iterable[Part], max_shard_bytes: int) -> int:
    """Writes parts, in their order, to one file or to several and an index.

    Returns:
        Bytes of all tensors.

    Raises:
        ValueError: Two parts have a tensor of the same name.
    """
    shards: list[list[Part]] = [[]]
    filled = 0
    seen: set[str] = set()
    for part in parts:
        if not seen.isdisjoint(part.specs):
            raise ValueError(f"{sorted(seen & part.specs.keys())} must be written once, got twice")
        seen |= part.specs.keys()
        if shards[-1] and filled + part.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += part.nbytes
    total = sum(part.nbytes for shard in shards for part in shard)
    if len(shards) == 1:
        _write_file(folder / WEIGHTS, shards[0])
        return total
    where = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / name, shard)
        where |= {tensor: name for part in shard for tensor in part.specs}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return total


def _write_file(path: Path, parts: Sequence[Part]) -> None:
    specs = {name: spec for part in parts for name, spec in part.specs.items()}
    # Large elements first: so all lie at multiples of their size, however odd a bitmask is.
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in sorted(specs.items(), key=lambda item: -item[1][0].itemsize):
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        start = file.tell()
        for part in parts:
            tensors = part.make()
            for name, (dtype, shape) in part.specs.items():
                file.seek(start + header[name]["data_offsets"][0])
                _write_tensor(file, name, tensors.pop(name), dtype, shape)


def _write_tensor(
    file: BinaryIO, name: str, tensor: Tensor, dtype: torch.dtype, shape: list[int]
) -> None:
    # A promise of the caller's: what was planned is what is written, or the file would lie.
    if (tensor.dtype, list(tensor.shape)) != (dtype, shape):
        raise RuntimeError(f"{name} was to be {dtype} {shape}, is {tensor.dtype} {tensor.shape}")
    if tensor.numel():
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        file.write(memoryview(raw.numpy()))
