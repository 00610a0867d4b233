"""Triton's kernels compiled for a GPU that is not there, and run in the emulator, by their own host
code on CPU tensors."""

from __future__ import annotations

import functools
import importlib
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from gpu_emulation import Counters, Module
from gpu_emulation.compiler import triton_to_ptx
from torch import Tensor

from prunekern._triton import blocks
from prunekern._triton.plan import Chip

TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.uint16: "*u16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
PTX_VERSION = 84  # what ptxas of CUDA 12.4 and of every later one reads
EMULATED = (("cuda", 80, 32), ("cuda", 90, 32))


@dataclass
class Gpu:
    """Where kernels are compiled for, and what was launched there.

    Attributes:
        target: Backend, architecture and warp size.
        launches: (kernel's name, counters, PTX) of each launch that was run.
        shapes: (blocks, bytes of shared memory, threads) of each.
    """

    target: tuple[str, int | str, int]
    launches: list[tuple[str, Counters, str]] = field(default_factory=list)
    shapes: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def counters(self) -> Counters:
        """Of the only launch."""
        ((_, counters, _),) = self.launches
        return counters


class Compiled:
    """Stands where a Triton kernel does: `kernel[grid](...)` compiles it for a Gpu and runs it."""

    def __init__(self, kernel, gpu: Gpu) -> None:
        self.kernel, self.gpu = kernel, gpu
        self.constexprs = {p.name for p in kernel.params if p.is_constexpr}

    def __getitem__(self, grid):
        return functools.partial(self.launch, grid)

    def launch(self, grid, *arguments, num_warps=4, num_stages=3, **named) -> None:
        named = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
        constants = {n: v for n, v in named.items() if n in self.constexprs or v is None}
        given = {n: v for n, v in named.items() if n not in constants}
        signature = {
            n: TYPES[v.dtype] if isinstance(v, Tensor) else "i32" for n, v in given.items()
        }
        options = {"num_warps": num_warps, "num_stages": num_stages}
        if self.gpu.target not in EMULATED:
            self._compile_only(signature, constants, options)
            return
        # As at a real launch: what is a multiple of 16 is compiled for that.
        aligned = [n for n, v in given.items() if isinstance(v, Tensor) or v % 16 == 0]
        ptx, metadata = triton_to_ptx(
            self.kernel, signature, constants, self.gpu.target[1], aligned,
            ptx_version=PTX_VERSION, **options,
        )  # fmt: skip
        grid = grid(named) if callable(grid) else grid
        threads = 32 * metadata.num_warps
        counters = Module(ptx).launch(
            metadata.name,
            grid,
            threads,
            [*given.values(), np.zeros(1, np.uint8), None],
            metadata.shared,
            names=[*given, "scratch", "profile"],
        )
        self.gpu.launches.append((metadata.name, counters, ptx))
        self.gpu.shapes.append((math.prod(grid), metadata.shared, threads))

    def _compile_only(self, signature, constants, options) -> None:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        signature = signature | dict.fromkeys(constants, "constexpr")
        source = ASTSource(self.kernel, signature, constants)
        compile(source, target=GPUTarget(*self.gpu.target), options=options)


def put_on(monkeypatch, stem: str, target: tuple, chip: Chip) -> tuple[object, Gpu]:
    """(module of a format, where its kernels and those of blocks.py run until the test ends).

    Products are planned for the chip.
    """
    gpu = Gpu(target)
    module = importlib.import_module(f"prunekern._triton.{stem}")
    for place in (module, blocks):
        monkeypatch.setattr(place, "chip_of", lambda device: chip, raising=False)
    for place in (module, blocks):
        for name in [name for name in vars(place) if name.endswith("_kernel")]:
            monkeypatch.setattr(place, name, Compiled(getattr(place, name), gpu))
    return module, gpu
