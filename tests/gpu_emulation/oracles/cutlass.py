"""CUTLASS's GEMMs run by its own host code, in the emulator."""

from __future__ import annotations

from pathlib import Path

from ..compiler import cutlass_includes
from ..host import HostCode

HERE = Path(__file__).resolve().parent


class Oracle(HostCode):
    """One of the .cu files beside this."""

    def __init__(self, name: str, arch: str):
        """Compiles it against CUTLASS's headers."""
        options = [*(f"-I{p}" for p in cutlass_includes()), "--expt-relaxed-constexpr"]
        super().__init__([HERE / f"{name}.cu"], arch, options)
