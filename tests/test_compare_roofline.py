import dataclasses

import pytest

from prunekern.compare.roofline import (
    CHIPS,
    COMBINE_SECONDS,
    LAUNCH_SECONDS,
    Work,
    modelled,
)

WEIGHTS = 4096 * 4096
DECODE = Work(dram_bytes=WEIGHTS * 1.125)
BUSY = Work(
    dram_bytes=2e7, l2_bytes=3e7, macs=1e9, sparse_macs=1e9, instructions=4e5, wavefronts=2e5,
    blocks=192,
)  # fmt: skip
chips = pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)


def test_decode_of_a_7b_projection_is_bound_by_its_bytes():
    got = modelled(CHIPS["A100 80G"], DECODE)
    assert got.limit == "DRAM"
    assert got.limits["DRAM"] == pytest.approx(18.874368e6 / 2039e9)
    assert got.seconds == got.limits["DRAM"] + LAUNCH_SECONDS


@chips
def test_2_to_4_is_faster_than_dense_by_its_bytes_and_at_most_twice_by_its_flops(chip):
    bytes_ = modelled(chip, Work(2.0 * WEIGHTS)).limits["DRAM"]
    assert bytes_ / modelled(chip, DECODE).limits["DRAM"] == pytest.approx(2 / 1.125)
    products = 512 * WEIGHTS
    dense = modelled(chip, Work(0, macs=products)).limits["tensor cores"]
    sparse = modelled(chip, Work(0, sparse_macs=products / 2)).limits["tensor cores"]
    assert dense / sparse == pytest.approx(2)


@chips
@pytest.mark.parametrize(
    "field", ["dram_bytes", "l2_bytes", "macs", "sparse_macs", "instructions", "wavefronts"]
)
def test_more_work_never_takes_less(chip, field):
    more = dataclasses.replace(BUSY, **{field: 2 * getattr(BUSY, field)})
    before, after = modelled(chip, BUSY), modelled(chip, more)
    assert all(after.limits[name] >= before.limits[name] for name in before.limits)
    assert after.limits != before.limits
    assert after.seconds >= before.seconds


@chips
def test_more_blocks_up_to_the_multiprocessors_never_take_longer(chip):
    times = [
        modelled(chip, dataclasses.replace(BUSY, blocks=b)).seconds for b in range(1, chip.sms + 1)
    ]
    assert times == sorted(times, reverse=True)


def test_the_busiest_multiprocessor_counts():
    chip = CHIPS["A100 80G"]
    issue = {
        blocks: modelled(chip, dataclasses.replace(BUSY, blocks=blocks)).limits["issue"]
        for blocks in (None, 54, 108, 109, 216)
    }
    assert issue[None] == pytest.approx(issue[108]) == pytest.approx(issue[216])
    assert issue[54] == pytest.approx(2 * issue[108])
    assert issue[109] == pytest.approx(2 * issue[108] * 108 / 109)


def test_a_sparse_product_takes_two_clocks_of_an_a100():
    chip = CHIPS["A100 80G"]
    stored = 16 * 8 * 32 // 2
    seconds = modelled(chip, Work(0, sparse_macs=stored, blocks=1)).limits["tensor cores"]
    assert seconds * chip.clock == pytest.approx(2, rel=2e-3)


def test_wgmma_is_hoppers():
    product = Work(0, sparse_macs=1e9, wgmma=True)
    by_warps = dataclasses.replace(product, wgmma=False)
    for name in ("H100 SXM", "H200"):
        assert modelled(CHIPS[name], product).seconds < modelled(CHIPS[name], by_warps).seconds
    with pytest.raises(ValueError, match="must be one of Hopper's"):
        modelled(CHIPS["L4"], product)


def test_partial_sums_cost_a_fixed_time():
    chip = CHIPS["H200"]
    combined = modelled(chip, dataclasses.replace(BUSY, combined=True))
    assert combined.seconds - modelled(chip, BUSY).seconds == pytest.approx(COMBINE_SECONDS)


@chips
def test_what_is_printed_says_that_it_is_modelled(chip):
    assert str(modelled(chip, BUSY)).startswith("modelled ")
    assert chip.source
