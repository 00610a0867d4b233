"""What a launch did: instructions by class, tensor-core work, bytes and sectors, conflicts."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

# In the order of engine/program.h.
CLASSES = (
    "integer", "float", "half", "convert", "move", "predicate", "global", "shared", "local",
    "param", "async", "atomic", "mma", "mma_sparse", "control", "barrier", "shuffle",
)  # fmt: skip
_PAIR = ctypes.c_uint64 * 2


class RawCounters(ctypes.Structure):
    """The engine's struct Counters (machine.h)."""

    _fields_ = (
        ("by_class", ctypes.c_uint64 * len(CLASSES)),
        ("instructions", ctypes.c_uint64),
        ("macs", ctypes.c_uint64),
        ("sparse_macs", ctypes.c_uint64),
        ("atomics", ctypes.c_uint64),
        ("barriers", ctypes.c_uint64),
        ("warps", ctypes.c_uint64),
        ("busiest_warp", ctypes.c_uint64),
        ("shared_wavefronts", _PAIR),
        ("shared_ideal", _PAIR),
        ("ldmatrix_wavefronts", ctypes.c_uint64),
        ("ldmatrix_ideal", ctypes.c_uint64),
        ("async_wavefronts", ctypes.c_uint64),
        ("async_ideal", ctypes.c_uint64),
    )


class RawBuffer(ctypes.Structure):
    """The engine's struct BufferCounters (capi.cpp)."""

    _fields_ = tuple(
        (name, _PAIR) for name in ("requests", "asked", "distinct", "sectors", "lines")
    )


@dataclass
class Traffic:
    """One direction of one buffer.

    asked: bytes that lanes asked for; distinct: bytes of the buffer touched at least once; sectors
    and lines: 32-byte sectors and 128-byte lines, summed over requests (one a warp instruction).
    """

    requests: int = 0
    asked: int = 0
    distinct: int = 0
    sectors: int = 0
    lines: int = 0


@dataclass
class Counters:
    """Counts of one launch: warp instructions, and MACs as multiply-adds of stored values.

    Attributes:
        instructions: all of them, those whose guard turned every lane off included.
        by_class: instructions that ran, by the names in ``CLASSES``.
        macs, sparse_macs: of mma, and of mma.sp (stored values only).
        reads, writes: ``Traffic`` by buffer name, global memory.
        conflicts: wavefronts beyond the least possible, by ``load``, ``store``, ``ldmatrix`` and
            ``cp_async``.
        wavefronts: all of them, by the same names.
        warps: that ran.
        busiest_warp: instructions of the one with most.
    """

    instructions: int
    by_class: dict[str, int]
    macs: int
    sparse_macs: int
    atomics: int
    barriers: int
    wavefronts: dict[str, int]
    conflicts: dict[str, int]
    warps: int
    busiest_warp: int
    reads: dict[str, Traffic] = field(default_factory=dict)
    writes: dict[str, Traffic] = field(default_factory=dict)

    @property
    def balance(self) -> float:
        """Instructions of the busiest warp over those of a warp on average."""
        return self.busiest_warp * self.warps / self.instructions

    @classmethod
    def of(cls, raw: RawCounters, buffers: list[tuple[str, RawBuffer]]) -> Counters:
        """From the engine's structs."""
        pairs = {
            "load": (raw.shared_wavefronts[0], raw.shared_ideal[0]),
            "store": (raw.shared_wavefronts[1], raw.shared_ideal[1]),
            "ldmatrix": (raw.ldmatrix_wavefronts, raw.ldmatrix_ideal),
            "cp_async": (raw.async_wavefronts, raw.async_ideal),
        }
        out = cls(
            instructions=raw.instructions,
            by_class=dict(zip(CLASSES, raw.by_class, strict=True)),
            macs=raw.macs,
            sparse_macs=raw.sparse_macs,
            atomics=raw.atomics,
            barriers=raw.barriers,
            warps=raw.warps,
            busiest_warp=raw.busiest_warp,
            wavefronts={name: all_ for name, (all_, _) in pairs.items()},
            conflicts={name: all_ - least for name, (all_, least) in pairs.items()},
        )
        for name, buffer in buffers:
            for direction, table in enumerate((out.reads, out.writes)):
                table[name] = Traffic(
                    *(getattr(buffer, f)[direction] for f, _ in RawBuffer._fields_)
                )
        return out
