"""The CUDA bitmask products run by their own launch code in the emulator: what tests share."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from cuda_linear import SOURCES, TESTS, LinearHost, Plan
from gpu_emulation import Counters
from torch import Tensor

from prunekern.formats import compress
from prunekern.layouts import pack_reference
from prunekern.testing import random_weight, uneven_weight, whole_numbers

FILES = ("bitmask_decode_sm80", "bitmask_prefill_sm80", "bitmask_decompress", "bitmask_sm80")
WEIGHT = ("values", "bitmask", "offsets")
_SIZES = 4 * [ctypes.c_int64]


@dataclass(frozen=True)
class Case:
    """A product: x [M, K], a dense weight [N, K] with zeros, the same packed, and a bias."""

    x: Tensor
    weight: Tensor
    packed: tuple[Tensor, Tensor, Tensor]
    bias: Tensor | None

    @property
    def tiles(self) -> float:
        """1024 weights each."""
        return self.weight.numel() / 1024


@functools.lru_cache(maxsize=64)
def _weight(N: int, K: int, dtype: torch.dtype, density: float, exact: bool):
    """(dense, packed): packing takes longer than most products."""
    weight = random_weight("bitmask", N, K, dtype, density, seed=N + K)
    if exact:
        weight = whole_numbers(weight)
    return weight, pack_reference(compress(weight, "bitmask"), "sm80").tensors


def case_of(weight: Tensor, M: int, *, packed=None, bias=True, exact=False) -> Case:
    """Random x and bias for a weight; `exact`: small whole numbers, whose sums are exact."""
    N, K = weight.shape
    generator = torch.Generator().manual_seed(1000 + M)
    x = torch.randn(M, K, generator=generator).to(weight.dtype)
    b = torch.randn(N, generator=generator).to(weight.dtype) if bias else None
    if exact:
        x, b = whole_numbers(x), whole_numbers(b) if bias else None
    packed = packed or pack_reference(compress(weight, "bitmask"), "sm80").tensors
    return Case(x, weight, packed, b)


def make_case(M, N, K, dtype, density=0.5, *, bias=True, exact=False) -> Case:
    """Random inputs, each weight kept with `density`."""
    weight, packed = _weight(N, K, dtype, density, exact)
    return case_of(weight, M, packed=packed, bias=bias, exact=exact)


def patterns(N, K):
    """Name -> a float weight with zeros where a pattern puts them."""
    full = random_weight("bitmask", N, K, torch.float32, 1.0)
    row, column, islands = (torch.zeros_like(full) for _ in range(3))
    row[N // 2], column[:, K // 2] = full[N // 2], full[:, K // 2]
    islands[64:80, 64:128] = full[64:80, 64:128]  # one full tile among empty panels
    islands[-1, -1] = 1
    checkers = full * (torch.arange(N)[:, None] + torch.arange(K)).remainder(2)
    lengths = (K * torch.rand(N, 1) ** 8).long()
    power_law = full * (torch.arange(K) < lengths)
    rows = full * (torch.arange(N)[:, None] % 3 == 1)
    return {
        "nothing": torch.zeros_like(full), "everything": full, "one row": row,
        "one column": column, "islands": islands, "checkers": checkers, "power law": power_law,
        "every third row": rows, "uneven": uneven_weight(N, K, torch.float32),
    }  # fmt: skip


class Linear(LinearHost):
    """The op's host code."""

    def __init__(self):
        """Compiles it."""
        sources = [SOURCES / f"{stem}.cu" for stem in FILES]
        super().__init__(sources, "sm_80", (), [TESTS / "cuda" / "bitmask_linear.cpp"])
        library = self.library
        library.workspace_bytes.argtypes, library.workspace_bytes.restype = _SIZES, ctypes.c_int64
        library.dense_tokens.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
        library.dense_tokens.restype = ctypes.c_int64
        library.plan.argtypes = [*_SIZES, ctypes.c_void_p]

    def plan(self, M: int, N: int, K: int, sms: int) -> Plan:
        """What runs for these sizes on so many multiprocessors."""
        fields = (ctypes.c_int64 * 6)()
        self.library.plan(M, N, K, sms, fields)
        return Plan(bool(fields[0]), *fields[1:])

    def dense_tokens(self, N: int, K: int, capability: int) -> int:
        """From how many on W is made dense."""
        return self.library.dense_tokens(N, K, capability)

    def workspace(self, M: int, N: int, K: int, sms: int) -> Tensor:
        """A new one for these sizes."""
        return self.new_workspace(self.library.workspace_bytes(M, N, K, sms))

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
        weight = dict(zip(WEIGHT, case.packed, strict=True))
        return self.multiply("linear", sizes, case, weight, workspace, **options)


@functools.cache
def linear() -> Linear:
    """Compiled once a process."""
    return Linear()
