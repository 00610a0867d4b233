"""The CUDA product of CSR run by its own launch code in the emulator, for tests and counts."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from cuda_linear import COUNTER_BYTES, SOURCES, TESTS, LinearHost
from gpu_emulation import Counters
from torch import Tensor

from prunekern.formats import compress_csr
from prunekern.layouts import csr_simt, pack_reference
from prunekern.testing import random_weight, whole_numbers

COUNTERS = COUNTER_BYTES // 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of DType (kernels.h)
RUNS_ON = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_120")


@dataclass(frozen=True)
class Case:
    """A product: x [M, K], a dense weight [N, K], the same packed, and a bias."""

    x: Tensor
    weight: Tensor
    packed: tuple[Tensor, Tensor, Tensor]
    bias: Tensor | None

    @property
    def nnz(self) -> int:
        """Kept weights."""
        return int(self.weight.count_nonzero())

    @property
    def units(self) -> int:
        """Of work."""
        N, K = self.weight.shape
        return (len(self.packed[2]) - sum(csr_simt.fixed_words(N, K))) // 3


@dataclass(frozen=True)
class Plan:
    """What runs for which sizes, see csr_simt.h."""

    tokens: int
    token_tiles: int
    blocks: int
    group: int
    slots: int


def power_law(N: int, K: int) -> Tensor:
    """Which weights a pattern keeps whose longest row is full: the r-th keeps K / r^0.5."""
    generator = torch.Generator().manual_seed(N + K)
    rank = 1 + torch.randperm(N, generator=generator)
    return torch.rand(N, K, generator=generator) < (rank**-0.5).unsqueeze(1)


def _full_row(N, K):
    kept = torch.zeros(N, K, dtype=torch.bool)
    kept[N // 2] = True
    return kept


def _dense_column(N, K):
    kept = torch.zeros(N, K, dtype=torch.bool)
    kept[:, K // 3] = True
    return kept


def _empty_rows(N, K):
    kept = torch.rand(N, K, generator=torch.Generator().manual_seed(K)) < 0.3
    kept[::3] = False
    return kept


def _one_class(N, K):
    kept = torch.zeros(N, K, dtype=torch.bool)
    kept[:, 3::8] = True
    return kept


# Name -> which weights are kept of [N, K].
PATTERNS = {
    "nothing": lambda N, K: torch.zeros(N, K, dtype=torch.bool),
    "everything": lambda N, K: torch.ones(N, K, dtype=torch.bool),
    "one full row": _full_row,
    "one dense column": _dense_column,
    "rows without any": _empty_rows,
    "columns of one bank": _one_class,
    "power law": power_law,
}


def case_of(M: int, weight: Tensor, *, bias=True, exact=False) -> Case:
    """Random x and bias; `exact`: small whole numbers, whose sums do not depend on their order."""
    N, K = weight.shape
    generator = torch.Generator().manual_seed(1000 + M)
    x = torch.randn(M, K, generator=generator).to(weight.dtype)
    b = torch.randn(N, generator=generator).to(weight.dtype) if bias else None
    if exact:
        weight, x, b = whole_numbers(weight), whole_numbers(x), whole_numbers(b) if bias else None
    return Case(x, weight, pack_reference(compress_csr(weight), "simt").tensors, b)


def pattern_weight(pattern: str, N: int, K: int, dtype: torch.dtype) -> Tensor:
    """[N, K] with a pattern's zeros."""
    generator = torch.Generator().manual_seed(N * K)
    kept = PATTERNS[pattern](N, K)
    return torch.randn(N, K, generator=generator).masked_fill(~kept, 0).to(dtype)


@functools.lru_cache(maxsize=8)
def random_case(M: int, N: int, K: int, sparsity: float, dtype=torch.float16) -> Case:
    """Zeros at random, no bias."""
    weight = random_weight("csr", N, K, dtype, density=1 - sparsity)
    return case_of(M, weight, bias=False)


class Linear(LinearHost):
    """The kernel's host code."""

    def __init__(self):
        """Compiles it."""
        shim = TESTS / "cuda" / "csr_linear.cpp"
        super().__init__([SOURCES / "csr_simt.cu"], "sm_75", [], [shim])
        size = ctypes.c_int64
        library = self.library
        library.workspace_bytes.argtypes = [*(5 * [size]), ctypes.c_int]
        library.workspace_bytes.restype = size
        library.plan.argtypes = [*(7 * [size]), ctypes.c_void_p]
        library.shares.argtypes = [ctypes.c_uint32, ctypes.c_uint32, *(2 * [ctypes.c_void_p])]

    def plan(self, M, N, K, units, sms, element_bytes=2, counters=COUNTERS) -> Plan:
        """What runs for these sizes on so many multiprocessors."""
        fields = (ctypes.c_int64 * 5)()
        self.library.plan(M, N, K, units, sms, element_bytes, counters, fields)
        return Plan(*fields)

    def plan_of(self, case: Case, sms: int) -> Plan:
        """The same for a case."""
        (M, K), N = case.x.shape, len(case.weight)
        return self.plan(M, N, K, case.units, sms, case.x.element_size())

    def workspace(self, case: Case, sms: int) -> Tensor:
        """A new one for a case."""
        (M, K), N = case.x.shape, len(case.weight)
        dtype = DTYPES.index(case.x.dtype)
        return self.new_workspace(self.library.workspace_bytes(M, N, K, case.units, sms, dtype))

    def product(
        self, case: Case, sms: int, workspace: Tensor | None = None, **options
    ) -> tuple[Tensor, Counters]:
        """(y, counters of the last launch); options are those of ``Module.launch``.

        Raises:
            AssertionError: A counter of the workspace is not zero afterwards.
        """
        (M, K), N = case.x.shape, len(case.weight)
        if workspace is None:
            workspace = self.workspace(case, sms)
        sizes = [M, N, K, case.units, sms, DTYPES.index(case.x.dtype)]
        values, columns, crow = case.packed
        weight = {"values": values, "col_indices": columns.view(torch.int16), "crow_indices": crow}
        return self.multiply("linear", sizes, case, weight, workspace, **options)


@functools.cache
def linear() -> Linear:
    """Compiled once a process."""
    return Linear()
