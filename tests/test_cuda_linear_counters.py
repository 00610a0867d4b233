"""What the CUDA 2:4 products do, counted: bytes, instructions, conflicts and tensor-core work."""

import pytest
import torch
from cuda_linear import VARIANTS, linear, register_wavefronts

from prunekern.testing import assert_close_to_float64

pytestmark = pytest.mark.gpu_emulation
A100_SMS = 108


@pytest.fixture(scope="module")
def sm80(nvcc):
    return linear("sm80")


@pytest.fixture(scope="module", params=VARIANTS)
def kernel(request, nvcc):
    return linear(request.param)


def weight_traffic(counters):
    """(bytes asked, distinct bytes, bytes of the sectors) of W."""
    values, meta = counters.reads["values"], counters.reads["meta"]
    return (
        values.asked + meta.asked,
        values.distinct + meta.distinct,
        32 * (values.sectors + meta.sectors),
    )


def instructions_a_1024_weights(counters, case):
    return counters.instructions / (case.weight.numel() / 1024)


@pytest.mark.parametrize("M", [1, 8, 16])
@pytest.mark.parametrize("N, K", [(1024, 1024), (130, 1032)])
def test_decode_reads_each_byte_of_the_weight_once(kernel, M, N, K):
    case = kernel.case(M, N, K, torch.bfloat16, group_size=64)
    _, counters = kernel.product(case, sms=4)
    of_weight = case.packed["values"].nbytes + case.packed["meta"].nbytes
    assert weight_traffic(counters) == (of_weight,) * 3
    if "scales" in case.packed:
        assert counters.reads["scales"].distinct == case.packed["scales"].nbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name, slots", [("int8-sm80", 191), ("int4-sm80", 124)])
def test_decode_of_numbers_leaves_issue_slots_over(nvcc, name, slots, dtype):
    """An A100 issues so many for 1024 weights while their bytes arrive (sparse24_values.cuh)."""
    kernel = linear(name)
    case = kernel.case(8, 1024, 4096, dtype, bias=False, group_size=64)
    _, counters = kernel.product(case, A100_SMS // 4)
    assert instructions_a_1024_weights(counters, case) <= 0.55 * slots
    assert not any(counters.conflicts.values())
    # A scale of 64 inputs is loaded for each step of 32, the second time from L1.
    assert counters.reads["scales"].sectors * 32 == 2 * case.packed["scales"].nbytes


@pytest.mark.parametrize("name, most", [("int8-sm80", 5), ("int4-sm80", 4.5), ("int8-sm80a8", 3.3)])
def test_prefill_of_numbers_is_bound_by_its_tensor_cores(nvcc, name, most):
    """A mma.sp takes as long as eight instructions are issued and two wavefronts pass."""
    kernel = linear(name)
    case = kernel.case(128, 1024, 4096, torch.bfloat16, group_size=64)
    _, counters = kernel.product(case, sms=4)
    products = counters.by_class["mma_sparse"]
    assert counters.instructions / products <= most
    assert register_wavefronts(counters) / products <= 1.9


@pytest.mark.parametrize("M", [1, 8])
def test_decode_of_a_7b_projection(sm80, M):
    case = sm80.case(M, 4096, 4096, torch.float16, bias=False)
    _, counters = sm80.product(case, A100_SMS)
    assert weight_traffic(counters) == (case.packed_bytes,) * 3
    assert instructions_a_1024_weights(counters, case) <= 24
    assert counters.reads["x"].asked <= case.packed_bytes / 4
    assert counters.by_class["mma_sparse"] == case.weight.numel() // 512
    assert not any(counters.conflicts.values())


@pytest.mark.parametrize("M", [1, 8])
def test_decode_takes_half_the_instructions_of_tritons_dense_product(sm80, M):
    pytest.importorskip("triton", reason="Triton is not installed")
    import triton_dense

    case = sm80.case(M, 4096, 4096, torch.float16, bias=False)
    y, theirs, _ = triton_dense.product(case.x, case.weight)
    assert_close_to_float64(y, case.x, case.weight)
    _, ours = sm80.product(case, A100_SMS)
    # ptxas removes most moves of both
    for moves in (lambda c: 0, lambda c: c.by_class["move"]):
        assert 2 * (ours.instructions - moves(ours)) <= theirs.instructions - moves(theirs)


@pytest.mark.parametrize(
    "M, N, K", [(8, 128, 512), (32, 256, 512), (64, 256, 512), (128, 512, 512)]
)
def test_whole_tiles_multiply_nothing_in_vain(kernel, M, N, K):
    _, counters = kernel.product(kernel.case(M, N, K, torch.float16), sms=2)
    assert counters.sparse_macs == M * N * K // 2
    assert counters.macs == 0


@pytest.mark.parametrize("M", [1, 9, 17, 33, 65])
@pytest.mark.parametrize("N, K, sms", [(130, 72, 1), (130, 1032, 1), (300, 1032, 4)])
def test_shared_memory_has_no_conflicts(kernel, M, N, K, sms):
    for seed in (0, 1):
        _, counters = kernel.product(kernel.case(M, N, K, torch.float16), sms, seed=seed)
        assert not any(counters.conflicts.values())


@pytest.mark.parametrize("M, sms", [(128, 4), (256, 8)])
def test_prefill_is_bound_by_its_tensor_cores(sm80, M, sms):
    """An A100 takes two clocks for a mma.sp, one for a wavefront, four instructions a clock."""
    _, counters = sm80.product(sm80.case(M, 1024, 4096, torch.float16), sms)
    products = counters.by_class["mma_sparse"]
    assert register_wavefronts(counters) / products <= 1.85
    assert counters.instructions / products <= 3.5


@pytest.mark.parametrize("M, sms", [(128, 4), (256, 8)])
def test_prefill_of_warpgroups_issues_next_to_nothing(nvcc, M, sms):
    """A wgmma.sp m64n128k32 of four warps is 64 mma.sp, and W goes to registers once a block."""
    kernel = linear("sm90a")
    case = kernel.case(M, 1024, 4096, torch.float16)
    _, counters = kernel.product(case, sms)
    assert counters.by_class["mma_sparse"] == M * case.weight.numel() // (64 * 128 * 32) * 4
    assert counters.instructions * 2048 / counters.sparse_macs <= 1.25
    assert weight_traffic(counters)[0] == M // 128 * case.packed_bytes


@pytest.mark.parametrize("M, times", [(32, 1), (64, 2), (128, 2), (256, 4)])
def test_prefill_reads_the_weight_once_a_warp_of_tokens(sm80, M, times):
    case = sm80.case(M, 512, 1024, torch.float16)
    _, counters = sm80.product(case, sms=4)
    asked, distinct, sectors = weight_traffic(counters)
    assert asked == sectors == times * case.packed_bytes
    assert distinct == case.packed_bytes


@pytest.mark.parametrize("M, N", [(8, 130), (32, 512), (65, 130), (128, 511)])
def test_each_result_is_written_once(kernel, M, N):
    _, counters = kernel.product(kernel.case(M, N, 136, torch.float16), sms=4)
    written = counters.writes["y"]
    assert written.asked == written.distinct == 2 * M * N
