"""Tensor maps for TMA copies, as ``cuTensorMapEncodeTiled`` makes them, in the emulator's form."""

from __future__ import annotations

import ctypes

# CUtensorMapDataType, by numpy's and torch's names.
TYPES = {
    "uint8": 0, "uint16": 1, "uint32": 2, "int32": 3, "uint64": 4, "int64": 5, "float16": 6,
    "float32": 7, "float64": 8, "bfloat16": 9,
}  # fmt: skip
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}


class _Map(ctypes.Structure):
    """The engine's struct TensorMap (tensor_map.h)."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("dim", ctypes.c_uint64 * 5),
        ("stride", ctypes.c_uint64 * 4),
        ("box", ctypes.c_uint32 * 5),
        ("step", ctypes.c_uint8 * 5),
        ("type", ctypes.c_uint8),
        ("rank", ctypes.c_uint8),
        ("interleave", ctypes.c_uint8),
        ("swizzle", ctypes.c_uint8),
        ("fill", ctypes.c_uint8),
        ("unused", ctypes.c_uint8 * 18),
    )


class TensorMap:
    """The value of a ``const __grid_constant__ CUtensorMap`` parameter over a row-major buffer.

    Args:
        buffer: contiguous numpy array or torch CPU tensor of one to five dimensions.
        box: elements that one copy moves, in the buffer's order of dimensions (innermost last).
        swizzle: bytes of the swizzle's row: 0, 32, 64 or 128; the box's rows must have as many.

    Raises:
        ValueError: what ``cuTensorMapEncodeTiled`` would refuse.
    """

    def __init__(self, buffer, box: tuple[int, ...], swizzle: int = 0):
        name = str(buffer.dtype).removeprefix("torch.")
        if name not in TYPES:
            raise ValueError(f"a tensor map of {name}: one of {', '.join(TYPES)}")
        if len(box) != len(buffer.shape) or not 1 <= len(box) <= 5:
            raise ValueError(f"box {box} and shape {tuple(buffer.shape)}: one to five dimensions")
        if 0 in buffer.shape:
            raise ValueError(f"shape {tuple(buffer.shape)}: no dimension may be 0")
        if swizzle not in SWIZZLES:
            raise ValueError(f"a swizzle of {swizzle} bytes: 0, 32, 64 or 128")
        size = buffer.itemsize
        strides = [size * n for n in _products(buffer.shape[:0:-1])]
        if any(s % 16 for s in strides):
            raise ValueError(f"strides {strides} bytes: TMA needs multiples of 16; pad the rows")
        row = box[-1] * size
        if any(not 1 <= b <= 256 for b in box) or row % 16 or (swizzle and row != swizzle):
            raise ValueError(
                f"box {box}: 1 to 256 elements a dimension, rows of a multiple of 16 bytes, "
                f"of {swizzle} bytes if swizzled"
            )
        self.buffer = buffer
        self._map = _Map(type=TYPES[name], rank=len(box) - 1, swizzle=SWIZZLES[swizzle])
        self._map.dim[: len(box)] = buffer.shape[::-1]
        self._map.stride[: len(strides)] = strides
        self._map.box[: len(box)] = box[::-1]
        self._map.step[:] = [1] * 5

    def encode(self, address: int) -> bytes:
        """Its 128 bytes for a buffer at this address."""
        self._map.address = address
        return bytes(self._map)


def _products(values) -> list[int]:
    out, total = [], 1
    for v in values:
        total *= v
        out.append(total)
    return out
