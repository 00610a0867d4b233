"""A .cu file run by its own host code: launches come back here and go to the emulator."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

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


class HostModule:
    """Host functions of a .cu file, with buffers as kernel addresses.

    Attributes:
        module: The kernels.
        library: The host code.
        counters: Of the last launch.
    """

    def __init__(self, source: Path, arch: str, options: Sequence[str] = (), extra=()):
        """Compiles host code and PTX (kept between runs).

        Args:
            source: Path of a ``.cu`` file.
            arch: As nvcc's -arch.
            options: Further options of nvcc.
            extra: Further C++ files for the library.
        """
        options = ["--expt-relaxed-constexpr", *options]
        self.ptx, self._path = cuda_to_library(source, arch, options, [_RUNTIME, *extra])
        self.module = Module(self.ptx)
        self.library = ctypes.CDLL(str(self._path))
        self._launch = _LAUNCH(self._forward)
        self.library.emu_set_launch(self._launch)
        self._memory: dict = {}
        self._options: dict = {}
        self._failure: Exception | None = None
        self.counters: Counters | None = None

    def run(self, function: str, args: Sequence, memory: dict, **options) -> Counters:
        """Calls a host function that launches kernels and returns a status, 0 for success.

        Args:
            function: A C function, or a C++ one by its qualified name, which is not overloaded.
            args: Whole numbers, structs of ctypes, None for null, and names in ``memory``, each of
                which becomes that buffer's address.
            memory: Buffers by name, as for ``Module.launch``.
            options: Of ``Module.launch``.

        Raises:
            RuntimeError: The function returned another status.
            Exception: Whatever ``Module.launch`` raised.
        """
        self._memory, self._options, self._failure = memory, options, None
        addresses = self.module.addresses(memory)

        def in_c(value):
            if value is None or isinstance(value, str):
                return ctypes.c_void_p(addresses[value] if value else None)
            # In 64 bits: a narrower parameter takes the low half of the register.
            return ctypes.c_int64(value) if isinstance(value, int) else value

        status = self._function(function)(*map(in_c, args))
        if self._failure:
            raise self._failure
        if status:
            raise RuntimeError(f"{function}{tuple(args)}: status {status}")
        return self.counters

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
            kernel = self.module.source.kernel(name)
            args = [ctypes.string_at(arguments[i], p.size) for i, p in enumerate(kernel.parameters)]
            self.counters = self.module.launch(
                name, grid[:3], block[:3], args, shared, memory=self._memory, **self._options
            )
        except Exception as failure:  # carried over the C frames and raised again by run()
            self._failure = failure
            return 1
        return 0
