"""One run of each of CUTLASS's kernels on random inputs, judged against float64."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np

from .cutlass import Oracle
from .judge import Outcome, error_bound, share_of_bound

HALVES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}
# The last of each is off every tile.
DENSE_SHAPES = [(128, 128, 64), (256, 128, 256), (200, 136, 72)]
SPARSE_SHAPES = [(128, 128, 128), (256, 128, 256), (160, 72, 192)]
SPARSE_INT8_SHAPES = [(128, 128, 128), (256, 128, 512), (160, 72, 384)]
SM90_SPARSE_SHAPES = [(128, 128, 128), (256, 128, 256), (200, 136, 192)]


def random_24(rng, values, word):
    """(metadata: words of a row's 4-bit groups, low first; dense float64) of random positions."""
    rows, stored = values.shape
    kept = np.argsort(rng.random((rows, stored // 2, 4)), axis=2)[:, :, :2]
    kept.sort(axis=2)
    nibbles = (kept[..., 0] | kept[..., 1] << 2).astype(np.uint8)
    metadata = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).view(word)
    dense = np.zeros((rows, stored // 2, 4))
    np.put_along_axis(dense, kept, values.astype(float).reshape(rows, stored // 2, 2), 2)
    return metadata, dense.reshape(rows, 2 * stored)


def dense(oracle: Oracle, dtype: str, m: int, n: int, k: int, **options) -> Outcome:
    """D = A B, of either architecture; options as ``Module.launch``."""
    rng = np.random.default_rng(m + n + k)
    a = rng.standard_normal((m, k)).astype(HALVES[dtype])
    b = rng.standard_normal((n, k)).astype(HALVES[dtype])
    d = np.full((m, n), np.nan, np.float32)
    memory = {"A": a.view(np.uint16), "B": b.view(np.uint16), "D": d}
    counters = oracle.run(f"dense_{dtype}", (m, n, k), memory, **options)
    a, b = a.astype(float), b.astype(float).T
    return Outcome(counters, share_of_bound(d, a @ b, error_bound(a, b)))


def _reordered(oracle: Oracle, function: str, sizes, metadata) -> np.ndarray:
    """Metadata as CUTLASS's kernel reads it, padding included."""
    out = np.zeros(metadata.size + 4096, metadata.dtype)
    count = oracle.host(function, sizes, metadata, out)
    return out[:count].copy()


def sm80_sparse(oracle: Oracle, dtype: str, m: int, n: int, k: int, **options) -> Outcome:
    """D = A B with a 2:4 A whose metadata CUTLASS's host code puts in order."""
    rng = np.random.default_rng(m + n + k)
    values = rng.standard_normal((m, k // 2)).astype(HALVES[dtype])
    metadata, a = random_24(rng, values, np.uint16)
    b = rng.standard_normal((n, k)).astype(HALVES[dtype])
    d = np.full((m, n), np.nan, np.float32)
    memory = {
        "A": values.view(np.uint16),
        "E": _reordered(oracle, "reorder_f16", (m, n, k), metadata),
        "B": b.view(np.uint16),
        "D": d,
    }
    counters = oracle.run(f"sparse_{dtype}", (m, n, k), memory, **options)
    b = b.astype(float).T
    return Outcome(counters, share_of_bound(d, a @ b, error_bound(a, b)))


def sm80_sparse_int8(oracle: Oracle, m: int, n: int, k: int) -> Outcome:
    """The same of 8-bit integers: exact."""
    rng = np.random.default_rng(m + n + k)
    values = rng.integers(-128, 128, (m, k // 2)).astype(np.int8)
    metadata, a = random_24(rng, values, np.uint32)
    b = rng.integers(-128, 128, (n, k)).astype(np.int8)
    d = np.full((m, n), -1, np.int32)
    reordered = _reordered(oracle, "reorder_s8", (m, n, k), metadata)
    memory = {"A": values, "E": reordered, "B": b, "D": d}
    counters = oracle.run("sparse_s8", (m, n, k), memory, spread_poison=True)
    return Outcome(counters, share_of_bound(d, a @ b.astype(float).T, np.zeros((m, n))))


def sm90_sparse(oracle: Oracle, m: int, n: int, k: int) -> Outcome:
    """CUTLASS's compressor kernel makes what CUTLASS's GEMM reads; nothing of it is ours."""
    rng = np.random.default_rng(m + n + k)
    _, a = random_24(rng, rng.standard_normal((m, k // 2)).astype(np.float16), np.uint16)
    b = rng.standard_normal((n, k)).astype(np.float16)
    d = np.full((m, n), np.nan, np.float32)
    value_bytes, metadata_bytes = ctypes.c_size_t(), ctypes.c_size_t()
    oracle.library.compressed_bytes(
        m, n, k, ctypes.byref(value_bytes), ctypes.byref(metadata_bytes)
    )
    values = np.zeros(value_bytes.value // 2, np.float16)
    metadata = np.zeros(metadata_bytes.value, np.uint8)
    oracle.run("compress_f16", (m, n, k), {"A": a.astype(np.float16), "V": values, "E": metadata})
    # rows that pad M have no metadata: their results spread no further than themselves
    memory = {"V": values, "E": metadata, "B": b, "D": d}
    counters = oracle.run("sparse_f16", (m, n, k), memory, spread_poison=True, seed=m)
    b = b.astype(float).T
    return Outcome(counters, share_of_bound(d, a @ b, error_bound(a, b)))
