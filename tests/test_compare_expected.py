"""What each storage should gain on a GPU: bytes, counted work, the fastest, and how it is said."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from gpu_emulation.static import tool

from prunekern.compare import expected
from prunekern.compare.expected import (
    COUNTED,
    DENSE,
    SPARSITIES,
    STORAGES,
    TOKENS,
    bytes_a_weight,
    chip_named,
    fastest,
    gains,
    made_dense,
    product,
    sentence,
    sentences,
)
from prunekern.compare.roofline import CHIPS
from prunekern.formats import compress
from prunekern.layouts import pack_reference
from prunekern.testing import random_weight

LAYOUTS = {"2:4": "sm80", "bitmask": "sm80", "csr": "simt"}
ZEROS = (0.5, 0.6, 0.7, 0.8, 0.9)
chips = pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize("storage", STORAGES)
def test_bytes_are_those_of_the_packed_weight(storage, sparsity):
    """csr pads rows to whole sectors, here 205 entries of the sparser one by 7.5."""
    if storage == "2:4" and sparsity != 0.5:
        pytest.skip("2:4 has its own")
    weight = random_weight(storage, 256, 4096, torch.float16, 1 - sparsity)
    packed = pack_reference(compress(weight, storage), LAYOUTS[storage])
    rel = 0.07 if storage == "csr" else 0.005
    assert packed.nbytes / weight.numel() == pytest.approx(
        bytes_a_weight(storage, sparsity), rel=rel
    )


@pytest.mark.gpu_emulation
@pytest.mark.parametrize(
    "storage, M, sparsity", [("2:4", 8, 0.5), ("bitmask", 8, 0.7), ("csr", 8, 0.8)]
)
def test_counted_work_is_that_of_the_kernels(nvcc, monkeypatch, storage, M, sparsity):
    """Recounted on a quarter of the layer by a quarter of an A100, as `make emulated` does."""
    for package in ("triton", "ml_dtypes"):  # of other kernels in that file
        pytest.importorskip(package)
    try:
        tool("ptxas")
    except RuntimeError as absent:
        pytest.skip(str(absent))
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import emulated_runs

    N, K, sms = 1024, 4096, 27
    if storage == "2:4":
        work = emulated_runs.ours("sm80", M, sms, N).work
    else:
        work = getattr(emulated_runs, storage)(M, sparsity, sms, N).work
    row = COUNTED[storage][M]
    for name in ("instructions", "wavefronts", "l2_bytes"):
        counted = getattr(work, name) / (N * K / 1024)
        assert getattr(row, name).at(1 - sparsity) == pytest.approx(counted, rel=0.1), name


@chips
@pytest.mark.parametrize("storage", STORAGES)
def test_more_tokens_never_take_less(chip, storage):
    tokens = (1, 2, 4, 7, 8, 9, 16, 17, 32, 64, 65, 128, 512, 513, 4096)
    times = [product(chip, storage, 0.5, M, 4096, 4096).seconds for M in tokens]
    assert all(later >= 0.99 * before for before, later in itertools.pairwise(times))
    assert times[-1] > 4 * times[-3]  # of 512, latencies and making W dense included


@chips
@pytest.mark.parametrize("M", TOKENS)
def test_more_zeros_never_take_longer(chip, M):
    for storage in ("bitmask", "csr"):
        times = [product(chip, storage, s, M, 4096, 4096).seconds for s in ZEROS]
        assert times == sorted(times, reverse=True)


@chips
def test_no_storage_gains_more_than_its_bytes_in_decode_or_two_in_prefill(chip):
    for sparsity in ZEROS:
        for storage, gain in gains(chip, sparsity, 1).items():
            assert gain < 2 / bytes_a_weight(storage, sparsity)
        assert all(gain < 2 for gain in gains(chip, sparsity, 512).values())


@chips
def test_gains_are_sorted_and_2_to_4_is_there_at_half_only(chip):
    for sparsity in (0.3, *ZEROS):
        found = gains(chip, sparsity, 1)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert ("2:4" in found) == (sparsity == 0.5)


@chips
def test_the_fastest_is_the_first_of_the_gains_or_dense(chip):
    for sparsity in (0.1, *ZEROS, 0.98):
        for M in TOKENS:
            found = {s: g for s, g in gains(chip, sparsity, M).items() if s != "2:4"}
            best = max(found, key=found.get)
            assert fastest(chip, sparsity, M) == (best if found[best] > 1 else DENSE)


def test_when_which_storage_is_the_fastest():
    """At half density csr weighs as much as dense; with few entries a bitmask weighs more."""
    a100 = CHIPS["A100 80G"]
    assert fastest(a100, 0.5, 1) == "bitmask"
    assert fastest(a100, 0.9, 1) == "csr"
    assert fastest(a100, 0.0, 1) == DENSE
    assert fastest(a100, 0.9, 4096) == DENSE
    assert gains(a100, 0.5, 1)["csr"] < 1 < gains(a100, 0.7, 1)["csr"]


@chips
def test_bitmask_is_made_dense_where_that_is_faster(chip):
    """At very many tokens nothing is lost but the making, which reads W and writes it dense."""
    for M in (1, 64, 512, 65536):
        way, taken = (
            made_dense(chip, 0.5, M, 4096, 4096),
            product(chip, "bitmask", 0.5, M, 4096, 4096),
        )
        assert taken.seconds <= way.seconds
        assert ("made dense" in taken.limits) == (taken.seconds == way.seconds)
    dense = product(chip, DENSE, 0, 65536, 4096, 4096).seconds
    assert way.seconds - dense == pytest.approx(4096**2 * 3.136 / chip.dram + 2e-6, rel=0.01)
    assert gains(chip, 0.5, 65536)["bitmask"] > 0.97


def test_a_sentence_says_what_the_gains_are():
    for M, tokens in ((1, "1 token "), (16, "16 tokens ")):
        text = sentence("A100 80G", 0.5, M)
        assert text.startswith(f"modelled on A100 80G: at 50 % zeros and {tokens}")
        told = re.findall(r"(2:4|bitmask|csr) (\d+\.\d+)x", text)
        found = gains(CHIPS["A100 80G"], 0.5, M)
        assert told == [(storage, f"{gain:.2f}") for storage, gain in found.items()]
        assert text.endswith(f"any pattern: {fastest(CHIPS['A100 80G'], 0.5, M)}")


def test_sentences_are_those_of_every_sparsity_and_an_unknown_chip_is_refused():
    told = sentences("L4")
    assert told == [sentence("L4", s, M) for s in SPARSITIES for M in TOKENS]
    with pytest.raises(ValueError, match=r"^who: chip must be one of A100 80G, .*L4, got 'l4'$"):
        sentences("l4", "who")


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 80G"),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_chips_are_known_by_their_drivers_name(name, chip):
    assert chip_named(name) == chip
    assert set(expected._DRIVER_NAMES.values()) == set(CHIPS)
