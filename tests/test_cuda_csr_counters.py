"""What the CUDA product of CSR does, counted: bytes, instructions, conflicts and balance."""

import pytest
import torch
from cuda_csr import PATTERNS, case_of, linear, pattern_weight, random_case

from prunekern.testing import random_weight

pytestmark = pytest.mark.gpu_emulation
A100_SMS = 108


@pytest.fixture(scope="module")
def kernel(nvcc):
    return linear()


def per_entry(case, count):
    return count / case.nnz


def instructions(case, counters):
    """Per 1024 entries; without moves, most of which ptxas removes."""
    return 1024 * per_entry(case, counters.instructions - counters.by_class["move"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("M", [1, 2, 4, 8])
def test_each_entry_is_read_once_in_whole_sectors(kernel, M, dtype):
    case = case_of(M, random_weight("csr", 130, 4099, dtype, 0.1))
    plan = kernel.plan_of(case, sms=4)
    _, counters = kernel.product(case, sms=4)
    for name, tensor in zip(("values", "col_indices"), case.packed, strict=False):
        read = counters.reads[name]
        assert read.distinct == tensor.nbytes
        assert read.asked == 32 * read.sectors == plan.token_tiles * tensor.nbytes


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_is_read_twice(kernel, pattern):
    case = case_of(8, pattern_weight(pattern, 65, 2500, torch.bfloat16))
    _, counters = kernel.product(case, sms=3)
    for name, tensor in zip(("values", "col_indices"), case.packed, strict=False):
        read = counters.reads[name]
        assert read.asked == read.distinct == 32 * read.sectors == tensor.nbytes


@pytest.mark.parametrize("M, most", [(1, 760), (8, 1500)])
def test_a_7b_projection(kernel, M, most):
    case = random_case(M, 4096, 4096, 0.9)
    _, counters = kernel.product(case, A100_SMS)
    assert sum(t.nbytes for t in case.packed) <= 4.25 * case.nnz
    assert instructions(case, counters) <= most
    assert per_entry(case, counters.wavefronts["load"]) <= 0.2
    for name in ("x", "crow_indices", "workspace"):
        assert counters.reads[name].asked <= 0.6 * 4 * case.nnz, name
    assert counters.balance <= 1.25


@pytest.mark.parametrize("M", [1, 8])
@pytest.mark.parametrize("N, sms", [(1024, 2), (4096, 8)])
def test_warps_have_equal_work_on_power_law_rows(kernel, M, N, sms):
    case = case_of(M, pattern_weight("power law", N, 4096, torch.float16), bias=False)
    _, counters = kernel.product(case, sms)
    assert counters.balance <= 1.2


@pytest.mark.parametrize("M", [1, 8])
def test_a_wavefront_serves_eight_columns_of_eight_tokens(kernel, M):
    """All classes of columns are equally many here: no conflict but those of the narrow x."""
    case = case_of(M, pattern_weight("everything", 64, 4096, torch.float16), bias=False)
    _, counters = kernel.product(case, sms=2)
    assert per_entry(case, counters.wavefronts["load"]) == pytest.approx(1 / (32 if M == 1 else 8))
    assert not any(counters.conflicts.values())


def test_the_order_of_entries_spares_most_conflicts(kernel):
    """Eight random columns of eight banks take 2.6 wavefronts (the fullest bank), ours 1.5."""
    case = random_case(8, 512, 4096, 0.9)
    _, counters = kernel.product(case, sms=4)
    assert 8 * per_entry(case, counters.wavefronts["load"]) <= 1.55
