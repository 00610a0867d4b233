"""The CUDA 2:4 products against float64, run by their own launch code in the emulator."""

import dataclasses
import itertools

import pytest
import torch
from conftest import bits
from cuda_linear import GROUP_SIZES, VARIANTS, linear

pytestmark = pytest.mark.gpu_emulation
DTYPES = (torch.float16, torch.bfloat16)
# On and off the tiles of 8, 16 and 64 rows, of 8 to 128 tokens and of 64 columns.
TOKENS = (*range(1, 18), 31, 63, 64, 65, 127, 129, 300)
FEATURES = (1, 8, 63, 64, 65, 130, 300)
COLUMNS = (8, 64, 72, 136, 1032)
SHORTEST = ((1, 65), (9, 130), (17, 65), (65, 130))
SHORT_TOKENS, SHORT_FEATURES = (1, 7, 8, 9, 16, 17, 63, 65, 129), (1, 65, 130)
# (M, N, K, sms) of each kernel: how the tiles of y are shared out among blocks.
SPLITS = {
    "one block a tile": [
        (8, 130, 72, 1), (16, 130, 72, 1), (31, 300, 1032, 1), (63, 130, 136, 3), (129, 130, 136, 5)
    ],
    "whole splits": [
        (8, 130, 1032, 3), (16, 130, 1032, 3), (31, 300, 1032, 2), (63, 300, 1032, 4),
        (129, 130, 2056, 4),
    ],
    "stripes": [
        (8, 130, 1032, 1), (16, 300, 1032, 1), (5, 300, 1032, 4), (31, 520, 1032, 1),
        (63, 300, 1032, 3), (129, 130, 2056, 3),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def kernel(request, nvcc):
    return linear(request.param)


def with_variants(names, cases, slow=lambda name, case: False):
    """Parametrizes `kernel` and `names`: each variant with the cases, M first, that are its own."""
    params = [
        pytest.param(
            name,
            *case,
            marks=[pytest.mark.slow] if slow(name, case) else [],
            id="-".join(map(str, (name, *case))),
        )
        for name, variant in VARIANTS.items()
        for case in cases
        if case[0] >= variant.least_tokens
    ]
    return pytest.mark.parametrize(f"kernel, {names}", params, indirect=["kernel"])


def check(kernel, sizes, sms, dtype, workspace=None, **options):
    """Both kinds of numbers: random ones within the tolerance, whole ones to the bit."""
    group_size = GROUP_SIZES[(sizes[0] + sizes[1] + sizes[2] // 8) % 4]
    case = kernel.case(*sizes, dtype, bias=sum(sizes) % 2 == 0, group_size=group_size)
    y, _ = kernel.product(case, sms, workspace, **options)
    kernel.assert_right(y, case, (*sizes, sms))
    whole = {"exact": True, "group_size": group_size}
    case = kernel.case(*sizes, dtype, bias=sum(sizes) % 2 == 1, **whole)
    y, _ = kernel.product(case, sms, workspace, **options)
    if kernel.variant.rounds_x:
        return kernel.assert_right(y, case, (*sizes, sms))
    bias = None if case.bias is None else case.bias.double()
    exact = torch.nn.functional.linear(case.x.double(), case.weight.double(), bias)
    assert torch.equal(y, exact.to(dtype)), (*sizes, sms)


def long(name, case):
    """Whole numbers are multiplied by the kernels of 16-bit values: less of the same."""
    if VARIANTS[name].kernel != "2:4":
        return case not in SHORTEST
    return case[0] not in SHORT_TOKENS or case[1] not in SHORT_FEATURES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@with_variants("M, N", list(itertools.product(TOKENS, FEATURES)), slow=long)
def test_product(kernel, M, N, dtype):
    for i, K in enumerate(COLUMNS):
        check(kernel, (M, N, K), sms=1 + (M + i) % 3, dtype=dtype, seed=M % 2)


@with_variants("M, N, K, sms, kind", [(*c, kind) for kind in SPLITS for c in SPLITS[kind]])
def test_every_kind_of_split(kernel, M, N, K, sms, kind):
    assert kernel.plan(M, N, K, sms).kind == kind
    for dtype in DTYPES:
        check(kernel, (M, N, K), sms, dtype)


@with_variants("M, N, K, sms", SPLITS["whole splits"] + SPLITS["stripes"])
def test_result_does_not_depend_on_the_order_of_blocks(kernel, M, N, K, sms):
    case = kernel.case(M, N, K, torch.float16)
    expected, _ = kernel.product(case, sms)
    for seed in (1, 2, 3):
        y, _ = kernel.product(case, sms, seed=seed)
        assert torch.equal(bits(y), bits(expected))


@pytest.mark.parametrize("kernel", VARIANTS, indirect=True)
def test_one_workspace_serves_launches_of_any_size(kernel):
    """What a launch leaves in the slots is of no concern to the next."""
    needed = {sizes: kernel.workspace_bytes(*sizes) for cases in SPLITS.values() for sizes in cases}
    workspace = kernel.workspace(*max(needed, key=needed.get))
    for i, (*sizes, sms) in enumerate(sorted(needed)):
        check(kernel, sizes, sms, DTYPES[i % 2], workspace, seed=i)


@with_variants("M, N, K, sms", SPLITS["one block a tile"])
def test_unshared_tiles_leave_the_workspace_alone(kernel, M, N, K, sms):
    _, counters = kernel.product(kernel.case(M, N, K, torch.float16), sms)
    assert not counters.atomics
    assert not counters.reads["workspace"].asked and not counters.writes["workspace"].asked


@pytest.mark.parametrize("M", [16, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["int8-sm80", "int4-sm80"], indirect=True)
def test_every_number_becomes_what_decompress_makes_of_it(kernel, dtype, M):
    case = kernel.case(M, 128, 256, dtype, bias=False, group_size=32)
    one_by_one = dataclasses.replace(case, x=torch.eye(256, dtype=dtype)[:M].contiguous())
    y, _ = kernel.product(one_by_one, sms=1)
    assert torch.equal(y, case.weight[:, :M].t())


@with_variants("M, N, K", [(M, 130, 136) for M in (8, 16, 31, 63, 129)])
def test_a_token_that_is_not_finite_stays_alone(kernel, M, N, K):
    case = kernel.case(M, N, K, torch.float16)
    expected, _ = kernel.product(case, sms=1)
    case.x[M // 2] = torch.inf
    y, _ = kernel.product(case, sms=1)
    others = torch.arange(M) != M // 2
    assert torch.equal(bits(y[others]), bits(expected[others]))
    assert not y[M // 2].isfinite().any()


@pytest.mark.parametrize("kernel", VARIANTS, indirect=True)
def test_a_variant_has_its_own_kernel_from_its_least_tokens_on(kernel):
    least = kernel.variant.least_tokens
    for M in sorted({1, max(1, least - 1), least, 300}):
        kernel.product(kernel.case(M, 65, 72, torch.float16), sms=1)
        own = f"_{kernel.variant.layout}_kernel" in kernel.launched[0][0]
        assert own == (M >= least)
