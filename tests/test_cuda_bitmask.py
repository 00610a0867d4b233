"""The CUDA bitmask products against float64, run by their own launch code in the emulator."""

import itertools

import pytest
import torch
from conftest import bits
from cuda_bitmask import WEIGHT, case_of, linear, make_case, patterns

from prunekern.testing import assert_close_to_float64, random_weight

pytestmark = pytest.mark.gpu_emulation
DTYPES = (torch.float16, torch.bfloat16)
# On and off the tiles of 8 to 128 tokens, of 64 and 128 rows and of 64 columns.
TOKENS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 300)
FEATURES = (1, 8, 63, 65, 130, 300)
COLUMNS = (8, 64, 72, 136, 1032)
DENSITIES = (0.05, 0.3, 0.5, 0.7, 1.0)
SHORT_TOKENS, SHORT_FEATURES = (1, 9, 17, 65), (1, 130)
# (M, N, K, sms) of each kernel: how the tiles of y are shared out among blocks.
SPLITS = {
    "one block a tile": [(8, 130, 72, 1), (16, 130, 72, 1), (31, 300, 72, 1), (63, 130, 136, 3),
                         (129, 130, 136, 5)],
    "whole splits": [(8, 130, 1032, 3), (16, 130, 1032, 3), (31, 300, 1032, 3),
                     (63, 130, 1032, 2), (129, 130, 1032, 4)],
    "stripes": [(8, 130, 1032, 1), (16, 300, 1032, 1), (5, 300, 1032, 4), (31, 300, 1032, 1),
                (63, 300, 1032, 1), (129, 260, 2056, 5)],
}  # fmt: skip
ALL_SPLITS = [(*case, kind) for kind, cases in SPLITS.items() for case in cases]


@pytest.fixture(scope="module")
def kernel(nvcc):
    return linear()


def check(kernel, sizes, sms, dtype, density, **options):
    """Both kinds of numbers: random ones within the tolerance, whole ones to the bit."""
    case = make_case(*sizes, dtype, density, bias=sum(sizes) % 2 == 0)
    y, _ = kernel.product(case, sms, **options)
    assert_close_to_float64(y, case.x, case.weight, case.bias, (*sizes, density, sms))
    case = make_case(*sizes, dtype, density, bias=sum(sizes) % 2 == 1, exact=True)
    check_exact(kernel, case, sms, (*sizes, density, sms), **options)


def check_exact(kernel, case, sms, name, **options):
    y, _ = kernel.product(case, sms, **options)
    bias = None if case.bias is None else case.bias.double()
    exact = torch.nn.functional.linear(case.x.double(), case.weight.double(), bias)
    assert torch.equal(y, exact.to(y.dtype)), name


def products():
    for M, N in itertools.product(TOKENS, FEATURES):
        short = M in SHORT_TOKENS and N in SHORT_FEATURES
        yield pytest.param(M, N, marks=[] if short else [pytest.mark.slow])


@pytest.mark.parametrize("M, N", products())
def test_product(kernel, M, N):
    for i, K in enumerate(COLUMNS):
        density = DENSITIES[(i + M + N) % len(DENSITIES)]
        check(kernel, (M, N, K), 1 + (M + i) % 3, DTYPES[(i + M) % 2], density, seed=M % 2)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("M", [8, 33])
def test_every_density(kernel, M, density):
    check(kernel, (M, 200, 264), 2, DTYPES[M % 2], density)


@pytest.mark.parametrize("M, N, K, sms, kind", ALL_SPLITS)
def test_every_kind_of_split(kernel, M, N, K, sms, kind):
    assert kernel.plan(M, N, K, sms).kind == kind
    check(kernel, (M, N, K), sms, DTYPES[M % 2], 0.5)


def shared_tiles():
    for case in SPLITS["whole splits"] + SPLITS["stripes"]:
        yield pytest.param(*case, marks=[pytest.mark.slow] if case[0] > 128 else [])


@pytest.mark.parametrize("M, N, K, sms", shared_tiles())
def test_result_does_not_depend_on_the_order_of_blocks(kernel, M, N, K, sms):
    case = make_case(M, N, K, torch.float16)
    expected, _ = kernel.product(case, sms)
    for seed in (1, 2):
        y, _ = kernel.product(case, sms, seed=seed)
        assert torch.equal(bits(y), bits(expected))


@pytest.mark.parametrize("M", [8, 17])
@pytest.mark.parametrize("name", patterns(2, 2))
def test_adversarial_patterns(kernel, M, name):
    weight = patterns(200, 520)[name]
    weight = (weight.sign() * (1 + (weight.abs() > 0.01))).half()
    check_exact(kernel, case_of(weight, M, exact=True), 2, name, seed=M)


@pytest.mark.parametrize("M", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_more_columns_than_16_bits_count(kernel, M):
    check(kernel, (M, 17, 65544), 3, torch.bfloat16, 0.1)


@pytest.mark.parametrize("M, N, K", [(M, 130, 136) for M in (8, 16, 31, 63, 129)])
def test_a_token_that_is_not_finite_stays_alone(kernel, M, N, K):
    case = make_case(M, N, K, torch.float16)
    expected, _ = kernel.product(case, sms=1)
    for special in (torch.inf, torch.nan):
        case.x[M // 2] = special
        y, _ = kernel.product(case, sms=1)
        others = torch.arange(M) != M // 2
        assert torch.equal(bits(y[others]), bits(expected[others]))
        assert not y[M // 2].isfinite().any()


@pytest.mark.parametrize("M", [1, 20])
def test_values_keep_their_bits(kernel, M):
    """-0.0 that is kept, infinities: x times each is what float16 says."""
    weight = random_weight("bitmask", 70, 72, torch.float16, 0.4)
    weight[3, 5], weight[65, 70] = torch.inf, -torch.inf
    case = case_of(weight, M)
    case.x[:] = case.x.abs() + 1
    y, _ = kernel.product(case, sms=1)
    assert (y[:, 3] == torch.inf).all() and (y[:, 65] == -torch.inf).all()
    finite = [n for n in range(70) if n not in (3, 65)]
    assert_close_to_float64(y[:, finite], case.x, weight[finite], case.bias[finite])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", DENSITIES)
def test_decompress(kernel, density, dtype):
    for N, K in ((1, 1), (8, 72), (65, 67), (130, 264), (64, 128)):
        case = make_case(1, N, K, dtype, density)
        for columns in {K, -(-K // 8) * 8}:  # the latter as a dense product wants its rows
            dense = torch.full((N, columns), torch.nan, dtype=dtype)
            memory = dict(zip(WEIGHT, case.packed, strict=True)) | {"dense": dense}
            arguments = [*WEIGHT, N, columns, "dense"]
            counters = kernel.run("decompress", arguments, memory, uninitialised=("dense",), seed=N)
            expected = torch.nn.functional.pad(case.weight, (0, columns - K))
            assert torch.equal(bits(dense), bits(expected))
            written = counters.writes["dense"]
            assert written.asked == written.distinct == dense.nbytes
            assert not any(counters.conflicts.values())
