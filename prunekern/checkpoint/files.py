"""Reads checkpoint folders that nobody vouches for: every file is checked before a tensor is read.

    uint64 n | n bytes of JSON: name -> dtype, shape, [begin, end) | tensors back to back

is a safetensors file. Whatever is not exactly that is refused with the file and the entry named.
Source: the format's description in the documentation of safetensors.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

# What safetensors itself takes at most for a header, and more than any config or index needs.
_MAX_JSON_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a header.

    Attributes:
        path: Of the file.
        dtype: Of its elements.
        shape: Sizes, none negative.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, no key twice.

    Raises:
        ValueError: It is missing, a link out of its folder, too large, not JSON, not an object or
            names a key twice.
    """
    _check_place(path, path.parent)
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(f"{path.name}: size must be at most {_MAX_JSON_BYTES} bytes, got {size}")
    return _parse(path.read_bytes(), path.name)


def read_headers(paths: Iterable[Path], folder: Path) -> dict[str, TensorInfo]:
    """Name -> entry of all tensors in the files of one checkpoint.

    Args:
        paths: safetensors files.
        folder: Where they must lie.

    Raises:
        ValueError: A file outside the folder, one that is no sound safetensors file, or a tensor
            that two of them hold.
    """
    found: dict[str, TensorInfo] = {}
    for path in paths:
        if path.suffix != ".safetensors":
            raise ValueError(f"{path.name}: weights must be in safetensors files, got {path}")
        _check_place(path, folder)
        for name, info in _read_header(path).items():
            if name in found:
                raise ValueError(
                    f"{path.name}: {name} must stand in one file, got it in "
                    f"{found[name].path.name} too"
                )
            found[name] = info
    return found


def read_folder(folder: Path) -> dict[str, TensorInfo]:
    """Name -> entry of all tensors of a folder, by its index if there are several files.

    Raises:
        ValueError: No safetensors files, an index that leads elsewhere or does not agree with the
            files, or what `read_headers` refuses.
    """
    if (folder / WEIGHTS).exists():
        return read_headers([folder / WEIGHTS], folder)
    if not (folder / INDEX).exists():
        raise ValueError(f"{folder.name}: folder must hold {WEIGHTS} or {INDEX}, got neither")
    where = read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{INDEX}: weight_map must map names of tensors to files, got {where!r}")
    names = sorted(set(where.values()))
    for name in names:
        plain = name == Path(name).name and "\\" not in name
        if not (plain and name.endswith(".safetensors")):
            raise ValueError(
                f"{INDEX}: a file must be a plain name that ends with .safetensors, got {name!r}"
            )
    found = read_headers([folder / name for name in names], folder)
    for name in where.keys() | found.keys():
        listed, real = where.get(name), found[name].path.name if name in found else None
        if listed != real:
            raise ValueError(f"{INDEX}: {name} must be in {listed}, got {real}")
    return found


def _parse(data: bytes, name: str) -> dict[str, Any]:
    def unique(pairs):
        entries: dict[str, Any] = {}
        for key, value in pairs:
            if key in entries:
                raise ValueError(f"{name}: keys must be unique, got {key!r:.200} twice")
            entries[key] = value
        return entries

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{name}: must be JSON, got {type(error).__name__}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: must be a JSON object, got {type(value).__name__}")
    return value


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path stays in the folder, whatever "..", absolute names and links it is made of.

    Links into `blobs` beside `snapshots` are how the cache of Hugging Face keeps files.
    """
    real = path.resolve()
    allowed = [folder.resolve()]
    allowed += [
        (parent.parent / "blobs").resolve()
        for parent in folder.absolute().parents
        if parent.name == "snapshots"
    ]
    return any(real.is_relative_to(place) for place in allowed)


def _check_place(path: Path, folder: Path) -> None:
    if not is_inside(path, folder):
        raise ValueError(
            f"{path.name}: must lie in the folder of the checkpoint, got {path.resolve()}"
        )
    if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path.name}: must be a file, got {path}")


def _read_header(path: Path) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_JSON_BYTES):
            raise ValueError(
                f"{path.name}: header must fit in the file, got {length} bytes of {size}; "
                "is it truncated?"
            )
        header = _parse(file.read(length), path.name)
    header.pop("__metadata__", None)  # strings for strings, as safe_open makes sure
    infos: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        infos[name], span = _read_entry(path, name, entry)
        spans.append(span)
    end = 0
    for span in sorted(spans):
        if span[0] != end:
            raise ValueError(f"{path.name}: tensors must lie back to back, got a start of {span}")
        end = span[1]
    if end != size - 8 - length:
        raise ValueError(
            f"{path.name}: tensors must take {end} bytes as the header says, got "
            f"{size - 8 - length}; is it truncated?"
        )
    try:
        with safe_open(path, "pt"):
            return infos
    except SafetensorError as error:
        raise ValueError(f"{path.name}: must be a safetensors file, got {error}") from None


def _read_entry(path: Path, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    who = f"{path.name}: {name}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{who} must have dtype, shape and data_offsets, got {entry!r:.200}")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{who}: dtype must be one of {', '.join(DTYPES)}, got {dtype!r:.50}")
    if not _whole_numbers(shape):
        raise ValueError(f"{who}: shape must be whole numbers, got {shape!r:.200}")
    info = TensorInfo(path, DTYPES[dtype], tuple(shape))
    if not _whole_numbers(span) or len(span) != 2 or span[1] - span[0] != info.nbytes:
        raise ValueError(
            f"{who}: data_offsets must span {info.nbytes} bytes, as {dtype} {shape} takes, "
            f"got {span!r:.100}"
        )
    return info, (span[0], span[1])


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)
