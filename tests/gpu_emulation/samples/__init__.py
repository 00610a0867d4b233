"""Kernels that show one feature of the emulator each: their source, how they run, what is right.

``SAMPLES[name].run(launch, **shape)`` launches a sample and compares its result with numpy in
float64; ``launch`` has ``Module.launch``'s arguments, bound to a module and to a seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunekern.formats import compress_sparse24

from ..compiler import cuda_to_ptx
from ..counters import Counters
from ..tensor_map import TensorMap

HERE = Path(__file__).resolve().parent


class WrongResult(AssertionError):
    """A sample ran to its end and computed something else than numpy."""


@dataclass(frozen=True)
class Run:
    """What a launch left behind: its counters and the bytes of its output."""

    counters: Counters
    output: bytes


@dataclass(frozen=True)
class Sample:
    """How a sample is run and judged: ``run(launch, **shape)`` at each of ``shapes``.

    The first shape has every ragged edge: mutants run at it.
    """

    run: Callable[..., Run]
    shapes: tuple[dict[str, Any], ...]
    arch: str = "sm_80"


def source(name: str) -> str:
    """The sample's text with our headers in place, so that a header can be mutated as well."""
    seen: set[str] = set()

    def inline(file: str) -> str:
        seen.add(file)
        text = (HERE / file).read_text().replace("#pragma once\n", "\n")
        lines = []
        for number, line in enumerate(text.splitlines(), 1):
            included = re.fullmatch(r'#include "(.+)"', line)
            if not included:
                lines.append(line)
            elif included[1] not in seen:
                lines += [inline(included[1]), f'#line {number + 1} "{file}"']
        return "\n".join([f'#line 1 "{file}"', *lines])

    return inline(f"{name}.cu") + "\n"


def ptx(name: str) -> str:
    """PTX of the sample for its architecture."""
    return cuda_to_ptx(source(name), SAMPLES[name].arch)


def _compare(actual: np.ndarray, expected: np.ndarray, bound) -> bytes:
    """The actual bytes; WrongResult where they differ by more than the bound, or are NaN."""
    wrong = ~(np.abs(actual.astype(float) - expected) <= bound)
    if wrong.any():
        first = tuple(map(int, np.argwhere(wrong)[0]))
        raise WrongResult(
            f"{wrong.sum()} of {wrong.size} elements are wrong, first {first}: "
            f"{actual[first]} instead of {expected[first]}"
        )
    return actual.tobytes()


def _normal(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def _unset(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def _sum_bound(magnitude: np.ndarray) -> np.ndarray:
    """For a sum in fp32, in any order, of terms whose magnitudes sum to this."""
    return magnitude * 2.0**-21


def _saxpy(launch, n: int) -> Run:
    x, y = _normal(2, n)
    x, y = x.copy(), y.copy()
    expected = 2.5 * x.astype(float) + y
    counters = launch("saxpy", 3, 64, [n, 2.5, x, y], names=["n", "a", "x", "y"])
    return Run(counters, _compare(y, expected, 1e-6 * (1 + np.abs(expected))))


def _reduce(launch, n: int, blocks: int, threads: int) -> Run:
    x, sums, positives = _normal(n), _unset(blocks), np.full(blocks, -1, np.int32)
    counters = launch("reduce", blocks, threads, [n, x, sums, positives])
    padded = np.zeros(-(-n // (blocks * threads)) * blocks * threads)
    padded[:n] = x
    shares = padded.reshape(-1, blocks, threads)
    bound = _sum_bound(np.abs(shares).sum((0, 2)))
    output = _compare(sums, shares.sum((0, 2)), bound)
    return Run(counters, output + _compare(positives, (shares > 0).sum((0, 2)), 0))


def _transpose(launch, kernel: str, rows: int, columns: int) -> Run:
    x, out = _normal(rows, columns), _unset(columns, rows)
    grid = (-(-columns // 32), -(-rows // 32))
    names = ["rows", "columns", "in", "out"]
    counters = launch(f"transpose_{kernel}", grid, (32, 8), [rows, columns, x, out], names=names)
    return Run(counters, _compare(out, x.T.astype(float), 0))


def _histogram(launch, n: int, bins: int) -> Run:
    x = np.random.default_rng(n).integers(0, bins, n).astype(np.uint8)
    total = np.zeros(bins, np.int32)
    counters = launch("histogram", 3, 96, [n, bins, x, total], 4 * bins)
    return Run(counters, _compare(total, np.bincount(x, minlength=bins), 0))


def _gemm_mma(launch, m: int, n: int, k: int) -> Run:
    a, b, c = _normal(m, k, dtype=np.float16), _normal(k, n, dtype=np.float16), _unset(m, n)
    grid = (-(-n // 64), -(-m // 64))
    names = ["m", "n", "k", "A", "B", "C"]
    counters = launch("gemm_mma", grid, 128, [m, n, k, a, b, c], 3 * 2 * 8192, names=names)
    a, b = a.astype(float), b.astype(float)
    return Run(counters, _compare(c, a @ b, _sum_bound(np.abs(a) @ np.abs(b))))


def two_of_four(rows: int, columns: int) -> torch.Tensor:
    """A random fp16 weight with two elements kept of each group of four."""
    weight = torch.from_numpy(_normal(rows, columns, dtype=np.float16))
    order = np.random.default_rng(columns).random((rows, columns // 4, 4)).argsort(-1)
    return weight * torch.from_numpy((order < 2).reshape(rows, columns))


def _sparse(launch, kernel: str, grid, smem_bytes: int, m: int, n: int, k: int) -> Run:
    weight = two_of_four(m, k)
    stored = compress_sparse24(weight)
    meta = stored.meta.numpy().view(np.uint16)
    x, c = _normal(n, k, dtype=np.float16), _unset(m, n)
    names = ["m", "n", "k", "values", "metadata", "X", "C"]
    args = [m, n, k, stored.values.numpy(), meta, x, c]
    counters = launch(kernel, grid, 128, args, smem_bytes, names=names)
    w, x = weight.numpy().astype(float), x.astype(float).T
    return Run(counters, _compare(c, w @ x, _sum_bound(np.abs(w) @ np.abs(x))))


def _sparse_mma(launch, m: int, n: int, k: int) -> Run:
    return _sparse(launch, "sparse_mma", (-(-n // 64), -(-m // 64)), 3 * 12288, m, n, k)


def _split_k(launch, rows: int, k: int, splits: int) -> Run:
    a, x, y = _normal(rows, k), _normal(k), _unset(rows)
    blocks = -(-rows // 4)
    parts, tickets = _unset(splits, rows), np.zeros(blocks, np.int32)
    names = ["rows", "k", "A", "x", "parts", "tickets", "y"]
    args = [rows, k, a, x, parts, tickets, y]
    counters = launch("split_k", (blocks, splits), 128, args, names=names, uninitialised=("parts",))
    a, x = a.astype(float), x.astype(float)
    return Run(counters, _compare(y, a @ x, _sum_bound(np.abs(a) @ np.abs(x))))


def _mirrored(launch, kernel: str, n: int) -> Run:
    x, out = _normal(n), _unset(n)
    padded = np.zeros(-(-n // 96) * 96)
    padded[:n] = x
    tiles = padded.reshape(-1, 96)
    counters = launch(kernel, 1, 128, [n, x, out], names=["n", "x", "out"])
    return Run(counters, _compare(out, (tiles + tiles[:, ::-1]).ravel()[:n], 1e-6))


def _named_barriers(launch, n: int) -> Run:
    return _mirrored(launch, "named_barriers", n)


def _mbarrier_pipeline(launch, n: int) -> Run:
    return _mirrored(launch, "mbarrier_pipeline", n)


def _wgmma_dense(launch, m: int, n: int, k: int) -> Run:
    a, x, c = _normal(m, k, dtype=np.float16), _normal(n, k, dtype=np.float16), _unset(m, n)
    names = ["m", "n", "k", "A", "X", "C"]
    grid = (-(-n // 32), -(-m // 64))
    counters = launch("wgmma_dense", grid, 128, [m, n, k, a, x, c], names=names)
    a, x = a.astype(float), x.astype(float).T
    return Run(counters, _compare(c, a @ x, _sum_bound(np.abs(a) @ np.abs(x))))


def _wgmma_sparse(launch, m: int, n: int, k: int) -> Run:
    return _sparse(launch, "wgmma_sparse", (-(-n // 32), -(-m // 64)), 0, m, n, k)


def _tensor_tile(launch, rows: int, columns: int) -> Run:
    x, out = _normal(rows, columns, dtype=np.float16), np.full((columns, rows), np.nan, np.float16)
    maps = [TensorMap(tensor, (64, 64), swizzle=128) for tensor in (x, out)]
    grid = -(-columns // 64)
    counters = launch("tensor_tile", grid, 128, [rows, *maps], names=["rows", "in", "out"])
    padded = np.zeros((-(-rows // 64), 64, columns))
    padded.reshape(-1, columns)[:rows] = x
    sums = (padded + padded[:, ::-1]).reshape(-1, columns)[:rows]
    return Run(counters, _compare(out, sums.T.astype(np.float16), 0))


def _collatz(value: int) -> int:
    steps = 0
    while value != 1:
        value, steps = 3 * value + 1 if value % 2 else value // 2, steps + 1
    return steps


def _warp_divergence(launch, n: int) -> Run:
    x = np.random.default_rng(n).integers(1, 1000, n).astype(np.int32)
    out = np.full(n, -1, np.int32)
    counters = launch("warp_divergence", -(-n // 64), 64, [n, x, out], names=["n", "x", "out"])
    steps = np.array([_collatz(int(v)) for v in x])
    steps = np.where((np.arange(n) % 2 == 1) & (steps > 50), -steps, steps)
    partner = np.arange(n) ^ 2
    expected = np.where(partner < n, steps[np.minimum(partner, n - 1)], 0)
    return Run(counters, _compare(out, expected, 0))


SAMPLES = {
    "saxpy": Sample(_saxpy, ({"n": 1003}, {"n": 3}, {"n": 768})),
    "reduce": Sample(
        _reduce,
        (
            {"n": 1001, "blocks": 3, "threads": 224},
            {"n": 5, "blocks": 1, "threads": 32},
            {"n": 4096, "blocks": 2, "threads": 1024},
        ),
    ),
    "transpose": Sample(
        _transpose,
        (
            {"kernel": "padded", "rows": 70, "columns": 41},
            {"kernel": "plain", "rows": 70, "columns": 41},
            {"kernel": "padded", "rows": 1, "columns": 33},
        ),
    ),
    "histogram": Sample(_histogram, ({"n": 1999, "bins": 61}, {"n": 64, "bins": 256})),
    "gemm_mma": Sample(
        _gemm_mma,
        ({"m": 70, "n": 72, "k": 264}, {"m": 1, "n": 8, "k": 8}, {"m": 128, "n": 64, "k": 192}),
    ),
    "sparse_mma": Sample(
        _sparse_mma,
        ({"m": 70, "n": 67, "k": 272}, {"m": 1, "n": 1, "k": 16}, {"m": 64, "n": 128, "k": 192}),
    ),
    "split_k": Sample(
        _split_k,
        ({"rows": 7, "k": 501, "splits": 3}, {"rows": 4, "k": 64, "splits": 1}),
    ),
    "named_barriers": Sample(_named_barriers, ({"n": 1000}, {"n": 96}, {"n": 1})),
    "warp_divergence": Sample(_warp_divergence, ({"n": 83}, {"n": 1}, {"n": 128})),
    "mbarrier_pipeline": Sample(
        _mbarrier_pipeline, ({"n": 1000}, {"n": 96}, {"n": 4}), arch="sm_90a"
    ),
    "tensor_tile": Sample(
        _tensor_tile,
        ({"rows": 136, "columns": 72}, {"rows": 8, "columns": 8}, {"rows": 64, "columns": 128}),
        arch="sm_90a",
    ),
    "wgmma_dense": Sample(
        _wgmma_dense,
        ({"m": 70, "n": 37, "k": 200}, {"m": 1, "n": 1, "k": 8}, {"m": 64, "n": 64, "k": 128}),
        arch="sm_90a",
    ),
    "wgmma_sparse": Sample(
        _wgmma_sparse,
        ({"m": 70, "n": 37, "k": 208}, {"m": 1, "n": 1, "k": 16}, {"m": 64, "n": 64, "k": 256}),
        arch="sm_90a",
    ),
}
