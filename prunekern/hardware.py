"""What this machine accelerates, what was built, and why not more."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field

import torch

from prunekern import ops
from prunekern.formats import DTYPES
from prunekern.layouts import LAYOUTS


@dataclass(frozen=True)
class Hardware:
    """What `hardware` found.

    Attributes:
        cpu: The processor's own name.
        cores: Logical cores that this process may use.
        threads: What torch uses, see torch.set_num_threads.
        torch: Version.
        gpu: Name of the first GPU, or why there is none.
        build: Compiler, build type, torch built against, CUDA and why not; empty without a build.
        missing: Variant -> what the CPU lacks for it; empty if it runs.
        chosen: (format, dtype) -> the layout that a weight gets by default.
        problem: Why no compiled op could be loaded, or "".
    """

    cpu: str
    cores: int
    threads: int
    torch: str
    gpu: str
    build: dict[str, object] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    chosen: dict[tuple[str, str], str] = field(default_factory=dict)
    problem: str = ""

    def __str__(self) -> str:
        lines = [
            f"CPU      {self.cpu}, {self.cores} cores, torch {self.torch}, {self.threads} threads",
            f"GPU      {self.gpu}",
        ]
        if self.problem:
            lines.append(f"build    none: {self.problem}")
        else:
            build = self.build
            lines.append(
                f"build    {build['compiler']}, {build['build_type']}, for torch {build['torch']}"
            )
            lines.append(f"CUDA     {'built' if build['cuda'] else build['cuda_status']}")
        for variant, lacks in self.missing.items():
            lines.append(f"{variant:<12} {'runs' if not lacks else 'needs ' + ', '.join(lacks)}")
        lines.append("layout of a weight on the CPU by default:")
        for (stem, dtype), layout in self.chosen.items():
            lines.append(f"  {stem:<9} {dtype:<9} {layout}")
        return "\n".join(lines)


def hardware() -> Hardware:
    """What this machine accelerates, what was built, and why not more."""
    build, missing, name = {}, {}, ""
    if ops.LIBRARY_ERROR is None:
        from prunekern import _C

        build, missing, name = _C.build_info(), _C.cpu_variants(), _C.cpu_name()
    chosen = {
        (stem, str(dtype).removeprefix("torch.")): ops.default_layout(
            stem, torch.device("cpu"), dtype
        )
        for stem in LAYOUTS
        for dtype in DTYPES
    }
    return Hardware(
        cpu=name or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        gpu=_gpu(),
        build=build,
        missing=missing,
        chosen=chosen,
        problem=ops.LIBRARY_ERROR or "",
    )


def _gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this torch is a CPU build"
    if not torch.cuda.is_available():
        return f"none: torch was built for CUDA {torch.version.cuda} but finds no device"
    major, minor = torch.cuda.get_device_capability()
    return (
        f"{torch.cuda.get_device_name()} (sm_{major}{minor}); there are no GPU kernels yet, "
        "sparse layers run there by the plain torch reference"
    )
