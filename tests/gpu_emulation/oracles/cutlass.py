"""CUTLASS's GEMMs run by its own host code, in the emulator."""

from __future__ import annotations

from pathlib import Path

from ..compiler import cutlass_includes
from ..counters import Counters
from ..host import HostCode

HERE = Path(__file__).resolve().parent


class Oracle(HostCode):
    """One of the .cu files beside this."""

    def __init__(self, name: str, arch: str):
        """Compiles it against CUTLASS's headers."""
        super().__init__([HERE / f"{name}.cu"], arch, [f"-I{p}" for p in cutlass_includes()])

    def run(self, function: str, sizes: tuple[int, ...], memory: dict, **options) -> Counters:
        """Calls ``function(*sizes, *addresses of memory)``; launch options as ``Module.launch``."""
        return super().run(function, [*sizes, *memory], memory, **options)
