"""CUTLASS's GEMMs run by its own host code."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from ..compiler import cutlass_includes
from ..counters import Counters
from ..host import HostModule

HERE = Path(__file__).resolve().parent


class Oracle(HostModule):
    """One of the .cu files beside this."""

    def __init__(self, name: str, arch: str):
        """Compiles host code and PTX (kept between runs)."""
        super().__init__(HERE / f"{name}.cu", arch, [f"-I{p}" for p in cutlass_includes()])

    def run(self, function: str, sizes: tuple[int, ...], memory: dict, **options) -> Counters:
        """Calls ``function(*sizes, *addresses of memory)``; launch options as ``Module.launch``."""
        return super().run(function, [*sizes, *memory], memory, **options)

    def host(self, function: str, sizes: tuple[int, ...], *arrays: np.ndarray) -> int:
        """Calls a function that launches nothing, on host memory."""
        return getattr(self.library, function)(
            *sizes, *(a.ctypes.data_as(ctypes.c_void_p) for a in arrays)
        )
