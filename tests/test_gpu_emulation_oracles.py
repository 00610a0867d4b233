"""The emulator judged by kernels that nobody here wrote: CUTLASS and Triton."""

import numpy as np
import pytest

ml_dtypes = pytest.importorskip("ml_dtypes")

from gpu_emulation import Module  # noqa: E402
from gpu_emulation.compiler import cutlass_includes, triton_to_ptx  # noqa: E402

pytestmark = pytest.mark.gpu_emulation
HALVES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}
DENSE_SHAPES = [(128, 128, 64), (256, 128, 256), (200, 136, 72)]
SPARSE_SHAPES = [(128, 128, 128), (256, 128, 256), (160, 72, 192)]
SPARSE_INT8_SHAPES = [(128, 128, 128), (256, 128, 512), (160, 72, 384)]


@pytest.fixture(scope="module")
def sm80(nvcc):
    if cutlass_includes() is None:
        pytest.fail("CUTLASS's headers are not installed: pip install --no-deps nvidia-cutlass")
    from gpu_emulation.oracles.cutlass import Oracle

    return Oracle("cutlass_sm80", "sm_80")


def error_bound(a, b):
    """Sum of |a||b| times fp32's unit, for a sum in any order."""
    return (np.abs(a) @ np.abs(b)) * 2.0**-23 * 2 + 1e-30


def random_24(rng, values, word):
    """(metadata: words of a row's 4-bit groups, low first; dense float64), random positions."""
    rows, stored = values.shape
    kept = np.argsort(rng.random((rows, stored // 2, 4)), axis=2)[:, :, :2]
    kept.sort(axis=2)
    nibbles = (kept[..., 0] | kept[..., 1] << 2).astype(np.uint8)
    metadata = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).view(word)
    dense = np.zeros((rows, stored // 2, 4))
    np.put_along_axis(dense, kept, values.astype(float).reshape(rows, stored // 2, 2), 2)
    return metadata, dense.reshape(rows, 2 * stored)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("m, n, k", DENSE_SHAPES)
def test_cutlass_sm80_dense(sm80, dtype, m, n, k):
    rng = np.random.default_rng(m + n + k)
    a = rng.standard_normal((m, k)).astype(HALVES[dtype])
    b = rng.standard_normal((n, k)).astype(HALVES[dtype])
    d = np.full((m, n), np.nan, np.float32)
    memory = {"A": a.view(np.uint16), "B": b.view(np.uint16), "D": d}
    counters = sm80.run(f"dense_{dtype}", (m, n, k), memory, spread_poison=True)
    a, b = a.astype(float), b.astype(float).T
    assert (np.abs(d - a @ b) <= error_bound(a, b)).all()
    assert counters.reads["A"].distinct == 2 * m * k
    assert counters.writes["D"].distinct == 4 * m * n
    assert not any(counters.conflicts.values())  # CUTLASS's swizzles have none


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("m, n, k", SPARSE_SHAPES)
def test_cutlass_sm80_sparse(sm80, dtype, m, n, k):
    rng = np.random.default_rng(m + n + k)
    values = rng.standard_normal((m, k // 2)).astype(HALVES[dtype])
    metadata, dense = random_24(rng, values, np.uint16)
    b = rng.standard_normal((n, k)).astype(HALVES[dtype])
    d = np.full((m, n), np.nan, np.float32)
    reordered = np.zeros(metadata.size + 4096, np.uint16)
    count = sm80.host("reorder_f16", (m, n, k), metadata, reordered)
    memory = {
        "A": values.view(np.uint16),
        "E": reordered[:count].copy(),
        "B": b.view(np.uint16),
        "D": d,
    }
    counters = sm80.run(f"sparse_{dtype}", (m, n, k), memory, spread_poison=True)
    b = b.astype(float).T
    assert (np.abs(d - dense @ b) <= error_bound(dense, b)).all()
    assert counters.sparse_macs and not counters.macs


@pytest.mark.parametrize("m, n, k", SPARSE_INT8_SHAPES)
def test_cutlass_sm80_sparse_int8(sm80, m, n, k):
    rng = np.random.default_rng(m + n + k)
    values = rng.integers(-128, 128, (m, k // 2)).astype(np.int8)
    metadata, dense = random_24(rng, values, np.uint32)
    b = rng.integers(-128, 128, (n, k)).astype(np.int8)
    d = np.full((m, n), -1, np.int32)
    reordered = np.zeros(metadata.size + 4096, np.uint32)
    count = sm80.host("reorder_s8", (m, n, k), metadata, reordered)
    memory = {"A": values, "E": reordered[:count].copy(), "B": b, "D": d}
    counters = sm80.run("sparse_s8", (m, n, k), memory, spread_poison=True)
    np.testing.assert_array_equal(d, dense @ b.astype(float).T)
    assert counters.sparse_macs and not counters.macs


def test_cutlass_reads_the_canonical_metadata_alike(sm80):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((32, 32)).astype(np.float16)
    metadata, dense = random_24(rng, values, np.uint16)
    out = np.zeros((32, 64), np.float16)
    sm80.host("uncompress_f16", (32, 64), values, metadata, out)
    np.testing.assert_array_equal(out, dense)


class Triton:
    """A Triton kernel compiled for one capability."""

    def __init__(self, function, signature, constants, capability, aligned=()):
        ptx, self.metadata = triton_to_ptx(function, signature, constants, capability, aligned)
        self.module = Module(ptx)

    def __call__(self, grid, *args, **options):
        name = self.metadata.name
        missing = len(self.module.source.kernel(name).parameters) - len(args)
        return self.module.launch(
            name,
            grid,
            32 * self.metadata.num_warps,
            [*args, *[None] * missing],  # Triton's scratch pointers, unused
            self.metadata.shared,
            **options,
        )


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton", reason="Triton is not installed")
    from gpu_emulation.oracles import triton_kernels

    return triton_kernels


pointers = pytest.mark.parametrize("capability", [80, 90])


@pointers
def test_triton_vector_add(kernels, capability):
    signature = {"x": "*fp32", "y": "*fp32", "out": "*fp32", "n": "i32"}
    run = Triton(kernels.vector_add, signature, {"BLOCK": 1024}, capability, "x y out".split())
    x, y = np.random.default_rng(0).standard_normal((2, 5001)).astype(np.float32)
    out = np.full_like(x, np.nan)
    counters = run(5, x, y, out, 5001)
    np.testing.assert_array_equal(out, x + y)
    assert counters.reads["argument 0"].distinct == x.nbytes


@pointers
def test_triton_softmax(kernels, capability):
    signature = {"x": "*fp32", "out": "*fp32", "columns": "i32"}
    run = Triton(kernels.softmax, signature, {"BLOCK": 1024}, capability)
    x = np.random.default_rng(0).standard_normal((3, 999)).astype(np.float32)
    out = np.full_like(x, np.nan)
    run(3, x, out, 999)
    weights = np.exp(x.astype(float) - x.max(1, keepdims=True))
    np.testing.assert_allclose(out, weights / weights.sum(1, keepdims=True), rtol=2e-6)


@pointers
def test_triton_layer_norm(kernels, capability):
    signature = dict(
        x="*fp16", weight="*fp16", bias="*fp16", out="*fp16", columns="i32", eps="fp32"
    )
    run = Triton(kernels.layer_norm, signature, {"BLOCK": 1024}, capability)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 1000)).astype(np.float16)
    weight, bias = rng.standard_normal((2, 1000)).astype(np.float16)
    out = np.full_like(x, np.nan)
    run(3, x, weight, bias, out, 1000, 1e-5)
    wide = x.astype(float)
    normal = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out, normal * weight + bias, atol=4e-3)


@pointers
def test_triton_scan(kernels, capability):
    run = Triton(
        kernels.prefix_sum, {"x": "*i32", "out": "*i32", "n": "i32"}, {"BLOCK": 1024}, capability
    )
    x = np.random.default_rng(0).integers(-50, 50, 1000).astype(np.int32)
    out = np.zeros_like(x)
    run(1, x, out, 1000)
    np.testing.assert_array_equal(out, np.cumsum(x))


@pointers
def test_triton_reduction(kernels, capability):
    signature = {"x": "*fp32", "out": "*fp32", "rows": "i32", "columns": "i32"}
    run = Triton(kernels.row_sum, signature, {"BM": 32, "BN": 64}, capability)
    x = np.random.default_rng(0).standard_normal((41, 150)).astype(np.float32)
    out = np.full(41, np.nan, np.float32)
    run(2, x, out, 41, 150)
    np.testing.assert_allclose(out, x.astype(float).sum(1), atol=1e-5)


@pointers
def test_triton_atomics(kernels, capability):
    signature = {"x": "*i32", "counts": "*i32", "n": "i32"}
    run = Triton(kernels.histogram, signature, {"BLOCK": 1024}, capability)
    x = np.random.default_rng(0).integers(0, 37, 3000).astype(np.int32)
    counts = np.zeros(37, np.int32)
    counters = run(3, x, counts, 3000)
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=37))
    assert counters.atomics == 3000


MATMULS = [
    (80, "fp16", "tf32"),
    (80, "bf16", "tf32"),
    (80, "fp32", "tf32"),
    (80, "fp32", "ieee"),
    (90, "fp32", "ieee"),
]


@pytest.mark.parametrize("capability, dtype, precision", MATMULS)
@pytest.mark.parametrize("m, n, k", [(64, 64, 64), (100, 72, 96), (130, 200, 40)])
def test_triton_matmul(kernels, capability, dtype, precision, m, n, k):
    types = dict.fromkeys(("m", "n", "k", "stride_am", "stride_bk", "stride_cm"), "i32")
    signature = {"a": f"*{dtype}", "b": f"*{dtype}", "c": "*fp32", **types}
    constants = {"BM": 64, "BN": 64, "BK": 32, "PRECISION": precision}
    run = Triton(kernels.matmul, signature, constants, capability, ("a", "b", "c"))
    number = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}[dtype]
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal((m, k)).astype(number), rng.standard_normal((k, n)).astype(number)
    c = np.full((m, n), np.nan, np.float32)
    grid = (-(-m // 64), -(-n // 64))
    raw = np.uint16 if dtype == "bf16" else number
    run(grid, a.view(raw), b.view(raw), c, m, n, k, k, n, n)
    a, b = a.astype(float), b.astype(float)
    bound = error_bound(a, b) * (2**13 if precision == "tf32" and dtype == "fp32" else 1)
    assert (np.abs(c - a @ b) <= bound).all()


def test_triton_descriptors_sm80(kernels):
    signature = {"a": "*fp16", "b": "*fp16", "c": "*fp32", "m": "i32", "n": "i32", "k": "i32"}
    constants = {"BM": 64, "BN": 64, "BK": 64}
    run = Triton(kernels.matmul_descriptors, signature, constants, 80)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float16) for s in ((130, 72), (72, 48)))
    c = np.full((130, 48), np.nan, np.float32)
    run((3, 1), a, b, c, 130, 48, 72)
    a, b = a.astype(float), b.astype(float)
    assert (np.abs(c - a @ b) <= error_bound(a, b)).all()
