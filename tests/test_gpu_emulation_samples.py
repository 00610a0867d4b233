"""The samples: each against numpy at ragged sizes and in several orders, with its counters."""

from functools import partial

import numpy as np
import pytest
from gpu_emulation import Module
from gpu_emulation import samples as shelf
from gpu_emulation.samples import SAMPLES, WrongResult

pytestmark = pytest.mark.gpu_emulation


@pytest.fixture(scope="module")
def run(nvcc):
    """``run(sample, seed, **shape)``: compiled once, checked against numpy, counters returned."""
    modules = {}

    def launch(name, seed=0, **shape):
        if name not in modules:
            modules[name] = Module(shelf.ptx(name))
        return SAMPLES[name].run(partial(modules[name].launch, seed=seed), **shape)

    return launch


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "name, shape",
    [
        pytest.param(
            name,
            shape,
            id=f"{name}-{'-'.join(map(str, shape.values()))}",
        )
        for name, sample in SAMPLES.items()
        for shape in sample.shapes
    ],
)
def test_agrees_with_numpy(run, name, shape, seed):
    run(name, seed, **shape)


def test_every_file_is_a_sample():
    assert {path.stem for path in shelf.HERE.glob("*.cu")} == set(SAMPLES)


def test_a_wrong_result_is_noticed(run):
    def broken(name, grid, block, args, **options):
        counters = Module(shelf.ptx("saxpy")).launch(name, grid, block, args, **options)
        args[3][-1] += 1
        return counters

    with pytest.raises(WrongResult, match=r"1 of 1003 elements are wrong, first \(1002,\)"):
        SAMPLES["saxpy"].run(broken, n=1003)


def test_saxpy_reads_each_byte_once_in_vectors(run):
    counters = run("saxpy", n=768).counters
    x = counters.reads["x"]
    assert (x.distinct, x.asked, counters.writes["y"].distinct) == (3072, 3072, 3072)
    assert x.requests == 6  # 32 lanes of 16 bytes each
    assert x.sectors == 3072 // 32


def test_reduce_counts_votes_and_shuffles(run):
    n, blocks, threads = 1001, 3, 96
    counters = run("reduce", n=n, blocks=blocks, threads=threads).counters
    warps, turns = blocks * threads // 32, 4 + 4 + 3  # of the three blocks
    # a ballot a turn and warp, five shuffles a warp; warp 0 then five more and one redux
    assert counters.by_class["shuffle"] == turns * threads // 32 + 5 * warps + 6 * blocks
    assert counters.barriers == warps


def test_transpose_conflicts_without_padding(run):
    plain = run("transpose", kernel="plain", rows=64, columns=96).counters
    padded = run("transpose", kernel="padded", rows=64, columns=96).counters
    columns_read = 64 * 96 // 32
    assert plain.conflicts["load"] == 31 * columns_read  # all 32 lanes in one bank
    assert plain.wavefronts["load"] == 32 * columns_read
    assert padded.wavefronts["load"] == columns_read
    assert not any(padded.conflicts.values())
    for counters in (plain, padded):  # either way global memory is coalesced
        assert counters.reads["in"].sectors == 64 * 96 * 4 // 32
        assert counters.writes["out"].sectors == 64 * 96 * 4 // 32


def test_histogram_counts_atomics(run):
    assert run("histogram", n=1999, bins=61).counters.atomics == 1999 + 3 * 61


def test_gemm_mma_has_no_conflicts(run):
    m, n, k = 70, 72, 264
    counters = run("gemm_mma", m=m, n=n, k=k).counters
    blocks, steps = 2 * 2, 5
    assert counters.macs == blocks * steps * 64**3 and not counters.sparse_macs
    assert not any(counters.conflicts.values())
    assert counters.wavefronts["cp_async"] == blocks * steps * 2 * 64  # 128 bytes each
    assert counters.barriers == blocks * steps * 4
    reads = counters.reads
    assert (reads["A"].distinct, reads["B"].distinct) == (2 * m * k, 2 * k * n)
    assert (reads["A"].asked, reads["B"].asked) == (2 * 2 * m * k, 2 * 2 * k * n)  # once a tile
    assert counters.writes["C"].asked == counters.writes["C"].distinct == 4 * m * n


def test_sparse_mma_does_half_the_work(run):
    m, n, k = 70, 67, 272
    counters = run("sparse_mma", m=m, n=n, k=k).counters
    blocks, steps = 2 * 2, 5
    assert counters.sparse_macs == blocks * steps * 64**3 // 2 and not counters.macs
    assert not any(counters.conflicts.values())
    assert counters.reads["values"].distinct == m * k  # half of them, of two bytes
    assert counters.reads["metadata"].distinct == m * k // 8
    assert counters.reads["X"].distinct == 2 * n * k
    assert counters.writes["C"].distinct == 4 * m * n


def test_split_k_is_the_same_to_the_bit_in_any_order(run):
    rows, k, splits = 7, 501, 3
    runs = [run("split_k", seed, rows=rows, k=k, splits=splits) for seed in range(4)]
    assert len({r.output for r in runs}) == 1
    counters = runs[0].counters
    assert counters.atomics == 2 * splits  # a ticket a block
    assert (
        counters.writes["parts"].distinct == counters.reads["parts"].distinct == 4 * rows * splits
    )
    assert counters.writes["y"].asked == 4 * rows


def test_named_barriers_are_joined_as_drawn(run):
    counters = run("named_barriers", n=1000).counters
    tiles = 11
    assert counters.barriers == 4 * tiles + 4 * (tiles - 2)  # full, then empty: four warps each
    assert counters.by_class["barrier"] == counters.barriers


def test_warp_divergence_runs_each_side(run):
    n = 83
    counters = run("warp_divergence", n=n).counters
    assert counters.by_class["barrier"] == 2 * 3  # a __syncwarp a side, in each warp with lanes
    assert counters.writes["out"].asked == 4 * n


def test_mbarrier_pipeline_reads_each_byte_once(run):
    counters = run("mbarrier_pipeline", n=1000).counters
    x = counters.reads["x"]
    assert x.distinct == x.asked == 4000
    assert counters.barriers == 4  # the one __syncthreads


def test_tensor_tile_moves_only_what_is_inside(run):
    rows, columns = 136, 72
    counters = run("tensor_tile", rows=rows, columns=columns).counters
    for traffic in (counters.reads["in"], counters.writes["out"]):
        assert traffic.distinct == traffic.asked == 2 * rows * columns
    assert counters.reads["in"].requests == 2 * rows  # a row of each tile of 64 columns
    assert not any(counters.conflicts.values())


def test_wgmma_dense_counts_macs(run):
    counters = run("wgmma_dense", m=70, n=37, k=200).counters
    blocks, depths = 2 * 2, 4
    assert counters.macs == blocks * depths * 64 * 32 * 64 and not counters.sparse_macs
    assert not any(counters.conflicts.values())


def test_wgmma_sparse_does_half_the_work(run):
    counters = run("wgmma_sparse", m=70, n=37, k=208).counters
    blocks, depths = 2 * 2, 2
    assert counters.sparse_macs == blocks * depths * 64 * 32 * 128 // 2 and not counters.macs
    assert counters.reads["metadata"].distinct == 70 * 208 // 8
    assert not any(counters.conflicts.values())


def test_the_busiest_warp_is_counted(emulate):
    """Each warp of a block goes round ten times more than the one before it."""
    module = emulate("""
extern "C" __global__ void k(int* out) {
    int sum = 0;
#pragma unroll 1
    for (int i = 0; i < threadIdx.x / 32 * 10 + 10; ++i) sum = sum * 3 + i;
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
""")
    one = module.launch("k", 1, 32, [np.zeros(32, np.int32)])
    assert (one.warps, one.busiest_warp, one.balance) == (1, one.instructions, 1.0)
    two, four = (module.launch("k", 3, n, [np.zeros(3 * n, np.int32)]) for n in (64, 128))
    assert (two.warps, four.warps) == (6, 12)
    ten_rounds = two.busiest_warp - one.busiest_warp
    assert four.busiest_warp - two.busiest_warp == 2 * ten_rounds > 0
    assert two.instructions == 3 * (one.busiest_warp + two.busiest_warp)
    assert two.balance == 6 * two.busiest_warp / two.instructions
