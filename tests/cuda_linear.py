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

from prunekern.formats import (
    FORMATS,
    PER_ROW,
    QuantizedSparse24,
    Sparse24,
    compress,
    decompress,
    dequantize,
    from_whole,
)
from prunekern.layouts import ROUND_X, pack_reference
from prunekern.testing import (
    assert_close_to_float64,
    assert_close_to_rounded,
    random_weight,
    whole_numbers,
)

TESTS = Path(__file__).resolve().parent
SOURCES = TESTS.parent / "csrc" / "cuda"
COUNTER_BYTES = 4 * 4096  # at the start of the workspace, before the slots (combine.cuh)
_SIZES = 4 * [ctypes.c_int64]


@dataclass(frozen=True)
class Variant:
    """A variant of the product.

    Attributes:
        kernel: The format.
        layout: The variant's own name, in those of its launcher and its kernels.
        runs_on: What its PTX is assembled for, first what it is compiled for.
        sources: Its files in csrc/cuda.
        least_tokens: Below them it runs another variant's kernels.
    """

    kernel: str
    layout: str
    runs_on: tuple[str, ...]
    sources: tuple[str, ...]
    least_tokens: int = 1

    @property
    def stem(self) -> str:
        """Of the format."""
        return FORMATS[self.kernel].stem

    @property
    def rounds_x(self) -> bool:
        """To 8 bits, token by token."""
        return self.layout in ROUND_X

    @property
    def arch(self) -> str:
        """That its PTX is compiled for."""
        return self.runs_on[0]


_SM80 = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
VARIANTS = {
    "sm80": Variant("2:4", "sm80", _SM80, ("sparse24_sm80.cu",)),
    "sm90a": Variant(
        "2:4", "sm90a", ("sm_90a",), ("sparse24_sm80.cu", "sparse24_prefill_sm90a.cu"), 65
    ),
    "int8-sm80": Variant("2:4-int8", "sm80", _SM80, ("sparse24_int8_sm80.cu",)),
    "int4-sm80": Variant("2:4-int4", "sm80", _SM80, ("sparse24_int4_sm80.cu",)),
    "int8-sm80a8": Variant("2:4-int8", "sm80a8", _SM80, ("sparse24_int8_sm80a8.cu",)),
}
WEIGHT = ("values", "meta", "scales")  # the names of its buffers
GROUP_SIZES = (32, 64, 128, PER_ROW)  # inputs that share a scale


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
    """A product: x [M, K], a dense weight [N, K] with 2:4 zeros, the same packed, and a bias.

    `dequantized` is the weight in float32, before it is rounded to the dtype.
    """

    x: Tensor
    weight: Tensor
    dequantized: Tensor
    packed: dict[str, Tensor]
    bias: Tensor | None

    @property
    def packed_bytes(self) -> int:
        """Of the packed weight."""
        return sum(t.nbytes for t in self.packed.values())


@functools.lru_cache(maxsize=64)
def _weight(
    kernel: str, layout: str, N: int, K: int, dtype: torch.dtype, exact: bool, group_size: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(dense, the same in float32, packed): packing takes longer than most products."""
    weight = random_weight("2:4", N, K, dtype, seed=N + K)
    if exact:
        weight = whole_numbers(weight)
    c = compress(weight, "2:4")
    if kernel != "2:4":
        c = quantized(c, FORMATS[kernel], exact, group_size)
    tensors = pack_reference(c, layout).tensors
    packed = dict(zip(WEIGHT, tensors, strict=False))
    return decompress(c), decompress(c).float() if kernel == "2:4" else dequantize(c), packed


def quantized(c: Sparse24, cls: type[QuantizedSparse24], exact: bool, group_size: int):
    """Whole numbers at the places of another weight; `exact`: its own, with whole scales.

    Each group has another scale, of either sign, so that one taken for another shows.
    """
    N, K = c.shape
    groups = 1 if group_size == PER_ROW else -(-K // group_size)
    generator = torch.Generator().manual_seed(N + K)
    signs = 1 - 2 * torch.randint(2, (N, groups), generator=generator)
    if exact:
        numbers, scales = c.values, torch.randint(1, 4, (N, groups), generator=generator)
    else:
        least, most = (-127, 127) if cls.bits == 8 else (-8, 7)
        normal = torch.randn(c.values.shape, generator=generator) * most / 2
        numbers = normal.round().clamp(least, most).masked_fill(c.values == 0, 0.0)
        scales = (0.5 + torch.rand(N, groups, generator=generator)) / most / K**0.5
    return from_whole(cls, numbers.char(), c.meta, (signs * scales).to(c.dtype), c.shape)


def make_case(
    M: int,
    N: int,
    K: int,
    dtype,
    kernel="2:4",
    layout="sm80",
    *,
    bias=True,
    exact=False,
    group_size=PER_ROW,
) -> Case:
    """Random inputs; `exact`: small whole numbers, whose sums do not depend on their order."""
    generator = torch.Generator().manual_seed(1000 + M)
    x = torch.randn(M, K, generator=generator).to(dtype)
    b = torch.randn(N, generator=generator).to(dtype) if bias else None
    if exact:
        x, b = whole_numbers(x), whole_numbers(b) if bias else None
    return Case(x, *_weight(kernel, layout, N, K, dtype, exact, group_size), b)


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
        v = self.variant
        launcher = f"-DPRUNEKERN_TEST_LAUNCHER={v.stem}_linear_{v.layout}"
        super().__init__(sources, v.arch, [launcher], [shim])
        self._wgmma = v.layout == "sm90a"  # whose tiles always have 128 tokens
        library = self.library
        library.workspace_bytes.argtypes, library.workspace_bytes.restype = _SIZES, ctypes.c_int64
        library.rounded_bytes.argtypes, library.rounded_bytes.restype = _SIZES[:2], ctypes.c_int64
        library.plan.argtypes = [*_SIZES, ctypes.c_int, ctypes.c_void_p]

    @property
    def kernels(self) -> list[str]:
        """Of all files."""
        return [name for module in self.modules for name in module.kernels]

    def case(self, M: int, N: int, K: int, dtype, **options) -> Case:
        """A product of its format, see `make_case`."""
        v = self.variant
        if v.rounds_x:
            options["group_size"] = PER_ROW
        layout = v.layout if v.rounds_x else "sm80"  # which sm90a has as well
        return make_case(M, N, K, dtype, v.kernel, layout, **options)

    def assert_right(self, y: Tensor, case: Case, what: object = "") -> None:
        """Raises AssertionError unless y is near enough to the exact product."""
        if self.variant.rounds_x:
            assert_close_to_rounded(y, case.x, case.dequantized, case.bias, what)
        else:
            assert_close_to_float64(y, case.x, case.weight, case.bias, what)

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
        weight = {name: case.packed.get(name) for name in (*WEIGHT, "rounded")}
        scale_count = 0
        if self.variant.rounds_x:
            size = self.library.rounded_bytes(M, K)
            weight["rounded"] = torch.full((size,), 0xFF, dtype=torch.uint8)
        elif weight["scales"] is not None:
            scale_count = weight["scales"].shape[1]
        sizes = [M, N, K, sms, scale_count, int(case.x.dtype == torch.float16)]
        return self.multiply("linear", sizes, case, weight, workspace, **options)


@functools.cache
def linear(name: str) -> Linear:
    """A variant by name, compiled once a process."""
    return Linear(name)


def register_wavefronts(counters: Counters) -> float:
    """Of the data path to registers: those of shared memory, and of W by way of L1.

    Both move 128 bytes a clock and multiprocessor, one after the other.
    """
    weight_bytes = sum(counters.reads[n].asked for n in WEIGHT if n in counters.reads)
    return sum(counters.wavefronts.values()) + weight_bytes / 128
