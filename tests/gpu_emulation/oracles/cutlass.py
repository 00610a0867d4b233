"""CUTLASS's GEMMs run by its own host code: launches come back here and go to the emulator."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from ..compiler import cuda_to_library, cutlass_includes
from ..counters import Counters
from ..emulator import Module

HERE = Path(__file__).resolve().parent
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
)


class Oracle:
    """One of the .cu files beside this: its C functions, with buffers as kernel addresses."""

    def __init__(self, name: str, arch: str):
        """Compiles host code and PTX (kept between runs)."""
        options = [*(f"-I{p}" for p in cutlass_includes()), "--expt-relaxed-constexpr"]
        source = HERE / f"{name}.cu"
        ptx, library = cuda_to_library(source, arch, options, [HERE / "runtime_stub.cpp"])
        self.module = Module(ptx)
        self.library = ctypes.CDLL(str(library))
        self._launch = _LAUNCH(self._forward)
        self.library.emu_set_launch(self._launch)
        self._memory: dict[str, np.ndarray] = {}
        self._options: dict = {}
        self._failure: Exception | None = None
        self.counters: Counters | None = None

    def run(self, function: str, sizes: tuple[int, ...], memory: dict, **options) -> Counters:
        """Calls ``function(*sizes, *addresses of memory)``; launch options as ``Module.launch``."""
        self._memory, self._options, self._failure = memory, options, None
        addresses = self.module.addresses(memory).values()
        status = getattr(self.library, function)(*sizes, *(ctypes.c_void_p(a) for a in addresses))
        if self._failure:
            raise self._failure
        if status:
            raise RuntimeError(f"{function}{sizes}: CUTLASS's status {status}")
        return self.counters

    def host(self, function: str, sizes: tuple[int, ...], *arrays: np.ndarray) -> int:
        """Calls a function that launches nothing, on host memory."""
        return getattr(self.library, function)(
            *sizes, *(a.ctypes.data_as(ctypes.c_void_p) for a in arrays)
        )

    def _forward(self, name, grid, block, arguments, shared) -> int:
        try:
            name = name.decode()
            kernel = self.module.source.kernel(name)
            args = [ctypes.string_at(arguments[i], p.size) for i, p in enumerate(kernel.parameters)]
            self.counters = self.module.launch(
                name, grid[:3], block[:3], args, shared, memory=self._memory, **self._options
            )
        except Exception as failure:  # carried over the C frames and raised again by run()
            self._failure = failure
            return 1
        return 0
