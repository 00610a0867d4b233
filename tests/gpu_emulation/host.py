"""Host code of CUDA files run as it is: its launches come back here and go to the emulator."""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .compiler import cuda_to_library
from .counters import Counters
from .emulator import Module

_RUNTIME = Path(__file__).resolve().parent / "runtime_stub.cpp"
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
)


class HostCode:
    """Host functions of some CUDA and C++ files, with buffers as kernel addresses.

    Attributes:
        library: the host code, as ctypes sees it.
        modules: the PTX of each CUDA file.
        launched: (kernel, grid, counters) of the last run's launches, in order.
        threads, shared_bytes: of a block of the last launch; its dynamic shared memory.
    """

    def __init__(self, sources: Sequence[Path], arch: str, options: Sequence[str] = (), extra=()):
        """Compiles host code and PTX (kept between runs).

        Args:
            sources: paths of ``.cu`` files, no two of one name.
            arch: as nvcc's -arch.
            options: further options of nvcc.
            extra: C++ files for the library.
        """
        texts, self._path = cuda_to_library(sources, arch, list(options), [_RUNTIME, *extra])
        self.modules = [Module(text) for text in texts if ".entry" in text]
        self.library = ctypes.CDLL(str(self._path))
        self._by_kernel = {name: m for m in self.modules for name in m.kernels}
        self._launch = _LAUNCH(self._forward)
        self.library.emu_set_launch(self._launch)
        self._memory: dict[str, np.ndarray] = {}
        self._options: dict = {}
        self._failure: Exception | None = None
        self.launched: list[tuple[str, tuple[int, ...], Counters]] = []
        self.threads = self.shared_bytes = 0

    def run(self, function: str, args: Sequence, memory: dict, **options) -> Counters:
        """Calls a host function that launches kernels; returns the last launch's counters.

        Args:
            function: a C function, or a C++ one by its qualified name, which is not overloaded;
                its status is 0 where all went well.
            args: whole numbers, structs of ctypes, None for null, and names in ``memory``, each of
                which becomes that buffer's address.
            memory: buffers by name, as for ``Module.launch``.
            options: of ``Module.launch``.

        Raises:
            RuntimeError: the function returned another status.
            Exception: whatever ``Module.launch`` raised.
        """
        self._memory, self._options, self._failure, self.launched = memory, options, None, []
        addresses = self.modules[0].addresses(memory)

        def in_c(value):
            if value is None or isinstance(value, str):
                return ctypes.c_void_p(addresses[value] if value else None)
            # in 64 bits: a narrower parameter takes the low half of the register
            return ctypes.c_int64(value) if isinstance(value, int) else value

        status = self._function(function)(*map(in_c, args))
        if self._failure:
            raise self._failure
        if status:
            raise RuntimeError(f"{function}{tuple(args)}: status {status}")
        return self.launched[-1][2]

    def host(self, function: str, sizes: Sequence[int], *arrays: np.ndarray) -> int:
        """Calls a function that launches nothing, on host memory."""
        return getattr(self.library, function)(
            *sizes, *(a.ctypes.data_as(ctypes.c_void_p) for a in arrays)
        )

    def module_of(self, kernel: str) -> Module:
        """The one that a launched kernel is in."""
        return self._by_kernel[kernel]

    def _function(self, name: str):
        if "::" not in name:
            return self.library[name]
        mangled = "_ZN" + "".join(f"{len(part)}{part}" for part in name.split("::")) + "E"
        symbols = subprocess.run(
            ["nm", "-D", "--defined-only", str(self._path)], capture_output=True, text=True
        ).stdout.split()
        (symbol,) = (s for s in symbols if s.startswith(mangled))
        return self.library[symbol]

    def _forward(self, name, grid, block, arguments, shared) -> int:
        try:
            name = name.decode()
            module = self._by_kernel[name]
            kernel = module.source.kernel(name)
            args = [ctypes.string_at(arguments[i], p.size) for i, p in enumerate(kernel.parameters)]
            counters = module.launch(
                name, grid[:3], block[:3], args, shared, memory=self._memory, **self._options
            )
            self.threads, self.shared_bytes = math.prod(block[:3]), shared
            self.launched.append((name, tuple(grid[:3]), counters))
        except Exception as failure:  # carried over the C frames and raised again by run()
            self._failure = failure
            return 1
        return 0
