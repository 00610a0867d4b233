"""The CUDA 2:4 products run by their own launch code in the emulator: what tests and counts share.

A variant of the kernel is one more entry of `VARIANTS` and a line of cuda/sparse24_linear.cpp.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_emulation import Counters
from gpu_emulation.host import HostCode
from torch import Tensor

from prunekern.formats import compress
from prunekern.layouts import pack_reference
from prunekern.testing import random_weight, whole_numbers

TESTS = Path(__file__).resolve().parent
SOURCES = TESTS.parent / "csrc" / "cuda"
COUNTER_BYTES = 4 * 4096  # at the start of the workspace, before the slots (combine.cuh)
_SIZES = 4 * [ctypes.c_int64]


@dataclass(frozen=True)
class Variant:
    """A variant of the product.

    Attributes:
        arch: That its PTX is compiled for.
        sources: Its files in csrc/cuda.
        runs_on: What that PTX is assembled for.
        options: Further ones of nvcc.
        least_tokens: Below them it runs another variant's kernels.
    """

    arch: str
    sources: tuple[str, ...]
    runs_on: tuple[str, ...]
    options: tuple[str, ...] = ()
    least_tokens: int = 1

    @property
    def own_stems(self) -> list[str]:
        """Of its own files, and so of its kernels."""
        return [file.removesuffix(".cu") for file in self.sources if self.arch[3:] in file]


_SM80 = ("sparse24_decode_sm80.cu", "sparse24_prefill_sm80.cu", "sparse24_sm80.cu")
VARIANTS = {
    "sm80": Variant("sm_80", _SM80, ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")),
    "sm90a": Variant(
        "sm_90a",
        (*_SM80, "sparse24_prefill_sm90a.cu"),
        ("sm_90a",),
        ("-DPRUNEKERN_TEST_SM90A",),
        least_tokens=65,
    ),
}


@dataclass(frozen=True)
class Plan:
    """What runs for which sizes; `tiles` of y (row groups in decode) share out `column_tiles`."""

    decode: bool
    block_tokens: int
    tiles: int
    column_tiles: int
    blocks: int
    slot_bytes: int

    @property
    def kind(self) -> str:
        """How tiles are shared out among blocks."""
        if self.blocks == self.tiles:
            return "one block a tile"
        return "whole splits" if self.blocks % self.tiles == 0 else "stripes"


@dataclass(frozen=True)
class Case:
    """A product: x [M, K], a dense weight [N, K] with 2:4 zeros, the same packed, and a bias."""

    x: Tensor
    weight: Tensor
    values: Tensor
    meta: Tensor
    bias: Tensor | None

    @property
    def packed_bytes(self) -> int:
        """Of the packed weight."""
        return self.values.nbytes + self.meta.nbytes


@functools.lru_cache(maxsize=64)
def _weight(N: int, K: int, dtype: torch.dtype, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(dense, values, meta): packing takes longer than most products."""
    weight = random_weight("2:4", N, K, dtype, seed=N + K)
    if exact:
        weight = whole_numbers(weight)
    return weight, *pack_reference(compress(weight, "2:4"), "sm80").tensors


def make_case(M: int, N: int, K: int, dtype, *, bias=True, exact=False) -> Case:
    """Random inputs; `exact`: small whole numbers, whose sums do not depend on their order."""
    generator = torch.Generator().manual_seed(1000 + M)
    x = torch.randn(M, K, generator=generator).to(dtype)
    b = torch.randn(N, generator=generator).to(dtype) if bias else None
    if exact:
        x, b = whole_numbers(x), whole_numbers(b) if bias else None
    return Case(x, *_weight(N, K, dtype, exact), b)


class LinearHost(HostCode):
    """Host code of a product: what the harnesses of all formats share."""

    @staticmethod
    def new_workspace(size: int) -> Tensor:
        """So many bytes: counters at zero, slots that are NaN until something writes them."""
        workspace = torch.full((size,), 0xFF, dtype=torch.uint8)
        workspace[:COUNTER_BYTES] = 0
        return workspace

    def multiply(
        self, function: str, sizes: list[int], case, weight: dict[str, Tensor], workspace, **options
    ) -> tuple[Tensor, Counters]:
        """(y, counters) of ``function(*sizes, x, *weight, bias, y, workspace)``.

        Raises:
            AssertionError: A counter of the workspace is not zero afterwards.
        """
        y = torch.full((len(case.x), len(case.weight)), torch.nan, dtype=case.x.dtype)
        memory = {"x": case.x, **weight, "bias": case.bias, "y": y, "workspace": workspace}
        arguments = [*sizes, *(name if t is not None else None for name, t in memory.items())]
        memory = {name: tensor for name, tensor in memory.items() if tensor is not None}
        counters = self.run(function, arguments, memory, uninitialised=("y",), **options)
        assert not workspace[:COUNTER_BYTES].any()
        return y, counters


class Linear(LinearHost):
    """A variant's host code."""

    def __init__(self, name: str):
        """Compiles it."""
        self.variant = VARIANTS[name]
        sources = [SOURCES / file for file in self.variant.sources]
        shim = TESTS / "cuda" / "sparse24_linear.cpp"
        super().__init__(sources, self.variant.arch, self.variant.options, [shim])
        self._linear = f"linear_{name}"
        self._wgmma = name == "sm90a"  # whose tiles always have 128 tokens
        library = self.library
        library.workspace_bytes.argtypes, library.workspace_bytes.restype = _SIZES, ctypes.c_int64
        library.plan.argtypes = [*_SIZES, ctypes.c_int, ctypes.c_void_p]

    @property
    def kernels(self) -> list[str]:
        """Of all files."""
        return [name for module in self.modules for name in module.kernels]

    def plan(self, M: int, N: int, K: int, sms: int) -> Plan:
        """What runs for these sizes on so many multiprocessors."""
        fields = (ctypes.c_int64 * 6)()
        self.library.plan(M, N, K, sms, self._wgmma, fields)
        return Plan(bool(fields[0]), *fields[1:])

    def workspace_bytes(self, M: int, N: int, K: int, sms: int) -> int:
        """As the launcher asks for."""
        return self.library.workspace_bytes(M, N, K, sms)

    def workspace(self, M: int, N: int, K: int, sms: int) -> Tensor:
        """A new one for these sizes."""
        return self.new_workspace(self.workspace_bytes(M, N, K, sms))

    def product(
        self, case: Case, sms: int, workspace: Tensor | None = None, **options
    ) -> tuple[Tensor, Counters]:
        """(y, counters); options are those of ``Module.launch``.

        Raises:
            AssertionError: A counter of the workspace is not zero afterwards.
        """
        (M, K), N = case.x.shape, len(case.weight)
        if workspace is None:
            workspace = self.workspace(M, N, K, sms)
        sizes = [M, N, K, sms, int(case.x.dtype == torch.float16)]
        weight = {"values": case.values, "meta": case.meta}
        return self.multiply(self._linear, sizes, case, weight, workspace, **options)


@functools.cache
def linear(name: str) -> Linear:
    """A variant by name, compiled once a process."""
    return Linear(name)


def register_wavefronts(counters: Counters) -> float:
    """Of the data path to registers: those of shared memory, and of W by way of L1.

    Both move 128 bytes a clock and multiprocessor, one after the other.
    """
    weight_bytes = counters.reads["values"].asked + counters.reads["meta"].asked
    return sum(counters.wavefronts.values()) + weight_bytes / 128
