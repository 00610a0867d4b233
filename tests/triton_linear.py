"""Triton's products compiled for a GPU that is not there, and run in the emulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gpu_emulation import Counters, Module
from gpu_emulation.compiler import triton_to_ptx
from torch import Tensor

from prunekern._triton import bitmask, csr, plan, sparse24
from prunekern._triton.plan import Chip, Plan
from prunekern.formats import FORMATS, compress
from prunekern.layouts import Packed, pack_reference
from prunekern.testing import random_weight

MODULES = {"sparse24": sparse24, "bitmask": bitmask, "csr": csr}
PLANS = {"sparse24": plan.plan, "bitmask": bitmask.plan, "csr": csr.plan}
KERNELS = {cls.stem: name for name, cls in FORMATS.items()}
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.int16: "i16",
    torch.uint16: "u16",
    torch.uint8: "u8",
}
# What ptxas of CUDA 12.4 and of every later one reads.
PTX_VERSION = 84
SMALL_CHIP = Chip(2)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: what it is compiled for, and what it gets."""

    function: object
    grid: tuple[int, ...]
    arguments: dict[str, object]
    constants: dict[str, object]
    options: dict[str, int]

    def signature(self) -> dict[str, str]:
        """Types of the arguments that the compiled kernel takes."""
        return {
            name: f"*{TYPES[value.dtype]}" if isinstance(value, Tensor) else "i32"
            for name, value in self.arguments.items()
            if value is not None
        }

    def all_constants(self) -> dict[str, object]:
        """Constants, and None for what is absent."""
        absent = {name: None for name, value in self.arguments.items() if value is None}
        return self.constants | absent

    def aligned(self) -> list[str]:
        """Arguments that Triton takes for multiples of 16, as it does at a real launch."""
        return [
            name
            for name, value in self.arguments.items()
            if isinstance(value, Tensor) or (value is not None and value % 16 == 0)
        ]

    def compile(self, capability: int):
        """(PTX, metadata) for a compute capability."""
        return triton_to_ptx(
            self.function,
            self.signature(),
            self.all_constants(),
            capability,
            self.aligned(),
            ptx_version=PTX_VERSION,
            **self.options,
        )

    def run(self, capability: int, **options) -> Counters:
        """Runs it in the emulator; tensors are written in place."""
        ptx, metadata = self.compile(capability)
        given = {name: value for name, value in self.arguments.items() if value is not None}
        return Module(ptx).launch(
            metadata.name,
            self.grid,
            32 * metadata.num_warps,
            [*given.values(), np.zeros(1, np.uint8), None],
            metadata.shared,
            names=[*given, "scratch", "profile"],
            **options,
        )


@dataclass(frozen=True)
class Case:
    """A product and where it goes."""

    x: Tensor
    weight: Tensor
    packed: Packed
    bias: Tensor | None
    out: Tensor
    plan: Plan

    @classmethod
    def make(
        cls, stem: str, M: int, N: int, K: int, dtype: torch.dtype, chip: Chip = SMALL_CHIP
    ) -> Case:
        """A random one, planned for a chip so small that K is cut where that pays."""
        return cls.of(stem, M, random_weight(KERNELS[stem], N, K, dtype), chip)

    @classmethod
    def of(cls, stem: str, M: int, weight: Tensor, chip: Chip = SMALL_CHIP) -> Case:
        """Of M tokens and a weight that the format takes."""
        (N, K), dtype = weight.shape, weight.dtype
        cut = PLANS[stem](M, N, -(-K // 64) * 64, dtype.itemsize, chip)
        split = cut.SPLIT_K > 1
        shape = (cut.SPLIT_K, M, N) if split else (M, N)
        return cls(
            x=torch.randn(M, K).to(dtype),
            weight=weight,
            packed=pack_reference(compress(weight, KERNELS[stem]), "triton"),
            bias=None if split else torch.randn(N).to(dtype),  # else add_parts adds it
            out=torch.full(shape, torch.nan, dtype=torch.float32 if split else dtype),
            plan=cut,
        )

    def launch(self) -> Launch:
        """Of the product's kernel."""
        module = MODULES[self.packed.stem]
        function = getattr(module, f"{self.packed.stem}_linear_kernel")
        grid, arguments, constants = module.linear_arguments(
            self.x, *self.packed.tensors, self.bias, self.out, self.plan
        )
        settings = self.plan.options()
        options = {name: settings.pop(name) for name in ("num_warps", "num_stages")}
        named = dict(zip(function.arg_names, arguments, strict=False))
        return Launch(function, grid(settings), named, constants | settings, options)

    def result(self) -> Tensor:
        """y, its parts added."""
        y = self.out.sum(0) if self.out.dim() == 3 else self.out
        return y.to(self.x.dtype)

    def instructions_a_1024_weights(self, counters: Counters) -> float:
        """The measure by which kernels are compared."""
        return counters.instructions / (self.weight.numel() / 1024)
