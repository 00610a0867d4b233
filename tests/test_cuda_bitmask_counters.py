"""What the CUDA bitmask products do, counted: bytes, instructions, conflicts; what is planned."""

import itertools

import pytest
import torch
from cuda_bitmask import case_of, linear, make_case
from cuda_linear import COUNTER_BYTES
from gpu_emulation.static import occupancy, resources, sass, tool
from test_cuda_linear_static import launch_bounds

from prunekern.testing import random_weight

pytestmark = pytest.mark.gpu_emulation
A100_SMS = 108
slow = pytest.mark.slow
ARCHES = ("sm_80", "sm_120", *(pytest.param(f"sm_{n}", marks=slow) for n in (86, 89, 90, 100)))


@pytest.fixture(scope="module")
def kernel(nvcc):
    return linear()


@pytest.mark.parametrize(
    "M, density",
    [(8, 0.5), *(pytest.param(*p, marks=slow) for p in ((8, 0.3), (1, 0.5), (1, 0.3)))],
)
def test_decode_of_a_7b_projection(kernel, M, density):
    case = make_case(M, 4096, 4096, torch.float16, density, bias=False)
    _, counters = kernel.product(case, A100_SMS, races=M == 8)
    assert counters.instructions / case.tiles <= 200
    assert sum(counters.wavefronts.values()) / case.tiles <= 46
    assert counters.by_class["shuffle"] / case.tiles <= 18.1
    assert counters.by_class["mma"] / case.tiles == 4
    assert not any(counters.conflicts.values())
    values, bitmask, offsets = case.packed
    for name, tensor in (("values", values), ("bitmask", bitmask)):
        traffic = counters.reads[name]
        assert traffic.asked == traffic.distinct == tensor.nbytes
    # a request of 512 bytes may begin in the middle of a sector; offsets of a panel are 20 bytes
    assert counters.reads["values"].sectors * 32 <= values.nbytes + 48 * case.tiles
    assert counters.reads["bitmask"].sectors * 32 == bitmask.nbytes
    assert counters.reads["offsets"].distinct == offsets.nbytes
    assert counters.reads["offsets"].sectors <= 2.01 * case.tiles / 4


def test_no_population_counts(kernel):
    for module in kernel.modules:
        assert "popc" not in module.source.text


@pytest.mark.parametrize("M", [1, 9, 17, 33, 65])
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_shared_memory_has_no_conflicts(kernel, M, density):
    for N, K, sms in ((130, 72, 1), (300, 1032, 4)):
        _, counters = kernel.product(make_case(M, N, K, torch.float16, density), sms, seed=M)
        assert not any(counters.conflicts.values())


@pytest.mark.parametrize("M", [8, 64])
def test_empty_panels_cost_next_to_nothing(kernel, M):
    """Three quarters of the panels, in any order, have nothing: no bits, x or products of them."""
    weight = random_weight("bitmask", 256, 2048, torch.float16)
    kept = torch.rand(4, 32).argsort(-1) < 8
    weight[~kept.repeat_interleave(64, 0).repeat_interleave(64, 1)] = 0
    _, all_of = kernel.product(make_case(M, 256, 2048, torch.float16, bias=False), 2)
    _, some = kernel.product(case_of(weight, M, bias=False), 2)
    assert some.macs * 4 == all_of.macs
    assert some.reads["bitmask"].distinct * 4 == all_of.reads["bitmask"].distinct
    assert some.instructions <= (0.4 if M <= 16 else 0.6) * all_of.instructions
    if M <= 16:
        assert some.reads["x"].asked * 4 == all_of.reads["x"].asked


@pytest.mark.parametrize("M", [128, 256])
def test_prefill_keeps_its_tensor_cores_busy(kernel, M):
    """An A100 takes two clocks for a mma, one for a wavefront, four instructions a clock."""
    case = make_case(M, 1024, 1024, torch.float16)
    _, counters = kernel.product(case, 4)
    products = counters.by_class["mma"]
    assert products == M * case.weight.numel() // 2048
    assert sum(counters.wavefronts.values()) / products <= 1.95
    assert counters.instructions / products <= 5.5


@pytest.mark.parametrize("M, times", [(32, 1), (64, 1), (128, 1), (256, 2)])
def test_prefill_reads_the_weight_once_for_128_tokens(kernel, M, times):
    case = make_case(M, 512, 1024, torch.float16)
    _, counters = kernel.product(case, sms=4)
    for name, tensor in zip(("values", "bitmask"), case.packed, strict=False):
        assert counters.reads[name].asked == times * tensor.nbytes
        assert counters.reads[name].distinct == tensor.nbytes


@pytest.mark.parametrize("M, N", [(8, 130), (32, 512), (65, 130), (128, 511)])
def test_each_result_is_written_once(kernel, M, N):
    _, counters = kernel.product(make_case(M, N, 136, torch.float16), sms=4)
    written = counters.writes["y"]
    assert written.asked == written.distinct == 2 * M * N


@pytest.mark.parametrize("arch", ARCHES)
def test_no_spills_and_as_many_blocks_as_the_launch_bounds_say(kernel, arch):
    try:
        tool("ptxas")
    except RuntimeError as absent:
        pytest.skip(str(absent))
    for module in kernel.modules:
        for name, r in resources(module.source.text, arch).items():
            assert (r.spill_stores, r.spill_loads) == (0, 0), name
            if "decode" in name:
                threads, blocks = launch_bounds(module, name)
                if arch != "sm_100":  # which static.py does not know
                    held = occupancy(arch, r.registers, r.shared_bytes, threads).blocks
                    assert held >= blocks, name


def test_no_local_memory_and_main_loop(kernel):
    for module in kernel.modules:
        for name, code in sass(module.source.text, "sm_80").items():
            opcodes = {i.opcode for i in code}
            assert not [o for o in opcodes if o.startswith(("LDL", "STL", "POPC"))], name
            if "decompress" not in name:
                assert any(o.startswith("HMMA.16816.F32") for o in opcodes), name
                assert "LDS.U16" in opcodes, name


def test_plan():
    """Every block has work, products fit 32 bits, shared tiles have counters and slots."""
    kernel = linear()
    tokens = (1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 512, 4096, 100_000)
    features, columns = (1, 64, 65, 1024, 4096, 11008, 128_256), (8, 64, 72, 1024, 4096, 28672)
    extreme = [(1, 6912, 6_080_000, 108), (128, 65536, 2_000_000, 132), (16, 5120, 960, 108)]
    grid = itertools.product(tokens, features, columns, (1, 20, 82, 108, 132, 142))
    for sizes in (*grid, *extreme):
        M, N, K, sms = sizes
        plan = kernel.plan(*sizes)
        panels = plan.tiles * plan.column_tiles
        assert plan.decode == (M <= 16) and plan.block_tokens >= min(M, 128), sizes
        rows = 64 if plan.decode else 128
        assert plan.tiles == -(-N // rows) * -(-M // plan.block_tokens), sizes
        assert plan.column_tiles == -(-K // 64), sizes
        assert 1 <= plan.blocks <= panels < 2**31, sizes
        assert plan.slot_bytes == 4 * plan.block_tokens * rows
        shared = plan.blocks != plan.tiles
        assert not shared or plan.blocks * panels < 2**31, sizes
        assert not shared or 4 * plan.blocks <= COUNTER_BYTES, sizes
        slots = 2 * plan.blocks * plan.slot_bytes if shared else 0
        assert kernel.library.workspace_bytes(*sizes) >= COUNTER_BYTES + slots, sizes
        if panels >= 8 * sms:
            assert 8 * plan.blocks >= 7 * sms, sizes


def test_when_the_weight_is_made_dense():
    """From the modelled break-even on, later for small weights, never where mma.sync is all."""
    kernel, never = linear(), 2**63 - 1
    large = {80: 2780, 90: 400, 100: 164, 103: 164}
    for capability, tokens in large.items():
        for N, K in ((4096, 4096), (128_256, 4096), (2**31 - 1025, 2**31 - 1025)):
            least = kernel.dense_tokens(N, K, capability)
            assert tokens < least <= 1.07 * tokens + 1, (N, K, capability)
        assert kernel.dense_tokens(1024, 1024, capability) == 2 * tokens
        assert kernel.dense_tokens(1, 1, capability) == tokens * (2**20 + 1)
    for capability in (86, 87, 89, 110, 120, 121):
        assert kernel.dense_tokens(4096, 4096, capability) == never
