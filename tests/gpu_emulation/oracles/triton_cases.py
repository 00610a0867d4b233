"""Each Triton kernel of triton_kernels.py against float64, for one compute capability."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from ..compiler import triton_to_ptx
from ..counters import Counters
from ..emulator import Module
from .judge import Outcome, error_bound, share_of_bound

MATMUL_SHAPES = [(64, 64, 64), (100, 72, 96), (130, 200, 40)]
MATMUL_PRECISIONS = [("fp16", "tf32"), ("bf16", "tf32"), ("fp32", "tf32"), ("fp32", "ieee")]
NUMBERS = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}


class Triton:
    """A kernel of triton_kernels.py compiled for one capability."""

    def __init__(self, name, signature, constants, capability, aligned=()):
        from . import triton_kernels  # here: shapes and names are needed without Triton too

        function = getattr(triton_kernels, name)
        ptx, self.metadata = triton_to_ptx(function, signature, constants, capability, aligned)
        self.module = Module(ptx)

    def __call__(self, grid, *args, **options) -> Counters:
        """Launches it with Triton's two scratch pointers after the arguments."""
        grid = (grid,) if isinstance(grid, int) else grid
        scratch = np.zeros(max(1, self.metadata.global_scratch_size * math.prod(grid)), np.uint8)
        return self.module.launch(
            self.metadata.name,
            grid,
            32 * self.metadata.num_warps,
            [*args, scratch, None],
            self.metadata.shared,
            **options,
        )


def _random():
    return np.random.default_rng(0)


def vector_add(capability: int) -> Outcome:
    """5001 elements: exact, each is rounded once."""
    signature = {"x": "*fp32", "y": "*fp32", "out": "*fp32", "n": "i32"}
    run = Triton("vector_add", signature, {"BLOCK": 1024}, capability, "x y out".split())
    x, y = _random().standard_normal((2, 5001)).astype(np.float32)
    out = np.full_like(x, np.nan)
    counters = run(5, x, y, out, 5001)
    return Outcome(counters, share_of_bound(out, (x + y).astype(float), np.zeros(5001)))


def softmax(capability: int) -> Outcome:
    """3 rows of 999."""
    signature = {"x": "*fp32", "out": "*fp32", "columns": "i32"}
    run = Triton("softmax", signature, {"BLOCK": 1024}, capability)
    x = _random().standard_normal((3, 999)).astype(np.float32)
    out = np.full_like(x, np.nan)
    counters = run(3, x, out, 999)
    weights = np.exp(x.astype(float) - x.max(1, keepdims=True))
    exact = weights / weights.sum(1, keepdims=True)
    return Outcome(counters, share_of_bound(out, exact, 2e-6 * exact))


def layer_norm(capability: int) -> Outcome:
    """3 rows of 1000 halves."""
    signature = dict(
        x="*fp16", weight="*fp16", bias="*fp16", out="*fp16", columns="i32", eps="fp32"
    )
    run = Triton("layer_norm", signature, {"BLOCK": 1024}, capability)
    rng = _random()
    x = rng.standard_normal((3, 1000)).astype(np.float16)
    weight, bias = rng.standard_normal((2, 1000)).astype(np.float16)
    out = np.full_like(x, np.nan)
    counters = run(3, x, weight, bias, out, 1000, 1e-5)
    wide = x.astype(float)
    normal = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    exact = normal * weight + bias
    return Outcome(counters, share_of_bound(out, exact, 2.0**-11 * np.abs(exact) + 1e-5))


def prefix_sum(capability: int) -> Outcome:
    """1000 integers: exact."""
    signature = {"x": "*i32", "out": "*i32", "n": "i32"}
    run = Triton("prefix_sum", signature, {"BLOCK": 1024}, capability)
    x = _random().integers(-50, 50, 1000).astype(np.int32)
    out = np.zeros_like(x)
    counters = run(1, x, out, 1000)
    return Outcome(counters, share_of_bound(out, np.cumsum(x), np.zeros(1000)))


def row_sum(capability: int) -> Outcome:
    """41 rows of 150."""
    signature = {"x": "*fp32", "out": "*fp32", "rows": "i32", "columns": "i32"}
    run = Triton("row_sum", signature, {"BM": 32, "BN": 64}, capability)
    x = _random().standard_normal((41, 150)).astype(np.float32)
    out = np.full(41, np.nan, np.float32)
    counters = run(2, x, out, 41, 150)
    ones = np.ones(150)
    return Outcome(counters, share_of_bound(out, x @ ones, error_bound(x.astype(float), ones)))


def histogram(capability: int) -> Outcome:
    """3000 integers by atomics: exact."""
    signature = {"x": "*i32", "counts": "*i32", "n": "i32"}
    run = Triton("histogram", signature, {"BLOCK": 1024}, capability)
    x = _random().integers(0, 37, 3000).astype(np.int32)
    counts = np.zeros(37, np.int32)
    counters = run(3, x, counts, 3000)
    return Outcome(counters, share_of_bound(counts, np.bincount(x, minlength=37), np.zeros(37)))


def matmul(capability: int, dtype: str, precision: str, m: int, n: int, k: int) -> Outcome:
    """tl.dot; of fp32 with precision "tf32", 13 bits of each factor are dropped."""
    types = dict.fromkeys(("m", "n", "k", "stride_am", "stride_bk", "stride_cm"), "i32")
    signature = {"a": f"*{dtype}", "b": f"*{dtype}", "c": "*fp32", **types}
    constants = {"BM": 64, "BN": 64, "BK": 32, "PRECISION": precision}
    run = Triton("matmul", signature, constants, capability, ("a", "b", "c"))
    number = NUMBERS[dtype]
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal((m, k)).astype(number), rng.standard_normal((k, n)).astype(number)
    c = np.full((m, n), np.nan, np.float32)
    raw = np.uint16 if dtype == "bf16" else number
    grid = (-(-m // 64), -(-n // 64))
    counters = run(grid, a.view(raw), b.view(raw), c, m, n, k, k, n, n)
    a, b = a.astype(float), b.astype(float)
    bound = error_bound(a, b) * (2**13 if precision == "tf32" and dtype == "fp32" else 1)
    return Outcome(counters, share_of_bound(c, a @ b, bound))


def matmul_descriptors(capability: int) -> Outcome:
    """130 x 48 x 72 by tensor descriptors: on sm_90 maps that the kernel makes itself."""
    signature = {"a": "*fp16", "b": "*fp16", "c": "*fp32", "m": "i32", "n": "i32", "k": "i32"}
    constants = {"BM": 64, "BN": 64, "BK": 64}
    run = Triton("matmul_descriptors", signature, constants, capability)
    rng = _random()
    a, b = (rng.standard_normal(s).astype(np.float16) for s in ((130, 72), (72, 48)))
    c = np.full((130, 48), np.nan, np.float32)
    counters = run((3, 1), a, b, c, 130, 48, 72)
    a, b = a.astype(float), b.astype(float)
    return Outcome(counters, share_of_bound(c, a @ b, error_bound(a, b)))


# All but matmul, which has sizes and types.
CASES = (vector_add, softmax, layer_norm, prefix_sum, row_sum, histogram, matmul_descriptors)
