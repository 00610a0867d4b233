"""Launches PTX kernels on the CPU: ``Module(text).launch(name, grid, block, args, smem_bytes)``."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import math
import operator
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from . import ptx
from .counters import Counters, RawBuffer, RawCounters
from .tensor_map import TensorMap

HERE = Path(__file__).resolve().parent
# KiB of shared memory that a block may opt in to (CUDA C++ Programming Guide, compute
# capabilities).
SHARED_LIMIT = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}


class EmulationError(RuntimeError):
    """The kernel did what the chip would not forgive: what, in which line, block and thread."""


class _Argument(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("host", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("writable", ctypes.c_int32),
        ("uninitialised", ctypes.c_int32),
    )


def cache_directory() -> Path:
    """Where engine and PTX are kept between runs: PRUNEKERN_TEST_CACHE or the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "prunekern-tests"
    directory = Path(os.environ.get("PRUNEKERN_TEST_CACHE", default))
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _build(library: Path) -> None:
    """Compiles the engine by CMake."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=tools)
    if cmake is None:
        raise RuntimeError("the emulator is built by CMake: pip install cmake ninja")
    with tempfile.TemporaryDirectory(dir=library.parent) as build:
        environment = {**os.environ, "PATH": tools}
        for command in (
            [cmake, "-S", str(HERE / "engine"), "-B", build, "-G", "Ninja"],
            [cmake, "--build", build],
        ):
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        (Path(build) / "libgpu_emulation.so").replace(library)


@functools.cache
def engine() -> ctypes.CDLL:
    """The C++ engine, built on first use, kept by the hash of its source and this CPU."""
    sources = sorted((HERE / "engine").iterdir())
    cpu = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0]
    key = hashlib.sha256(b"".join(p.read_bytes() for p in sources) + cpu.encode()).hexdigest()[:16]
    library = cache_directory() / f"engine-{key}.so"
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes start at once: one builds, all wait
        if not library.exists():
            _build(library)
    lib = ctypes.CDLL(str(library))
    lib.emu_decode.restype = ctypes.c_void_p
    lib.emu_decode.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    lib.emu_message.restype = ctypes.c_char_p
    lib.emu_unknown.restype = ctypes.c_char_p
    lib.emu_unknown.argtypes = [ctypes.c_void_p]
    return lib


# CUDA C++ Programming Guide, compute capabilities. The 1024 threads of a block bound its x and y.
_MOST = {"grid": {"x": 2**31 - 1, "y": 65535, "z": 65535}, "block": {"z": 64}}


def _triple(value, what: str) -> tuple[int, int, int]:
    try:
        values = tuple(map(operator.index, value if isinstance(value, tuple | list) else (value,)))
    except TypeError:
        raise TypeError(f"{what} must be whole numbers, not {value!r}") from None
    if not 1 <= len(values) <= 3 or any(v < 1 for v in values):
        raise ValueError(f"{what} must be one to three numbers of at least 1, not {value!r}")
    for axis, v in zip("xyz", values, strict=False):
        if v > _MOST[what].get(axis, v):
            raise ValueError(f"{what} may be at most {_MOST[what][axis]} in {axis}, not {value!r}")
    return values + (1,) * (3 - len(values))


def _memory(value) -> tuple[int, int, bool] | None:
    """(host address, bytes, writable) of a numpy array or a torch CPU tensor, else None."""
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise ValueError("a non-contiguous array: pass np.ascontiguousarray(...) of it")
        return value.ctypes.data, value.nbytes, value.flags.writeable
    if hasattr(value, "data_ptr"):
        if value.device.type != "cpu":
            raise ValueError(f"a tensor on {value.device}: the emulator runs on CPU tensors")
        if not value.is_contiguous():
            raise ValueError("a non-contiguous tensor: pass .contiguous() of it")
        return value.data_ptr(), value.numel() * value.element_size(), True
    return None


def _addresses(sizes) -> list[int]:
    """Addresses of buffers of these sizes: in order, with a gap after each."""
    sizes = list(sizes)
    bases = (ctypes.c_uint64 * len(sizes))()
    engine().emu_addresses((ctypes.c_uint64 * len(sizes))(*sizes), len(sizes), bases)
    return list(bases)


class Module:
    """PTX text with its kernels.

    Args:
        text: PTX as nvcc or Triton write it.
    """

    def __init__(self, text: str):
        """Raises ``ptx.PtxError`` where the text is not PTX."""
        self.source = ptx.Source(text)
        self._programs: dict[str, tuple[ptx.Kernel, int]] = {}
        self._globals = {
            name: np.frombuffer(v.data or bytes(v.size), np.uint8).copy()
            for name, v in self.source.globals.items()
            if v.size
        }
        bases = _addresses(len(v) for v in self._globals.values())
        for (name, _), base in zip(self._globals.items(), bases, strict=True):
            self.source.globals[name].offset = base

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels."""
        return self.source.kernels

    def kernel_named(self, part: str) -> str:
        """The one kernel whose name contains ``part``; LookupError if there is none or more."""
        found = [name for name in self.kernels if part in name]
        if len(found) != 1:
            raise LookupError(f"{len(found)} kernels contain {part!r}: {', '.join(self.kernels)}")
        return found[0]

    def unknown(self, name: str) -> list[str]:
        """Instructions of the kernel that would stop it if reached, as "line opcode"."""
        return engine().emu_unknown(self._program(name)[1]).decode().splitlines()

    def addresses(self, memory: dict) -> dict[str, int]:
        """Where ``launch(..., memory=memory)`` puts its buffers, in the kernel's address space."""
        sizes = [_memory(v)[1] for v in {**self._globals, **memory}.values()]
        return dict(zip(memory, _addresses(sizes)[len(self._globals) :], strict=True))

    def _program(self, name: str) -> tuple[ptx.Kernel, int]:
        if name not in self._programs:
            kernel = self.source.kernel(name)
            handle = engine().emu_decode(ptx.encode(kernel), name.encode())
            self._programs[name] = (kernel, handle)
        return self._programs[name]

    def launch(
        self, name, grid, block, args, smem_bytes: int = 0, *, seed: int = 0, races: bool = True,
        spread_poison: bool = False, resident: int = 4, limit: int = 20_000_000,
        names: list[str] | None = None, uninitialised: tuple[str, ...] = (),
        memory: dict | None = None,
    ) -> Counters:  # fmt: skip
        """Runs the kernel over the grid and returns its counters.

        Args:
            name: of the entry in the PTX.
            grid: blocks, one to three numbers.
            block: threads, one to three numbers, 1024 at most in all.
            args: one a parameter: numpy arrays and torch CPU tensors (contiguous; written in place)
                for pointers, int, float and bool for scalars, ``TensorMap`` for tensor maps, bytes
                for structs, None for a null pointer.
            smem_bytes: dynamic shared memory.
            seed: other than 0, the order of blocks and warps is shuffled by it.
            races: check shared and global memory for races.
            spread_poison: let uninitialised values and invalid metadata pass through an mma into
                the rows and columns of its result that they touch, instead of stopping: for
                kernels that compute on a tile's unused rows.
            resident: blocks that run at a time where one waits for another, or with a seed.
            limit: warp instructions that one block may run before it counts as endless.
            names: of the arguments in messages and counters (else "argument 0", ...).
            uninitialised: names of buffers that hold no values until the kernel writes them, such
                as a workspace.
            memory: further buffers by name, at ``addresses(memory)``: for pointers inside structs.

        Raises:
            KeyError: no such kernel.
            TypeError, ValueError: arguments, grid, block or shared memory that do not fit.
            EmulationError: a fault of the kernel.
        """
        kernel, handle = self._program(name)
        grid, block = _triple(grid, "grid"), _triple(block, "block")
        self._check_shape(kernel, block, smem_bytes)
        if len(args) != len(kernel.parameters):
            types = ", ".join(p.type for p in kernel.parameters)
            raise TypeError(
                f"{name} takes {len(kernel.parameters)} arguments ({types}), not {len(args)}"
            )
        buffers = [(n, *_memory(v)) for n, v in {**self._globals, **(memory or {})}.items()]
        slots: dict[int, int] = {}
        for i, (value, parameter) in enumerate(zip(args, kernel.parameters, strict=True)):
            is_map = isinstance(value, TensorMap)
            found = _memory(value.buffer if is_map else value)
            if found:
                if parameter.size != (128 if is_map else 8):
                    what = "tensor map" if is_map else "buffer"
                    raise TypeError(
                        f"argument {i} of {name} is a {what}, the parameter a .{parameter.type} "
                        f"of {parameter.size} bytes"
                    )
                slots[i] = len(buffers)
                buffers.append((names[i] if names else f"argument {i}", *found))
        if unknown := set(uninitialised) - {b[0] for b in buffers}:
            raise ValueError(f"uninitialised: no buffer is named {', '.join(sorted(unknown))}")
        bases = _addresses(b[2] for b in buffers)
        last = kernel.parameters[-1:]
        params = bytearray(sum(p.offset + p.size for p in last))
        for i, (value, parameter) in enumerate(zip(args, kernel.parameters, strict=True)):
            if isinstance(value, TensorMap):
                raw = value.encode(bases[slots[i]])
            elif i in slots:
                raw = struct.pack("<Q", bases[slots[i]])
            else:
                raw = _scalar(value, parameter, i, name)
            params[parameter.offset : parameter.offset + parameter.size] = raw
        table = (_Argument * len(buffers))(
            *(
                _Argument(n.encode(), host, size, writable, n in uninitialised)
                for n, host, size, writable in buffers
            )
        )
        special = (ctypes.c_int32 * len(kernel.special))(*kernel.special.values())
        counters, per_buffer = RawCounters(), (RawBuffer * len(buffers))()
        failed = engine().emu_launch(
            ctypes.c_void_p(handle), (ctypes.c_uint32 * 3)(*grid), (ctypes.c_uint32 * 3)(*block),
            bytes(params), ctypes.c_uint64(len(params)), table, len(buffers),
            ctypes.c_uint32(kernel.shared_bytes), ctypes.c_uint32(smem_bytes), special,
            len(special), ctypes.c_uint64(seed), ctypes.c_uint64(limit), ctypes.c_uint32(resident),
            int(races), int(spread_poison), ctypes.byref(counters), per_buffer,
        )  # fmt: skip
        if failed:
            message = engine().emu_message().decode()
            for number, file in self.source.files.items():
                message = message.replace(f" of file {number},", f" of {file},")
            raise EmulationError(message)
        return Counters.of(
            counters, [(b[0], raw) for b, raw in zip(buffers, per_buffer, strict=True)]
        )

    def _check_shape(self, kernel: ptx.Kernel, block, smem_bytes: int) -> None:
        threads = math.prod(block)
        if threads > 1024:
            raise ValueError(f"{threads} threads a block: 1024 at most")
        if kernel.required_block and block != kernel.required_block:
            raise ValueError(
                f"{kernel.name} was compiled for blocks of {kernel.required_block}, not {block}"
            )
        if kernel.maximum_block and threads > math.prod(kernel.maximum_block):
            raise ValueError(
                f"{kernel.name} was compiled for at most {math.prod(kernel.maximum_block)} threads"
            )
        digits = "".join(c for c in self.source.target if c.isdigit())
        limit = SHARED_LIMIT.get(int(digits or 0), 227) * 1024
        if smem_bytes < 0 or kernel.shared_bytes + smem_bytes > limit:
            raise ValueError(
                f"{kernel.shared_bytes} + {smem_bytes} bytes of shared memory: a block of "
                f"{self.source.target} has {limit}"
            )


def _scalar(value, parameter: ptx.Parameter, index: int, name: str) -> bytes:
    """The parameter's bytes; TypeError or ValueError where the value does not fit its type."""
    where = f"argument {index} of {name}: "
    size, kind = parameter.size, parameter.type
    if isinstance(value, bytes | bytearray):
        if len(value) != size:
            raise ValueError(f"{where}{len(value)} bytes for a parameter of {size}")
        return bytes(value)
    if value is None and size == 8:
        return bytes(8)
    if isinstance(value, np.floating):
        value = float(value)
    if isinstance(value, float) and not kind.startswith("f") and kind[0] != "b":
        raise TypeError(f"{where}a float for a .{kind}")
    if kind in ("f32", "f64") or isinstance(value, float):
        if size not in (4, 8) or not isinstance(value, int | float):
            raise TypeError(f"{where}{type(value).__name__} for a .{kind} of {size} bytes")
        return struct.pack("<f" if size == 4 else "<d", value)
    if isinstance(value, int | np.integer) and size <= 8:
        value = int(value)
        if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
            raise ValueError(f"{where}{value} does not fit {size} bytes")
        return (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    raise TypeError(f"{where}{type(value).__name__} for a .{kind} of {size} bytes")
