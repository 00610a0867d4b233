"""What orders two accesses and what does not: kernels of a few lines, right ones and wrong ones."""

import numpy as np
import pytest
from gpu_emulation import EmulationError, samples

pytestmark = pytest.mark.gpu_emulation


@pytest.fixture
def run(emulate):
    """``run(body, threads)``: int[128] that the body wrote as ``out``, in eight orders of warps.

    The body has ``thread`` and an array ``s`` in shared memory, in which ``s[i]`` is i.
    """

    def launch(body, threads=32):
        module = emulate(f"""
extern "C" __global__ void k(int* out) {{
    __shared__ int memory[128];
    volatile int* s = memory;
    const int thread = threadIdx.x;
    s[thread] = thread;
    __syncthreads();
    {body}
}}
""")
        for seed in range(8):
            out = np.zeros(128, np.int32)
            module.launch("k", 1, threads, [out], seed=seed)
        return out

    return launch


HALVES = """
    if (thread < 16) s[thread] = 7;
    else { %s out[thread] = s[thread - 16]; }
"""


def test_lanes_of_two_branches_race(run):
    with pytest.raises(
        EmulationError, match=r"^race on shared byte 0x0: read here, written by warp"
    ):
        run(HALVES % "")


def test_a_barrier_of_some_lanes_does_not_order_the_others(run):
    with pytest.raises(EmulationError, match=r"^race on"):
        run(HALVES % "__syncwarp(0xffff0000u);")


def test_a_barrier_of_all_lanes_orders_both_branches(run):
    out = run("if (thread < 16) s[thread] = 7; __syncwarp(); out[thread] = s[thread % 16];")
    assert (out[:32] == 7).all()


READ_TWICE = """
    int sum = 0;
    if (thread == 1) sum += s[0];
    %s
    if (thread == 2) { sum += s[0]; s[0] = 9; }
    out[thread] = sum;
"""


def test_a_write_races_with_another_lanes_read(run):
    with pytest.raises(EmulationError, match=r"^race on shared byte 0x0: written here, read by"):
        run(READ_TWICE % "")


def test_a_read_between_does_not_hide_a_read_before(run):
    with pytest.raises(EmulationError, match=r"^race on"):
        run(READ_TWICE % "atomicAdd(&out[64 + thread], 1);")


def test_a_race_names_a_lane_that_exists(run):
    with pytest.raises(EmulationError, match=r"read by warp 0 lane [12] "):
        run(READ_TWICE % "")


PHASES = """
    if (thread < 32) {
        asm volatile("bar.arrive 1, 64;" ::: "memory");
        asm volatile("bar.arrive 1, 64;" ::: "memory");
    } else {
        asm volatile("bar.sync 1, 64;" ::: "memory");
        out[thread] = 1;
    }
"""


def test_an_arrival_at_a_full_barrier_begins_its_next_phase(run):
    """Two warps arrive and wait, one arrives twice: two phases of 64, whatever the order."""
    assert run(PHASES, 96)[32:96].all()


@pytest.fixture
def overwrite(emulate):
    """``overwrite(fence)``: shared memory written by threads, then by a bulk copy into it."""

    def launch(fence):
        source = f"""
#include "ptx.cuh"
extern "C" __global__ void k(const int* x, int* out) {{
    __shared__ __align__(128) int s[32];
    __shared__ __align__(8) uint64_t full;
    s[threadIdx.x] = 7;
    if (threadIdx.x == 0) mbarrier_init(shared_address(&full), 1);
    {fence}
    __syncthreads();
    if (threadIdx.x == 0) {{
        mbarrier_expect(shared_address(&full), 128);
        bulk_load(shared_address(s), x, 128, shared_address(&full));
    }}
    mbarrier_wait(shared_address(&full), 0);
    out[threadIdx.x] = s[threadIdx.x];
}}
"""
        x, out = np.arange(32, dtype=np.int32), np.zeros(32, np.int32)
        emulate(source, "sm_90a", [f"-I{samples.HERE}"]).launch("k", 1, 32, [x, out])
        return out

    return launch


def test_a_bulk_copy_over_what_threads_wrote_needs_a_proxy_fence(overwrite):
    with pytest.raises(
        EmulationError, match=r"^shared byte 0x0 .* overwritten asynchronously with no fence\.proxy"
    ):
        overwrite("")


def test_a_bulk_copy_after_a_proxy_fence(overwrite):
    np.testing.assert_array_equal(overwrite("fence_proxy_async();"), np.arange(32))


def test_dynamic_shared_memory_follows_what_the_kernel_declares(emulate):
    module = emulate("""
extern "C" __global__ void k(int* out) {
    extern __shared__ int dynamic[];
    __shared__ int fixed[32];
    fixed[threadIdx.x] = 1;
    dynamic[threadIdx.x] = 2;
    __syncthreads();
    out[threadIdx.x] = fixed[31 - threadIdx.x] + dynamic[31 - threadIdx.x];
}
""")
    out = np.zeros(32, np.int32)
    module.launch("k", 1, 32, [out], 128)
    assert (out == 3).all()
