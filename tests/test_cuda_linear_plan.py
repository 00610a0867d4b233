"""What the CUDA 2:4 products plan to run, as pure arithmetic: nothing is launched."""

import ctypes
import itertools

import numpy as np
import pytest
from cuda_linear import COUNTER_BYTES, VARIANTS, linear

pytestmark = pytest.mark.gpu_emulation
TOKENS = (1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 512, 4096, 100_000)
FEATURES = (1, 64, 65, 1024, 4096, 5120, 11008, 14336, 28672, 128_256)
COLUMNS = (8, 64, 72, 512, 1024, 4096, 5120, 11008, 28672)
SMS = (1, 2, 20, 58, 82, 108, 128, 132, 142)


@pytest.fixture(scope="module", params=VARIANTS)
def kernel(request, nvcc):
    return linear(request.param)


@pytest.fixture(scope="module")
def stripes(nvcc):
    library = linear("sm80").library

    def arrays(row_groups, column_tiles, blocks):
        shapes = (blocks + 1, (row_groups, column_tiles), row_groups, row_groups,
                  (row_groups, blocks))  # fmt: skip
        out = [np.full(shape, -1, np.int32) for shape in shapes]
        library.stripes(row_groups, column_tiles, blocks, *map(_address, out))
        return out

    return arrays


def _address(array):
    return array.ctypes.data_as(ctypes.c_void_p)


# More columns than any layer has: where products of blocks and panels reach 32 bits.
EXTREME = [(1, 6912, 6_080_000, 108), (128, 65536, 2_000_000, 132), (16, 5120, 960, 108)]


def _grid():
    return itertools.product(TOKENS, FEATURES, COLUMNS, SMS)


def test_every_block_has_work_and_products_fit_32_bits(kernel):
    for sizes in (*_grid(), *EXTREME):
        plan = kernel.plan(*sizes)
        panels = plan.tiles * plan.column_tiles
        assert 1 <= plan.blocks <= panels, sizes
        assert panels < 2**31, sizes
        assert plan.blocks == plan.tiles or plan.blocks * panels < 2**31, sizes


def test_tiles_cover_the_product(kernel):
    for M, N, K, sms in _grid():
        plan = kernel.plan(M, N, K, sms)
        rows = 64 if plan.decode else 256
        assert plan.tiles == -(-N // rows) * -(-M // plan.block_tokens)
        assert plan.column_tiles == -(-K // 64)


def test_few_tokens_are_decoded(kernel):
    for M in range(1, 200):
        plan = kernel.plan(M, 4096, 4096, 108)
        assert plan.decode == (M <= 16)
        assert plan.block_tokens >= min(M, 64)


@pytest.mark.parametrize("N", [1024, 4096, 11008])
def test_most_multiprocessors_have_a_block_where_there_is_enough_work(kernel, N):
    """Seven eighths of them: whole splits, which are added with less traffic, may leave the rest.

    Enough work: as many column tiles for each as make partial sums cheap.
    """
    for M, K, sms in itertools.product(TOKENS, COLUMNS, SMS):
        plan = kernel.plan(M, N, K, sms)
        least = 8 if M <= 64 else 16
        if plan.tiles * plan.column_tiles >= least * sms:
            assert 8 * plan.blocks >= 7 * sms, (M, K, sms)


def test_tiles_are_narrower_where_wide_ones_would_be_too_few():
    sm80, sm90a = linear("sm80"), linear("sm90a")
    assert sm80.plan(128, 4096, 4096, 108).block_tokens == 64
    assert sm80.plan(512, 4096, 4096, 108).block_tokens == 128
    assert sm90a.plan(128, 4096, 4096, 132).block_tokens == 128


def test_shared_tiles_have_counters_and_slots(kernel):
    for sizes in _grid():
        plan = kernel.plan(*sizes)
        shared = plan.blocks != plan.tiles
        slots = 2 * plan.blocks * plan.slot_bytes if shared else 0
        assert kernel.workspace_bytes(*sizes) >= COUNTER_BYTES + slots, sizes
        assert not shared or 4 * plan.blocks <= COUNTER_BYTES, sizes
        assert plan.slot_bytes == 4 * plan.block_tokens * (64 if plan.decode else 256)


@pytest.mark.parametrize("row_groups", range(1, 8))
def test_stripes_share_out_every_panel_once(stripes, row_groups):
    for column_tiles in range(1, 10):
        panels = row_groups * column_tiles
        for blocks in range(1, panels + 1):
            begin, block_of, first, last, _ = stripes(row_groups, column_tiles, blocks)
            lengths = np.diff(begin)
            assert begin[0] == 0 and begin[-1] == panels
            assert lengths.min() >= 1 and lengths.max() - lengths.min() <= 1
            np.testing.assert_array_equal(block_of.ravel(), np.repeat(np.arange(blocks), lengths))
            np.testing.assert_array_equal(first, block_of[:, 0])
            np.testing.assert_array_equal(last, block_of[:, -1])


@pytest.mark.parametrize("row_groups", range(1, 8))
def test_no_two_parts_have_one_slot_and_no_two_tiles_one_counter(stripes, row_groups):
    for column_tiles in range(1, 10):
        for blocks in range(1, row_groups * column_tiles + 1):
            _, _, first, last, slot = stripes(row_groups, column_tiles, blocks)
            shared = [r for r in range(row_groups) if first[r] != last[r]]
            slots = [slot[r, b] for r in shared for b in range(first[r], last[r] + 1)]
            assert len(set(slots)) == len(slots)
            assert all(0 <= s < 2 * blocks for s in slots)
            assert len({first[r] for r in shared}) == len(shared)
