import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import bits
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekern import ops
from prunekern.formats import DTYPES, FORMATS, compress, decompress, nibbles_of, validate
from prunekern.layouts import (
    LAYOUTS,
    PANEL_LAYOUTS,
    RIVALS,
    Facts,
    layout_for,
    pack,
    pack_reference,
    takes_dtype,
    unpack,
    why_not,
    why_reference,
)
from prunekern.testing import random_weight

CASES = [
    (kernel, layout, dtype)
    for kernel, cls in FORMATS.items()
    for layout in LAYOUTS[cls.stem]
    for dtype in DTYPES
    if takes_dtype(layout, dtype)
]


def _ids(case):
    return f"{case[0]}-{case[1]}-{str(case[2])[6:]}"


@pytest.mark.parametrize("case", CASES, ids=_ids)
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 140),
    k=st.integers(1, 200),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_packers_agree_and_unpack_inverts(case, n, k, density, seed):
    kernel, layout, dtype = case
    c = compress(random_weight(kernel, n, k, dtype, density, seed), kernel)
    packed, specified = pack(c, layout), pack_reference(c, layout)
    for ours, wanted in zip(packed.tensors, specified.tensors, strict=True):
        assert ours.shape == wanted.shape and ours.dtype == wanted.dtype
        assert torch.equal(bits(ours), bits(wanted))
    again = unpack(packed)
    validate(again)
    for name, tensor in c.tensors().items():
        assert torch.equal(bits(again.tensors()[name]), bits(tensor)), name


@pytest.mark.parametrize("case", [c for c in CASES if not FORMATS[c[0]].bits], ids=_ids)
def test_packers_keep_special_values_to_the_bit(case):
    kernel, layout, dtype = case
    weight = random_weight(kernel, 21, 75, dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    flat, kept = weight.view(-1).view(integer), weight.flatten().nonzero().flatten()
    # All bits set and all but the sign: NaN with full payloads. 1: the smallest denormal.
    for i, pattern in enumerate((-1, torch.iinfo(integer).max, 1, torch.iinfo(integer).min + 1)):
        flat[kept[i::9]] = pattern
    c = compress(weight, kernel)
    packed = pack(c, layout)
    for ours, wanted in zip(packed.tensors, pack_reference(c, layout).tensors, strict=True):
        assert torch.equal(bits(ours), bits(wanted))
    assert torch.equal(bits(decompress(unpack(packed))), bits(weight))


def test_sparse24_words_of_a_known_weight():
    # Row 1 keeps inputs 0 and 3 of group 0, row 0 nothing, and so group 1 of both.
    weight = torch.zeros(2, 8)
    weight[1, 0], weight[1, 3] = 5, 6
    c = compress(weight, "2:4")
    values, meta = pack_reference(c, "avx2").tensors
    assert values.shape == (1, 8, 2, 8) and meta.shape == (1, 1, 8)
    assert values[0, 0, :, 1].tolist() == [5, 6]
    assert meta[0, 0, 1] & 0xFF == 0x4C and meta[0, 0, 0] & 0xFF == 0x44
    _, pairs = pack_reference(compress(weight.bfloat16(), "2:4"), "avx512bf16").tensors
    assert pairs[0, 0, 1] & 0xFF == 0x82  # pair (0, 3) is code 2; odd groups have 8 added


@pytest.mark.parametrize("layout", PANEL_LAYOUTS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (70, 100), (130, 200)])
def test_panels_hold_what_their_drawing_says(layout, n, k):
    c = compress(random_weight("2:4", n, k, torch.float16, seed=n), "2:4")
    groups = -(-k // 4)
    nibbles = nibbles_of(c.meta, groups)
    values, meta = pack_reference(c, layout).tensors
    R, C = -(-n // 64), -(-k // 64)
    assert values.shape == (R, C, 4, 2, 32, 8) and meta.shape == (R, C, 32, 4)

    def value(row, column):
        return c.values[row, column].item() if row < n and column < 2 * groups else 0.0

    def nibble(row, group):
        return int(nibbles[row, group]) if row < n and group < groups else 0b0100

    for r, column_tile, tile, lane in itertools.product(range(R), range(C), range(4), range(32)):
        row, t = 64 * r + 16 * tile + lane // 4, lane % 4
        for step in range(2):
            first = 32 * column_tile + 16 * step + 2 * t
            wanted = [
                value(row + half_row, first + half_column + i)
                for half_column in (0, 8)
                for half_row in (0, 8)
                for i in (0, 1)
            ]
            assert values[r, column_tile, tile, step, lane].tolist() == wanted
        step, h = divmod(t, 2)
        group = 16 * column_tile + 8 * step + 4 * h
        word = sum(nibble(row, group + i) << 4 * i for i in range(4))
        word |= sum(nibble(row + 8, group + i) << 4 * i + 16 for i in range(4))
        assert int(meta[r, column_tile, lane, tile]) & 0xFFFFFFFF == word


def test_panels_are_for_16_bit_weights():
    with pytest.raises(ValueError, match=r"must have torch\.bfloat16 or torch\.float16 weights"):
        pack(compress(torch.eye(4), "2:4"), "sm80")


def test_bitmask_order_is_tile_chunk_row():
    weight = torch.zeros(2, 65)
    weight[0, 0], weight[0, 64], weight[1, 3] = 1, 2, 3
    values, words, offsets = pack_reference(compress(weight, "bitmask"), "avx2").tensors
    assert values.tolist() == [1, 3, 2] + [0] * 64
    assert words[0].tolist() == [[1, 8, 0, 0], [1, 0, 0, 0]]
    assert offsets.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("isa", "dtype", "wanted"),
    [
        ({"scalar", "avx2", "avx512", "avx512bf16", "amx"}, torch.bfloat16, "amx"),
        ({"scalar", "avx2", "avx512", "avx512bf16", "amx"}, torch.float32, "avx512"),
        ({"scalar", "avx2", "avx512", "avx512bf16"}, torch.bfloat16, "avx512bf16"),
        ({"scalar", "avx2", "avx512", "avx512bf16"}, torch.float16, "avx512"),
        ({"scalar", "avx2", "avx512"}, torch.bfloat16, "avx512"),
        ({"scalar", "avx2"}, torch.float32, "avx2"),
        ({"scalar"}, torch.float32, "scalar"),
        (set(), torch.float32, "reference"),
    ],
)
def test_layout_for_takes_the_best_that_runs(isa, dtype, wanted):
    facts = Facts("cpu", None, frozenset(isa), dtype, EVERYTHING)
    assert layout_for("sparse24", facts) == wanted
    assert layout_for("sparse24", replace(facts, available=frozenset())) == "reference"
    assert layout_for("sparse24", replace(facts, device="xpu")) == "reference"


ALL_VARIANTS = {(s, v) for s, vs in LAYOUTS.items() for v in vs + RIVALS.get(s, ())}
EVERYTHING = frozenset(ALL_VARIANTS)
NO_SM90A = EVERYTHING - {("sparse24", "sm90a")}
NO_TRITON = frozenset(key for key in EVERYTHING if key[1] != "triton")
ONLY_TRITON = frozenset(key for key in EVERYTHING if key[1] in ("triton", "reference"))


@pytest.mark.parametrize(
    ("arch", "dtype", "available", "wanted", "reason"),
    [
        ((8, 0), torch.float16, EVERYTHING, "sm80", ""),
        ((8, 9), torch.bfloat16, EVERYTHING, "sm80", ""),
        ((9, 0), torch.bfloat16, EVERYTHING, "sm90a", ""),
        ((9, 0), torch.bfloat16, NO_SM90A, "sm80", ""),
        ((10, 0), torch.float16, EVERYTHING, "sm80", ""),
        ((12, 0), torch.float16, EVERYTHING, "sm80", ""),
        ((7, 5), torch.float16, EVERYTHING, "triton", ""),
        ((7, 0), torch.float16, EVERYTHING, "reference", "sm80 needs compute capability 8.0 or mo"),
        ((9, 0), torch.float32, EVERYTHING, "triton", ""),
        ((9, 0), torch.float32, NO_TRITON, "reference", "not for torch.float32"),
        ((9, 0), torch.float16, ONLY_TRITON, "triton", ""),
        (None, torch.bfloat16, EVERYTHING, "triton", ""),
        (None, torch.bfloat16, NO_TRITON, "reference", "the triton package is missing"),
        ((9, 0), torch.float16, frozenset(), "reference", "sm90a was not built; sm80 was not buil"),
    ],
)
def test_layout_for_on_a_gpu(arch, dtype, available, wanted, reason):
    facts = Facts("cuda", arch, frozenset({"scalar", "avx2"}), dtype, available)
    assert layout_for("sparse24", facts) == wanted
    if wanted == "reference":
        assert reason in why_reference("sparse24", facts)
    takes = {"simt": arch is not None and arch >= (7, 5), "triton": arch != (7, 0)}
    own = [layout for layout in takes if ("csr", layout) in available and takes[layout]]
    assert layout_for("csr", facts) == (own or ["reference"])[0]


def test_every_layout_that_is_not_taken_has_a_reason():
    cpu = Facts("cpu", None, frozenset({"scalar"}), torch.bfloat16, EVERYTHING)
    hopper = Facts("cuda", (9, 0), cpu.isa, torch.bfloat16, EVERYTHING)
    reasons = {
        ("sm80", cpu): "sm80 runs on cuda, not on cpu",
        ("avx2", cpu): "this CPU lacks instructions of avx2",
        ("avx2", hopper): "avx2 runs on cpu, not on cuda",
        ("sm80", replace(hopper, arch=None)): "sm80 needs an NVIDIA GPU",
        ("triton", cpu): (
            "triton runs on a cpu only in its interpreter: start Python with TRITON_INTERPRET=1"
        ),
        ("sm90a", replace(hopper, arch=(8, 6))): (
            "sm90a needs compute capability 9.0, this GPU has 8.6"
        ),
        ("cusparselt", replace(hopper, dtype=torch.float32)): (
            "cusparselt is for torch.bfloat16 or torch.float16, not for torch.float32"
        ),
    }
    for (layout, facts), reason in reasons.items():
        assert why_not("sparse24", layout, facts) == reason
    for layout in ("sm90a", "sm80", "cusparselt", "cutlass", "reference"):
        assert why_not("sparse24", layout, hopper) == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (33, 70), (64, 128)])
def test_cutlass_form_gives_the_weight_back(shape, dtype):
    weight = random_weight("2:4", *shape, dtype)
    packed = pack(compress(weight, "2:4"), "cutlass")
    N, K = (-(-shape[0] // 32) * 32, -(-shape[1] // 64) * 64)
    assert packed.tensors[0].shape == (N, K // 2)
    assert torch.equal(decompress(unpack(packed)), weight)


def test_unknown_layouts_are_refused():
    c = compress(torch.eye(4), "csr")
    with pytest.raises(
        ValueError, match=r"layout of csr must be one of simt, avx512, .*got 'sm80'"
    ):
        pack(c, "sm80")
    with pytest.raises(ValueError, match=r"avx512bf16 must have torch\.bfloat16 weights"):
        pack(compress(torch.eye(4), "bitmask"), "avx512bf16")


@pytest.mark.skipif(ops.LIBRARY_ERROR is not None, reason="no compiled ops")
def test_packers_refuse_what_does_not_fit():
    c = compress(random_weight("bitmask", 8, 70, torch.float32), "bitmask")
    with pytest.raises(RuntimeError, match="bits set in bitmask must be as many as values"):
        torch.ops.prunekern.bitmask_pack_avx2(c.values[:-1].clone(), c.bitmask, 8, 70)
    with pytest.raises(RuntimeError, match="bitmask must have the shape"):
        torch.ops.prunekern.bitmask_pack_avx2(c.values, c.bitmask, 9, 70)
    d = compress(random_weight("2:4", 8, 70, torch.float32), "2:4")
    with pytest.raises(RuntimeError, match="values must have the shape"):
        torch.ops.prunekern.sparse24_pack_avx2(d.values, d.meta, 8, 700)
    with pytest.raises(RuntimeError, match="values must be bfloat16, got Float"):
        torch.ops.prunekern.sparse24_pack_avx512bf16(d.values, d.meta, 8, 70)


def _flags_at(address: int) -> list[str]:
    """Flags of the mapping that holds the address; "hg": huge pages were asked for."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split()[0]
        if "-" in word:
            begin, end = (int(part, 16) for part in word.split("-"))
            inside = begin <= address < end
        elif inside and word == "VmFlags:":
            return line.split()[1:]
    raise AssertionError(f"no mapping holds {address:#x}")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="no huge pages"
)
@pytest.mark.skipif(("sparse24", "avx2") not in ops.available(), reason="no compiled ops")
@pytest.mark.parametrize("kernel", ["2:4", "bitmask"])
def test_large_packed_weights_ask_for_huge_pages(kernel):
    packed = pack(compress(random_weight(kernel, 2048, 4096, torch.bfloat16), kernel), "avx2")
    values = packed.tensors[0]
    assert "hg" in _flags_at(values.data_ptr() + values.nbytes // 2)
