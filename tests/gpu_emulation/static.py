"""What the compiler says of a kernel without running it: resources, occupancy, its main loop."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .compiler import nvcc


@dataclass(frozen=True)
class Resources:
    """One kernel as ptxas reports it; spill bytes are a thread's, shared bytes static."""

    registers: int
    spill_stores: int
    spill_loads: int
    shared_bytes: int
    barriers: int


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that one SM holds at a time, and every limit that stops one more block."""

    blocks: int
    warps: int
    limited_by: tuple[str, ...]


@dataclass(frozen=True)
class Instruction:
    """One line of SASS: opcode with modifiers, operands as text, the guard left out."""

    address: int
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a direct branch goes."""
        found = re.search(r"0x([0-9a-f]+)$", self.operands)
        return int(found[1], 16) if found and self.opcode.startswith("BRA") else None


@dataclass(frozen=True)
class _Chip:
    """An SM. Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".

    The fields are its maximum number of resident warps and of resident blocks, and the shared
    memory in KiB of an SM.
    """

    warps: int
    blocks: int
    shared_kib: int


_CHIPS = {
    "sm_75": _Chip(32, 16, 64),
    "sm_80": _Chip(64, 32, 164),
    "sm_86": _Chip(48, 16, 100),
    "sm_89": _Chip(48, 24, 100),
    "sm_90": _Chip(64, 32, 228),
    "sm_120": _Chip(48, 24, 100),
}
_WARP = 32
_PARTITIONS, _PARTITION_REGISTERS = 4, 16384  # a warp's registers lie in one of four files
_REGISTER_UNIT, _SHARED_UNIT = 256, 128  # what is given out at a time: a warp's, a block's
_RESERVED_SHARED = 1024  # bytes of each block that the driver keeps
# SASS whose count makes a loop the main loop. IMAD is not among it: it computes addresses.
_WORK = ("HMMA.", "HGMMA.", "IMMA.", "QMMA.", "FFMA", "HFMA2.BF16", "DFMA")


@functools.cache
def tool(name: str) -> str:
    """Path of ptxas or cuobjdump: beside nvcc, or in Triton's wheel.

    Raises:
        RuntimeError: in neither.
    """
    folders = [Path(nvcc()).parent] if nvcc() else []
    spec = find_spec("triton")
    if spec and spec.origin:
        folders.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    for folder in folders:
        if found := shutil.which(name, path=str(folder)):
            return found
    raise RuntimeError(f"{name} is not found: set CUDA_HOME or pip install triton")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[:4000]}")
    return done.stdout + done.stderr


@functools.lru_cache(maxsize=64)
def assemble(ptx: str, arch: str, options: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """(cubin, what ptxas -v says) of PTX; RuntimeError with its messages if it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        command = [tool("ptxas"), "-v", "-arch", arch, *options, str(source), "-o", str(cubin)]
        said = _run(*command)
        return cubin.read_bytes(), said


def resources(ptx: str, arch: str, options: tuple[str, ...] = ()) -> dict[str, Resources]:
    """Resources of each kernel of the PTX.

    Args:
        ptx: as ``cuda_to_ptx`` returns it.
        arch: as ptxas's -arch.
        options: further options of ptxas, such as ``-maxrregcount=32``.
    """
    out = {}
    _, said = assemble(ptx, arch, options)
    for part in said.split("Compiling entry function '")[1:]:

        def number(pattern: str, part=part) -> int:
            found = re.search(pattern, part)
            return int(found[1]) if found else 0

        out[part.split("'", 1)[0]] = Resources(
            registers=number(r"Used (\d+) registers"),
            spill_stores=number(r"(\d+) bytes spill stores"),
            spill_loads=number(r"(\d+) bytes spill loads"),
            shared_bytes=number(r"(\d+) bytes smem"),
            barriers=number(r"used (\d+) barriers"),
        )
    return out


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def occupancy(arch: str, registers: int, shared_bytes: int, threads: int) -> Occupancy:
    """How many blocks an SM holds, with all of the memory that L1 can give up given to shared.

    Args:
        arch: sm_75, sm_80, sm_86, sm_89, sm_90 or sm_120; a suffix, as of sm_90a, is ignored.
        registers: of a thread.
        shared_bytes: of a block, static and dynamic.
        threads: of a block.

    Returns:
        No blocks where one alone does not fit; ``limited_by`` then says why.
    """
    chip = _CHIPS[arch.rstrip("af")]
    warps = _up(threads, _WARP) // _WARP
    of_a_warp = _up(max(registers, 1) * _WARP, _REGISTER_UNIT)
    of_a_block = _up(shared_bytes + _RESERVED_SHARED, _SHARED_UNIT)
    limits = {
        "blocks": chip.blocks,
        "warps": chip.warps // warps,
        "registers": _PARTITION_REGISTERS // of_a_warp * _PARTITIONS // warps,
        "shared memory": chip.shared_kib * 1024 // of_a_block,
    }
    blocks = min(limits.values())
    binding = tuple(name for name, limit in limits.items() if limit == blocks)
    return Occupancy(blocks, blocks * warps, binding)


def sass(code: str | bytes, arch: str) -> dict[str, list[Instruction]]:
    """Machine code of each kernel of PTX text or of a cubin's bytes.

    Instructions that never execute (``@!PT``, put before cp.async by ptxas) are left out.
    """
    cubin = code if isinstance(code, bytes) else assemble(code, arch)[0]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = _run(tool("cuobjdump"), "-sass", file.name)
    line = re.compile(
        r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(?!!PT)!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", re.M
    )
    kernels = {}
    for part in listing.split("Function : ")[1:]:
        name, body = part.split("\n", 1)
        kernels[name.strip()] = [Instruction(int(a, 16), o, x) for a, o, x in line.findall(body)]
    return kernels


def main_loop(code: list[Instruction]) -> Counter[str]:
    """Opcodes of the innermost loop that does most of the arithmetic; empty without a loop.

    A loop is what lies between a branch backwards and its target. Innermost: no loop that itself
    does arithmetic lies within.
    """

    def work(loop: list[Instruction]) -> int:
        return sum(i.opcode.startswith(_WORK) for i in loop)

    loops = []
    for end in code:
        if end.target is not None and end.target < end.address:
            loops.append([i for i in code if end.target <= i.address <= end.address])
    loops = [loop for loop in loops if work(loop)]
    innermost = [
        loop
        for loop in loops
        if not any(
            other is not loop
            and loop[0].address <= other[0].address
            and other[-1].address <= loop[-1].address
            for other in loops
        )
    ]
    return Counter(i.opcode for i in max(innermost, key=work, default=[]))
