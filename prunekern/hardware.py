"""What this machine accelerates, what was built, and why not more."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field

import torch

from prunekern import _triton, ops
from prunekern.formats import DTYPES
from prunekern.layouts import LAYOUTS, RIVALS, device_of, why_not


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
        gpu_reasons: (format, variant for GPUs) -> why it does not run here, or "".
        chosen: (format, dtype) -> the layout that a weight on the CPU gets by default.
        chosen_gpu: The same on the first GPU; empty without one.
        problem: Why no compiled op could be loaded, or "".
        modelled: Sentences on what each storage should gain on the first GPU; empty where it is
            none of `prunekern.compare.roofline.CHIPS`.
    """

    cpu: str
    cores: int
    threads: int
    torch: str
    gpu: str
    build: dict[str, object] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    gpu_reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    chosen: dict[tuple[str, str], str] = field(default_factory=dict)
    chosen_gpu: dict[tuple[str, str], str] = field(default_factory=dict)
    problem: str = ""
    modelled: list[str] = field(default_factory=list)

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
            architectures = " ".join(build["cuda_architectures"])
            lines.append(
                f"CUDA     {build['cuda_status']}, for {architectures}"
                if build["cuda"]
                else f"CUDA     not built: {build['cuda_status']}"
            )
        for variant, lacks in self.missing.items():
            lines.append(f"{variant:<12} {'runs' if not lacks else 'needs ' + ', '.join(lacks)}")
        for (stem, variant), reason in self.gpu_reasons.items():
            lines.append(f"{variant:<12} {stem}: {reason or 'runs'}")
        for device, chosen in (("CPU", self.chosen), ("GPU", self.chosen_gpu)):
            if chosen:
                lines.append(f"layout of a weight on the {device} by default:")
            for (stem, dtype), layout in chosen.items():
                lines.append(f"  {stem:<13} {dtype:<9} {layout}")
        lines += self.modelled
        return "\n".join(lines)


def hardware() -> Hardware:
    """What this machine accelerates, what was built, and why not more."""
    build, missing, name = {}, {}, ""
    if ops.LIBRARY_ERROR is None:
        from prunekern import _C

        build, missing, name = _C.build_info(), _C.cpu_variants(), _C.cpu_name()
    return Hardware(
        cpu=name or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        gpu=_gpu(),
        build=build,
        missing=missing,
        gpu_reasons=_gpu_reasons(),
        chosen=_chosen("cpu"),
        chosen_gpu=_chosen("cuda") if torch.cuda.is_available() else {},
        problem=ops.LIBRARY_ERROR or "",
        modelled=_modelled(),
    )


def _chosen(device: str) -> dict[tuple[str, str], str]:
    return {
        (stem, str(dtype).removeprefix("torch.")): ops.default_layout(
            stem, torch.device(device), dtype
        )
        for stem in LAYOUTS
        for dtype in DTYPES
    }


def _gpu_reasons() -> dict[tuple[str, str], str]:
    return {
        (stem, layout): _gpu_reason(stem, layout)
        for stem, layouts in LAYOUTS.items()
        for layout in layouts + RIVALS.get(stem, ())
        if device_of(layout) == "cuda"
    }


def _gpu_reason(stem: str, layout: str) -> str:
    is_triton = layout == "triton"
    if is_triton and _triton.WHY_ABSENT:
        return _triton.WHY_ABSENT
    if torch.cuda.is_available():
        return why_not(stem, layout, ops.facts_of(torch.device("cuda"), torch.float16))
    if (stem, layout) not in ops.available("cuda"):
        return "not built"
    return f"{'installed' if is_triton else 'built'}, but there is no GPU"


def _modelled() -> list[str]:
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return []
    from prunekern.compare.expected import chip_named, sentences  # compare asks for hardware

    chip = chip_named(torch.cuda.get_device_name())
    return sentences(chip) if chip else []


def _gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this torch is a CPU build"
    if not torch.cuda.is_available():
        return f"none: torch was built for CUDA {torch.version.cuda} but finds no device"
    if torch.version.hip is not None:
        return f"{torch.cuda.get_device_name()}, ROCm {torch.version.hip}"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"
