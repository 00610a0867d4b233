"""nvcc and Triton to PTX, kept by content hash between runs; and where nvcc is."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from .emulator import cache_directory

NO_NVCC = "nvcc is not found: set CUDA_HOME, or install the wheels that the Makefile names"


@functools.cache
def nvcc() -> str | None:
    """Path of nvcc: CUDA_HOME, PATH, /usr/local/cuda*, or the registry's nvidia-cuda-nvcc wheel."""
    homes = [os.environ[n] for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    homes += sorted((str(p) for p in Path("/usr/local").glob("cuda*")), reverse=True)
    homes += [str(p) for p in Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu1*")]
    for home in homes:
        if (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


def cutlass_includes() -> list[str] | None:
    """Include folders of CUTLASS's headers in the nvidia-cutlass wheel, None without it."""
    spec = find_spec("cutlass_library")
    if spec is None:
        return None
    source = Path(spec.origin).parent / "source"
    return [str(source / "include"), str(source / "tools" / "util" / "include")]


def _cached(key: str, suffix: str, make) -> Path:
    path = cache_directory() / f"{key}{suffix}"
    if not path.exists():
        made = path.with_name(f"{os.getpid()}-{path.name}")
        make(made)
        made.replace(path)
    return path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[:4000]}")


@functools.cache
def tool_version(tool: str) -> str:
    """What it says of itself."""
    return subprocess.run([tool, "--version"], capture_output=True, text=True).stdout


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _preprocessed(source: Path, arch: str, options: list[str]) -> str:
    """The text that the compiler sees, so that a changed header is a changed key."""
    command = [nvcc(), "-E", "-std=c++17", f"-arch={arch}", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[:4000]}")
    return done.stdout


def cuda_to_ptx(source: str | Path, arch: str, options: list[str] | None = None) -> str:
    """PTX of CUDA C++: a file's path, or the text itself.

    Args:
        source: path of a ``.cu`` file, or CUDA C++ text.
        arch: as nvcc's -arch: ``sm_80``, ``sm_90a``.
        options: further options of nvcc, such as ``-I``.

    Raises:
        RuntimeError: nvcc is absent, or does not compile this (its messages follow).
    """
    if nvcc() is None:
        raise RuntimeError(NO_NVCC)
    options = ["--expt-relaxed-constexpr", "-lineinfo", *(options or [])]
    if isinstance(source, str) and "\n" in source:
        text = source
        source = _cached(_key(text), ".cu", lambda p: p.write_text(text))
    source = Path(source)
    if any(o.startswith("-I") for o in options):
        text = _preprocessed(source, arch, options)
    else:
        text = source.read_text()
    key = _key(text, arch, *options, tool_version(nvcc()))
    command = [nvcc(), "-ptx", "-std=c++17", f"-arch={arch}", *options, str(source), "-o"]
    return _cached(key, ".ptx", lambda p: _run([*command, str(p)])).read_text()


def cuda_to_library(
    sources: list[Path], arch: str, options: list[str], extra: list[Path]
) -> tuple[list[str], Path]:
    """PTX of each CUDA file and a shared library of their host code, in one compilation.

    Args:
        sources: paths of ``.cu`` files, no two of one name.
        arch: as nvcc's -arch.
        options: further options of nvcc.
        extra: C++ files that stand in place of the CUDA runtime.
    """
    text = "".join(_preprocessed(p, arch, options) for p in (*sources, *extra))
    folder = cache_directory() / _key(text, arch, *options, tool_version(nvcc()))
    if not folder.exists():
        virtual = arch.replace("sm", "compute")
        made = Path(tempfile.mkdtemp(dir=cache_directory()))
        _run([
            nvcc(), "-shared", "-Xcompiler", "-fPIC", "-Xlinker", "-Bsymbolic", "-cudart", "none",
            "-std=c++17", f"-gencode=arch={virtual},code={virtual}", "-lineinfo",
            "--expt-relaxed-constexpr", "--keep", "--keep-dir", str(made), *options,
            *map(str, (*sources, *extra)), "-o", str(made / "library.so"),
        ])  # fmt: skip
        for kept in made.iterdir():
            if kept.suffix not in (".ptx", ".so"):
                kept.unlink()
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(folder)
    texts = [(folder / f"{p.stem}.ptx").read_text() for p in sources]
    return texts, folder / "library.so"


def triton_to_ptx(
    function, signature: dict, constants: dict, capability: int, aligned=(), **options
):
    """PTX of a Triton function without a GPU.

    Args:
        function: a ``triton.jit`` function.
        signature: types of its arguments: ``{"x": "*fp32", "n": "i32"}``.
        constants: values of its constexpr arguments.
        capability: 80 or 90.
        aligned: names of arguments that are multiples of 16.
        options: of Triton's backend: num_warps, num_stages.

    Returns:
        (PTX, metadata): metadata has ``name``, ``shared`` (bytes) and ``num_warps``.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    place = function.arg_names.index
    source = triton.compiler.ASTSource(
        function,
        {**signature, **dict.fromkeys(constants, "constexpr")},
        {(place(name),): value for name, value in constants.items()},
        {(place(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    return compiled.asm["ptx"], compiled.metadata
