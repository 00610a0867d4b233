"""The CUDA product of CSR against float64, run by its own launch code in the emulator."""

import pytest
import torch
from conftest import bits
from cuda_csr import DTYPES, PATTERNS, Case, case_of, linear, pattern_weight, random_case

from prunekern import ops
from prunekern.formats import compress_csr, decompress
from prunekern.layouts import csr, pack_reference, unpack
from prunekern.testing import assert_close_to_float64, random_weight, uneven_weight

pytestmark = pytest.mark.gpu_emulation
# On and off the tiles of 1 to 8 tokens, strips of 8 rows, pairs of 16 entries, slices of 2048.
TOKENS = (1, 2, 4, 8, 9, *(pytest.param(M, marks=pytest.mark.slow) for M in (3, 5, 7, 17)))
SIZES = ((1, 1), (1, 130), (130, 1), (7, 31), (33, 2047), (65, 2049), (9, 4099))
# Tokens, sizes and multiprocessors that have tiles with parts by many warps and by many blocks.
SHARED = ((1, 9, 4099, 3), (8, 33, 4096, 5), (3, 130, 2049, 2), (24, 64, 6000, 6))


@pytest.fixture(scope="module")
def kernel(nvcc):
    return linear()


def check(kernel, M, weight, sms, **options):
    """Both kinds of numbers: random ones within the tolerance, whole ones to the bit."""
    bias = M % 2 == 0
    case = case_of(M, weight, bias=bias)
    y, _ = kernel.product(case, sms, **options)
    assert_close_to_float64(y, case.x, case.weight, case.bias, (M, *weight.shape, sms))
    case = case_of(M, weight, bias=not bias, exact=True)
    y, _ = kernel.product(case, sms, **options)
    wide = None if case.bias is None else case.bias.double()
    exact = torch.nn.functional.linear(case.x.double(), case.weight.double(), wide)
    assert torch.equal(y, exact.to(weight.dtype)), (M, *weight.shape, sms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M", TOKENS)
def test_product(kernel, M, dtype):
    for i, (N, K) in enumerate(SIZES):
        weight = random_weight("csr", N, K, dtype, (0.1, 0.5, 1.0)[(M + i) % 3], seed=N + K)
        check(kernel, M, weight, sms=1 + (M + i) % 4, seed=M % 3)


@pytest.mark.parametrize("N, K", [(1, 300), (130, 72), (33, 4099)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_pattern(kernel, pattern, N, K):
    for i, M in enumerate((1, 8, 9)):
        weight = pattern_weight(pattern, N, K, DTYPES[(i + N) % 3])
        check(kernel, M, weight, sms=1 + i, seed=i)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_columns_than_16_bits_name(kernel, dtype):
    for M in (1, 8):
        check(kernel, M, random_weight("csr", 11, 70_001, dtype, 0.01), sms=3)


def test_many_tokens(kernel):
    for M, dtype in ((301, torch.float16), (130, torch.float32)):
        check(kernel, M, uneven_weight(40, 203, dtype), sms=8)


@pytest.mark.parametrize("M, N, K, sms", SHARED)
def test_result_does_not_depend_on_the_order_of_blocks(kernel, M, N, K, sms):
    case = random_case(M, N, K, 0.8)
    expected, _ = kernel.product(case, sms)
    for seed in (1, 2, 3):
        y, _ = kernel.product(case, sms, seed=seed, resident=8)
        assert torch.equal(bits(y), bits(expected))


def test_one_workspace_serves_launches_of_any_size(kernel):
    """What a launch leaves in the slots is of no concern to the next."""
    cases = [(random_case(M, N, K, 0.8), sms) for M, N, K, sms in SHARED]
    workspace = max((kernel.workspace(*case) for case in cases), key=len)
    for case, sms in cases:
        y, _ = kernel.product(case, sms, workspace)
        assert_close_to_float64(y, case.x, case.weight)


def test_counters_for_groups_of_strips(kernel):
    """Where there are more strips than counters: 16 token tiles have 256 counters each."""
    weight = random_weight("csr", 8 * 300, 9, torch.float16, 0.3)
    case = case_of(16 * 8, weight)
    plan = kernel.plan_of(case, sms=16)
    assert plan.token_tiles == 16 and plan.group == 2
    y, _ = kernel.product(case, sms=16)
    assert_close_to_float64(y, case.x, case.weight, case.bias)


def test_a_token_that_is_not_finite_stays_alone(kernel):
    for M in (3, 8, 12):
        case = random_case(M, 30, 2100, 0.5)
        expected, _ = kernel.product(case, sms=2)
        x = case.x.clone()
        x[M // 2] = torch.inf
        y, _ = kernel.product(Case(x, case.weight, case.packed, None), sms=2)
        others = torch.arange(M) != M // 2
        assert torch.equal(bits(y[others]), bits(expected[others]))
        assert not y[M // 2].isfinite().any()


def test_inputs_without_weights_do_not_matter(kernel):
    """Padding is multiplied by zeros of its own, not by elements of x."""
    weight = random_weight("csr", 20, 50, torch.float16, 0.2)
    weight[:, ::3] = 0
    case = case_of(8, weight)
    expected, _ = kernel.product(case, sms=1)
    x = case.x.clone()
    x[:, ::3] = torch.nan
    y, _ = kernel.product(Case(x, weight, case.packed, case.bias), sms=1)
    assert torch.equal(bits(y), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N, K", [(1, 5), (70, 33), (40, 2100)])
def test_gradient_of_x_is_a_product_by_the_transposed_weight(kernel, monkeypatch, N, K, dtype):
    def product(x, values, columns, crow, bias, out_features, in_features):
        weight = decompress(csr.transpose(unpack(packed)))
        assert weight.shape == (out_features, in_features)
        y, _ = kernel.product(Case(x, weight, (values, columns, crow), bias), sms=2)
        packs.append(values)
        return y

    packs = []
    monkeypatch.setitem(ops.OPS, ("csr", "simt"), product)
    weight = uneven_weight(N, K, dtype)
    packed = pack_reference(compress_csr(weight), "simt")
    grad = torch.randn(6, N).to(dtype)
    for _ in range(2):
        y = ops._csr_grad(grad, *packed.tensors, N, K)
        assert_close_to_float64(y, grad, weight.t().contiguous())
    assert packs[0] is packs[1]  # packed once


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N, K", [(1, 1), (70, 33), (3, 70_000), (70_000, 3)])
def test_transposed_csr(N, K, dtype):
    weight = random_weight("csr", N, K, dtype, 0.1)
    found, wanted = csr.transpose(compress_csr(weight)), compress_csr(weight.t().contiguous())
    assert found.shape == wanted.shape
    for name, tensor in wanted.tensors().items():
        assert found.tensors()[name].dtype == tensor.dtype, name
        assert torch.equal(bits(found.tensors()[name]), bits(tensor)), name
