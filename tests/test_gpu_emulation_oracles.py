"""The emulator judged by kernels that nobody here wrote: CUTLASS and Triton."""

from importlib.util import find_spec

import numpy as np
import pytest
from conftest import absent
from gpu_emulation.compiler import cutlass_includes
from gpu_emulation.oracles import cutlass_cases as cutlass
from gpu_emulation.oracles import triton_cases
from gpu_emulation.oracles.cutlass import Oracle
from gpu_emulation.oracles.judge import share_of_bound

pytestmark = pytest.mark.gpu_emulation
halves = pytest.mark.parametrize("dtype", cutlass.HALVES)


def oracle(name, arch):
    if cutlass_includes() is None:
        absent("CUTLASS's headers are not installed: pip install --no-deps nvidia-cutlass")
    return Oracle(name, arch)


@pytest.fixture(scope="module")
def sm80(nvcc):
    return oracle("cutlass_sm80", "sm_80")


@pytest.fixture(scope="module")
def sm90_dense(nvcc):
    return oracle("cutlass_sm90_dense", "sm_90a")


@pytest.fixture(scope="module")
def sm90_sparse(nvcc):
    return oracle("cutlass_sm90_sparse", "sm_90a")


@pytest.mark.parametrize(
    "actual, exact, bound, share",
    [
        ([1.0, 2.5], [1.0, 2.0], [1.0, 2.0], 0.25),
        ([1.0], [1.0], [0.0], 0),
        ([1.5], [1.0], [0.0], np.inf),
        ([np.nan], [1.0], [1.0], np.inf),
    ],
)
def test_errors_are_shares_of_their_bounds(actual, exact, bound, share):
    assert share_of_bound(*map(np.array, (actual, exact, bound))) == share


@halves
@pytest.mark.parametrize("m, n, k", cutlass.DENSE_SHAPES)
def test_cutlass_sm80_dense(sm80, dtype, m, n, k):
    run = cutlass.dense(sm80, dtype, m, n, k, spread_poison=True)
    assert run.error <= 1
    assert run.counters.reads["A"].distinct == 2 * m * k
    assert run.counters.writes["D"].distinct == 4 * m * n
    assert not any(run.counters.conflicts.values())  # CUTLASS's swizzles have none


@halves
@pytest.mark.parametrize("m, n, k", cutlass.SPARSE_SHAPES)
def test_cutlass_sm80_sparse(sm80, dtype, m, n, k):
    run = cutlass.sm80_sparse(sm80, dtype, m, n, k, spread_poison=True)
    assert run.error <= 1
    assert run.counters.sparse_macs and not run.counters.macs


@pytest.mark.parametrize("m, n, k", cutlass.SPARSE_INT8_SHAPES)
def test_cutlass_sm80_sparse_int8(sm80, m, n, k):
    run = cutlass.sm80_sparse_int8(sm80, m, n, k)
    assert run.error == 0
    assert run.counters.sparse_macs and not run.counters.macs


def test_cutlass_reads_the_canonical_metadata_alike(sm80):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((32, 32)).astype(np.float16)
    metadata, dense = cutlass.random_24(rng, values, np.uint16)
    out = np.zeros((32, 64), np.float16)
    sm80.host("uncompress_f16", (32, 64), values, metadata, out)
    np.testing.assert_array_equal(out, dense)


@pytest.mark.slow  # half a minute of nvcc
@halves
@pytest.mark.parametrize("m, n, k", cutlass.DENSE_SHAPES)
def test_cutlass_sm90_dense(sm90_dense, dtype, m, n, k):
    run = cutlass.dense(sm90_dense, dtype, m, n, k, seed=m)
    assert run.error <= 1
    assert run.counters.macs == -(-m // 128) * -(-n // 128) * -(-k // 64) * 128 * 128 * 64
    assert run.counters.writes["D"].distinct == 4 * m * n


@pytest.mark.slow  # half a minute of nvcc
@pytest.mark.parametrize("m, n, k", cutlass.SM90_SPARSE_SHAPES)
def test_cutlass_sm90_sparse(sm90_sparse, m, n, k):
    run = cutlass.sm90_sparse(sm90_sparse, m, n, k)
    assert run.error <= 1
    assert run.counters.sparse_macs and not run.counters.macs


@pytest.fixture(scope="module")
def triton():
    if find_spec("triton") is None:
        absent("Triton is not installed: pip install triton")
    return triton_cases


capabilities = pytest.mark.parametrize("capability", [80, 90])


@capabilities
def test_triton_vector_add(triton, capability):
    run = triton.vector_add(capability)
    assert run.error == 0
    assert run.counters.reads["argument 0"].distinct == 4 * 5001


@capabilities
def test_triton_atomics(triton, capability):
    run = triton.histogram(capability)
    assert run.error == 0
    assert run.counters.atomics == 3000


@capabilities
@pytest.mark.parametrize(
    "case", ["softmax", "layer_norm", "prefix_sum", "row_sum", "matmul_descriptors"]
)
def test_triton(triton, capability, case):
    assert getattr(triton, case)(capability).error <= 1


@capabilities
@pytest.mark.parametrize("dtype, precision", triton_cases.MATMUL_PRECISIONS)
@pytest.mark.parametrize("m, n, k", triton_cases.MATMUL_SHAPES)
def test_triton_matmul(triton, capability, dtype, precision, m, n, k):
    assert triton.matmul(capability, dtype, precision, m, n, k).error <= 1
