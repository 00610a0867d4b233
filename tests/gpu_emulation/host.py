"""Host code of CUDA files run as it is: its launches come back here and go to the emulator."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from .compiler import cuda_to_library
from .counters import Counters
from .emulator import Module

_STUB = Path(__file__).resolve().parent / "oracles" / "runtime_stub.cpp"
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
)


class HostCode:
    """The C functions of some CUDA and C++ files, with buffers as kernel addresses.

    Attributes:
        library: the host code, as ctypes sees it.
        modules: the PTX of each CUDA file.
        launched: (kernel, grid, counters) of the last run's launches, in order.
    """

    def __init__(self, sources: list[Path], arch: str, options: list[str]):
        """Compiles host code and PTX (kept between runs)."""
        texts, library = cuda_to_library(sources, arch, options, [_STUB])
        self.modules = [Module(text) for text in texts if ".entry" in text]
        self.library = ctypes.CDLL(str(library))
        self._by_kernel = {name: m for m in self.modules for name in m.kernels}
        self._launch = _LAUNCH(self._forward)
        self.library.emu_set_launch(self._launch)
        self._memory: dict[str, np.ndarray] = {}
        self._options: dict = {}
        self._failure: Exception | None = None
        self.launched: list[tuple[str, tuple[int, ...], Counters]] = []

    def run(self, function: str, sizes, memory: dict, **options) -> Counters:
        """Calls ``function(*sizes, *addresses of memory)``; returns the last launch's counters.

        Args:
            function: a C function that returns 0 where all went well.
            sizes: its first arguments, int or ctypes values.
            memory: buffers by name, None for a null pointer: its further arguments.
            options: of ``Module.launch``.
        """
        buffers = {name: value for name, value in memory.items() if value is not None}
        self._memory, self._options, self._failure, self.launched = buffers, options, None, []
        addresses = self.modules[0].addresses(buffers)
        status = getattr(self.library, function)(
            *sizes, *(ctypes.c_void_p(addresses.get(name)) for name in memory)
        )
        if self._failure:
            raise self._failure
        if status:
            raise RuntimeError(f"{function}{tuple(sizes)}: status {status}")
        return self.launched[-1][2]

    def host(self, function: str, sizes: tuple[int, ...], *arrays: np.ndarray) -> int:
        """Calls a function that launches nothing, on host memory."""
        return getattr(self.library, function)(
            *sizes, *(a.ctypes.data_as(ctypes.c_void_p) for a in arrays)
        )

    def _forward(self, name, grid, block, arguments, shared) -> int:
        try:
            name = name.decode()
            module = self._by_kernel[name]
            kernel = module.source.kernel(name)
            args = [ctypes.string_at(arguments[i], p.size) for i, p in enumerate(kernel.parameters)]
            counters = module.launch(
                name, grid[:3], block[:3], args, shared, memory=self._memory, **self._options
            )
            self.launched.append((name, tuple(grid[:3]), counters))
        except Exception as failure:  # carried over the C frames and raised again by run()
            self._failure = failure
            return 1
        return 0
