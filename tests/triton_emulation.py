"""Launches of the package's Triton kernels, compiled for a GPU, in the emulator."""

from __future__ import annotations

import functools

import torch
from gpu_emulation import Counters, Module
from gpu_emulation.compiler import triton_to_ptx
from gpu_emulation.static import Resources, resources

_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.uint16: "*u16",
    torch.uint8: "*u8",
}
# What the ptxas of CUDA 13.0 reads; Triton's own is newer.
_PTX = {80: {}, 90: {"ptx_version": 90}}


@functools.cache
def _compiled(function, signature: tuple, constants: tuple, aligned: tuple, capability, options):
    ptx, metadata = triton_to_ptx(
        function, dict(signature), dict(constants), capability, aligned,
        **dict(options), **_PTX[capability],
    )  # fmt: skip
    return Module(ptx), ptx, metadata


def launch(
    function, capability: int, grid: tuple, arguments: tuple, constants: dict, **options
) -> tuple[Counters, Resources]:
    """Runs a kernel as Triton would launch it: specialised to None and to multiples of 16.

    Args:
        function: Of the package.
        capability: 80 or 90.
        grid: Programs.
        arguments: Tensors, whole numbers and None; tensors are written in place.
        constants: Name -> value of the constexpr arguments.
        options: Of Triton's backend: num_warps, num_stages.

    Returns:
        Counters by the arguments' names, and what ptxas says of the kernel.
    """
    named = dict(zip(function.arg_names, arguments, strict=False))
    absent = {name: None for name, value in named.items() if value is None}
    named = {name: value for name, value in named.items() if value is not None}
    signature = tuple(
        (name, _TYPES[v.dtype] if isinstance(v, torch.Tensor) else "i32")
        for name, v in named.items()
    )
    aligned = tuple(n for n, v in named.items() if isinstance(v, torch.Tensor) or v % 16 == 0)
    module, ptx, metadata = _compiled(
        function, signature, tuple((constants | absent).items()), aligned, capability,
        tuple(options.items()),
    )  # fmt: skip
    counters = module.launch(
        metadata.name,
        grid,
        32 * metadata.num_warps,
        [*named.values(), torch.zeros(1, dtype=torch.uint8), None],
        metadata.shared,
        names=[*named, "scratch", "profile"],
    )
    (found,) = resources(ptx, f"sm_{capability}").values()
    return counters, found
