"""How the CUDA product of CSR is planned and shared out; and what ptxas says of it."""

import ctypes

import numpy as np
import pytest
import torch
from cuda_csr import COUNTERS, DTYPES, PATTERNS, RUNS_ON, linear, pattern_weight
from gpu_emulation.static import occupancy, resources, sass, tool

from prunekern.formats import compress_csr
from prunekern.layouts import csr_simt

pytestmark = pytest.mark.gpu_emulation


@pytest.fixture(scope="module")
def kernel(nvcc):
    return linear()


@pytest.fixture(scope="module")
def ptxas(kernel):
    for name in ("ptxas", "cuobjdump"):
        try:
            tool(name)
        except RuntimeError as absent:
            pytest.skip(str(absent))
    return kernel


@pytest.mark.parametrize("warps", [1, 16, 48, 1728, 2112])
@pytest.mark.parametrize("units", [1, 15, 16, 17, 1000, 8487, 1_000_003])
def test_shares_cover_all_units_and_differ_by_one(kernel, units, warps):
    begin, warp_of = np.zeros(warps + 1, np.uint32), np.zeros(units, np.uint32)
    kernel.library.shares(
        units, warps, *(a.ctypes.data_as(ctypes.c_void_p) for a in (begin, warp_of))
    )
    lengths = np.diff(begin.astype(np.int64))
    used = lengths[: min(units, warps)]
    assert begin[0] == 0 and begin[-1] == units and not lengths[len(used) :].any()
    assert used.min() >= 1 and used.max() - used.min() <= 1
    np.testing.assert_array_equal(warp_of, np.repeat(np.arange(warps), lengths))


def test_plans(kernel):
    for M in (1, 2, 3, 4, 5, 8, 9, 16, 17, 128, 129, 1000):
        for N, K in ((1, 1), (4096, 4096), (11008, 4096), (128_256, 8192), (1_000_000, 64)):
            for element_bytes in (2, 4):
                for sms in (1, 20, 108, 132):
                    for units in (1, 100, 10**4, 10**6):
                        p = kernel.plan(M, N, K, units, sms, element_bytes)
                        where = (M, N, K, element_bytes, sms, units)
                        assert p.tokens * element_bytes <= 16, where
                        assert p.tokens >= min(M, 16 // element_bytes), where
                        assert 1 <= p.token_tiles <= -(-M // p.tokens), where
                        assert 1 <= p.blocks * p.token_tiles <= sms, where
                        strips = -(-N // csr_simt.STRIP)
                        assert -(-strips // p.group) * p.token_tiles <= COUNTERS, where
                        tiles = strips * -(-K // csr_simt.SLICE)
                        assert p.slots == 16 * p.blocks + tiles, where
                        parts = p.token_tiles * tiles * 32 * p.tokens
                        assert p.token_tiles == 1 or parts <= 32 << 20, where


def test_few_tokens_have_all_multiprocessors(kernel):
    units = 8487
    assert kernel.plan(8, 4096, 4096, units, 108).blocks == 108
    plan = kernel.plan(16, 4096, 4096, units, 108)
    assert (plan.tokens, plan.token_tiles, plan.blocks) == (8, 2, 54)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_layout_is_as_drawn(pattern, dtype):
    """Entry by entry: what lane l of a row has in each step, and that nothing is left out."""
    N, K = 21, 4500
    weight = pattern_weight(pattern, N, K, dtype)
    values, columns, crow = csr_simt.pack(compress_csr(weight))
    assert values.shape == (len(columns), *((2, 2, 4) if dtype == torch.float32 else (2, 8)))
    _, R = csr_simt.sizes(N, K)
    fixed = csr_simt.fixed_words(N, K)
    rows, starts, strips, occupied, units = crow.split((*fixed, len(crow) - sum(fixed)))
    pairs, tiles, maps = units.view(3, -1).tolist()
    lengths = weight.count_nonzero(1)
    ordered = [int(lengths[r]) if r < N else 0 for r in rows]
    assert ordered == sorted(ordered, reverse=True) and sorted(rows.tolist()) == list(range(8 * R))
    assert int(occupied) == max(1, -(-int(lengths.count_nonzero()) // 8))
    assert int(starts[-1]) == int(strips[-1]) == len(maps)
    entries = values.transpose(1, 2).reshape(-1, 2, 8) if dtype == torch.float32 else values
    found, misplaced, next_pair = torch.zeros(N, K, dtype=dtype), 0, 0
    for unit, (first, tile, bitmap) in enumerate(zip(pairs, tiles, maps, strict=True)):
        assert starts[tile] <= unit < starts[tile + 1]
        assert (bitmap == 0) == (unit == starts[tile + 1] - 1)
        assert first == next_pair or bitmap == 0
        for bit in (b for b in range(16) if bitmap >> b & 1):
            row = int(rows[tile % R * 8 + bit // 2])
            for half in range(2):
                for i in range(8):
                    local = int(columns[next_pair, half, i])
                    wanted = (bit % 2 * 2 + half + 4 * ((i + bit // 2) % 2)) % 8
                    value = entries[next_pair, half, i]
                    if local >= csr_simt.SLICE:
                        assert local == csr_simt.SLICE + wanted and value == 0
                    else:
                        misplaced += local % 8 != wanted
                        found[row, tile // R * csr_simt.SLICE + local] = value
            next_pair += 1
    assert next_pair == len(columns) and torch.equal(found, weight)
    if pattern in ("everything", "rows without any"):
        assert misplaced <= 0.06 * int(lengths.sum())


@pytest.mark.parametrize("arch", RUNS_ON)
def test_no_spills_and_one_block_fits(ptxas, arch):
    (module,) = ptxas.modules
    found = resources(module.source.text, arch)
    assert len(found) == len(DTYPES) * 4 - 1  # four token tiles; eight of float32 are too wide
    for name, r in found.items():
        assert (r.spill_stores, r.spill_loads) == (0, 0), name
        assert occupancy(arch, r.registers, r.shared_bytes, 16 * 32).blocks >= 1, name


def test_main_loop(ptxas):
    """W goes to registers past L1, x comes from shared memory, for 16-byte rows as such."""
    (module,) = ptxas.modules
    for name, code in sass(module.source.text, "sm_80").items():
        opcodes = {i.opcode for i in code}
        assert "LDG.E.NA.128.CONSTANT" in opcodes, name
        assert not [o for o in opcodes if o.startswith(("LDL", "STL"))], name
        if "Li8" in name or "IfLi4" in name:
            assert "LDS.128" in opcodes, name
