"""What orders two accesses and what does not: kernels of a few lines, right ones and wrong ones."""

import numpy as np
import pytest
from gpu_emulation import EmulationError

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
