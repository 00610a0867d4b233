"""Kernels that make and unmake 2:4 weights, to the bit of formats.py and layouts."""

import ctypes
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import absent
from gpu_emulation.compiler import cuda_to_ptx
from gpu_emulation.host import HostCode
from gpu_emulation.static import resources, tool

from prunekern.formats import (
    Sparse24,
    compress_sparse24,
    decompress,
    groups_of_four,
    nibbles_of,
    validate,
)
from prunekern.layouts import pack_reference, unpack
from prunekern.pruning.magnitude import magnitude_scores
from prunekern.pruning.masks import nm_mask

pytestmark = pytest.mark.gpu_emulation
CUDA = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
HALVES = (torch.float16, torch.bfloat16)
NS = (1, 3, 8, 16, 63, 64, 65, 130)
KS = (1, 2, 4, 5, 8, 31, 32, 64, 72, 100, 200)
# Rows longer than a turn of a warp (256 columns), than an unrolled loop, than four panels.
LONG = ((2, 520), (5, 1100), (3, 2064), (67, 576))
# Every access is a whole one and rows start at sectors.
ALIGNED = ((64, 256), (128, 512), (65, 1024))
POISON = 0xA5

every_k = pytest.mark.parametrize("K", KS)
every_dtype = pytest.mark.parametrize("dtype", HALVES, ids=lambda d: str(d)[6:])
seeds = pytest.mark.parametrize("seed", range(3))


def shapes_with(K):
    """(N, K) for every N; the long rows beside the longest of the others."""
    return [*itertools.product(NS, [K]), *(LONG if max(KS) == K else ())]


@pytest.fixture(scope="module")
def compressor(nvcc):
    return HostCode([CUDA / "sparse24_compress.cu"], "sm_80")


@pytest.fixture(scope="module")
def packer(nvcc):
    return HostCode([CUDA / "sparse24_pack.cu"], "sm_80")


class BrokenGroups(ctypes.Structure):
    """As in sparse24_convert.h."""

    _fields_ = (("count", ctypes.c_ulonglong), ("first", ctypes.c_longlong))


NONE_BROKEN = (0, 2**63 - 1)


# ---------------------------------------------------------------------------------------- inputs


def any_weight(N, K, dtype, seed):
    """Normal numbers, both zeros, both infinities, NaN of several payloads, denormals; ties."""
    generator = torch.Generator().manual_seed(1000 * N + K + seed)
    weight = torch.randn(N, K, generator=generator).to(dtype).view(torch.int16)
    infinity = int(torch.tensor(torch.inf, dtype=dtype).view(torch.int16))
    positive = [0, 0, 1, 3, infinity, infinity + 1, 0x7FFF, 0x3C00, 0x3C00]
    special = torch.tensor(positive + [number - 0x8000 for number in positive], dtype=torch.int16)
    chosen = torch.randint(len(special), (N, K), generator=generator)
    is_special = torch.rand(N, K, generator=generator) < 0.5
    return torch.where(is_special, special[chosen], weight).view(dtype)


def random_mask(N, K, seed):
    """At most two of each group, sometimes fewer."""
    generator = torch.Generator().manual_seed(seed + 1)
    kept = nm_mask(torch.rand(N, K, generator=generator), 2, 4)
    return kept & (torch.rand(N, K, generator=generator) < 0.8)


def any_sparse_weight(N, K, dtype, seed):
    """2:4 with zeros of both signs where the mask is false."""
    zeros = torch.zeros(N, K, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    zeros[torch.rand(N, K, generator=generator) < 0.3] = -0.0
    return torch.where(random_mask(N, K, seed), any_weight(N, K, dtype, seed), zeros)


def any_canonical(N, K, dtype, seed):
    """Any positions, also where a stored zero or the last group's end leaves a choice."""
    generator = torch.Generator().manual_seed(seed)
    G = -(-K // 4)
    pairs = torch.tensor([0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110], dtype=torch.uint8)
    nibbles = pairs[torch.randint(6, (N, G), generator=generator)]
    values = any_weight(N, 2 * G, dtype, seed)
    positions = torch.stack([nibbles & 3, nibbles >> 2], -1).long()
    columns = (positions + 4 * torch.arange(G).view(1, G, 1)).view(N, 2 * G)
    values = values.masked_fill(columns >= K, 0.0)
    if G % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1), value=0b0100)
    c = Sparse24(values=values, meta=nibbles[:, 0::2] | nibbles[:, 1::2] << 4, shape=(N, K))
    validate(c)
    assert torch.equal(nibbles_of(c.meta, G), nibbles[:, :G])
    return c


def larger_half(weight):
    """Bool [N, K]: the two largest magnitudes of a group, the lower position first among equals.

    By the bits, whose order puts NaN above infinity.
    """
    magnitudes = groups_of_four(weight).contiguous().view(torch.int16).int() & 0x7FFF
    best = magnitudes.argsort(dim=-1, descending=True, stable=True)[..., :2]
    mask = torch.zeros_like(magnitudes, dtype=torch.bool).scatter_(-1, best, True)
    return mask.flatten(1)[:, : weight.shape[1]]


# ------------------------------------------------------------------------------------------ runs


def host_bytes(tensor):
    """Its bytes, read-only: a kernel that writes there is stopped."""
    array = tensor.contiguous().view(torch.uint8).numpy().reshape(-1).copy()
    array.setflags(write=False)
    return array


def outputs(**shapes_and_dtypes):
    """Name -> poisoned bytes of a tensor of that shape and dtype."""
    return {
        name: np.full(torch.Size(shape).numel() * dtype.itemsize, POISON, np.uint8)
        for name, (shape, dtype) in shapes_and_dtypes.items()
    }


def sparse24_shapes(N, K, dtype):
    G = -(-K // 4)
    return {"values": ((N, 2 * G), dtype), "meta": ((N, -(-G // 2)), torch.uint8)}


def panel_shapes(N, K, dtype):
    R, C = -(-N // 64), -(-K // 64)
    return {
        "panel_values": ((R, C, 4, 2, 32, 8), dtype),
        "panel_meta": ((R, C, 32, 4), torch.int32),
    }


def assert_same(memory, **wanted):
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(memory[name], host_bytes(tensor), err_msg=name)


def assert_each_byte_once(counters, memory, *, read, written, whole=False):
    """Every byte of the buffers is asked for once; where accesses are whole, in full sectors."""
    for names, traffic in ((read, counters.reads), (written, counters.writes)):
        for name in names:
            t, size = traffic[name], memory[name].nbytes
            assert (t.distinct, t.asked) == (size, size), name
            assert not whole or t.sectors == size // 32, name


def compress(compressor, how, weight, mask=None, broken=NONE_BROKEN, **options):
    """(counters, buffers, (count, first) of broken groups) of a launcher of this name."""
    memory = {
        "dense": host_bytes(weight),
        **({} if mask is None else {"mask": host_bytes(mask)}),
        **outputs(**sparse24_shapes(*weight.shape, weight.dtype)),
        **({} if broken is None else {"broken": np.array(broken, np.int64)}),
    }
    args = [name for name in ("dense", "mask") if name in memory] + list(weight.shape)
    args += [name for name in ("values", "meta", "broken") if name in memory] + [None]
    counters = compressor.run(
        f"prunekern::{how}", args, memory, uninitialised=("values", "meta"), **options
    )
    return counters, memory, None if broken is None else tuple(memory["broken"].tolist())


# ------------------------------------------------------------------------------ compress, prune


@every_dtype
@every_k
def test_compress_equals_formats(compressor, K, dtype):
    for seed, (N, _K) in enumerate(shapes_with(K)):
        weight = any_sparse_weight(N, _K, dtype, seed)
        c = compress_sparse24(weight)
        counters, memory, broken = compress(compressor, "sparse24_compress", weight, seed=seed)
        assert_same(memory, values=c.values, meta=c.meta)
        assert broken == NONE_BROKEN
        assert_each_byte_once(counters, memory, read=["dense"], written=["values", "meta"])


@every_dtype
@every_k
def test_masked_equals_formats_of_the_masked_weight(compressor, K, dtype):
    for seed, (N, _K) in enumerate(shapes_with(K)):
        weight, mask = any_weight(N, _K, dtype, seed), random_mask(N, _K, seed)
        c = compress_sparse24(weight.masked_fill(~mask, 0.0))
        counters, memory, broken = compress(
            compressor, "sparse24_compress_masked", weight, mask, seed=seed
        )
        assert_same(memory, values=c.values, meta=c.meta)
        assert broken == NONE_BROKEN
        assert_each_byte_once(counters, memory, read=["dense", "mask"], written=["values", "meta"])


@every_dtype
@every_k
def test_largest_prunes_by_magnitude(compressor, K, dtype):
    for seed, (N, _K) in enumerate(shapes_with(K)):
        weight = any_weight(N, _K, dtype, seed)
        c = compress_sparse24(weight.masked_fill(~larger_half(weight), 0.0))
        counters, memory, _ = compress(
            compressor, "sparse24_compress_largest", weight, broken=None, seed=seed
        )
        assert_same(memory, values=c.values, meta=c.meta)
        assert_each_byte_once(counters, memory, read=["dense"], written=["values", "meta"])


@every_dtype
def test_largest_keeps_what_the_magnitude_mask_keeps_but_for_ties(compressor, dtype):
    weight = any_weight(65, 100, dtype, 0)
    weight = weight.masked_fill(~weight.isfinite(), 2.0)
    scores = magnitude_scores(weight)
    _, memory, _ = compress(compressor, "sparse24_compress_largest", weight, broken=None)
    kept = torch.from_numpy(memory["values"]).view(dtype).view(65, 25, 2)
    wanted = groups_of_four(scores * nm_mask(scores, 2, 4)).sort(-1).values[..., 2:]
    assert torch.equal(kept.float().abs().sort(-1).values, wanted)


def test_ties_go_to_the_lower_position_and_nan_beats_infinity(compressor):
    nan, inf = torch.nan, torch.inf
    rows = [
        ([1, -1, 1, -1], (0, 1)),
        ([1, 2, -2, 2], (1, 2)),
        ([2, 1, 1, -1], (0, 1)),
        ([0, -0.0, 0, 5], (0, 3)),
        ([3, 4, nan, inf], (2, 3)),
        ([inf, -inf, nan, 4], (0, 2)),
        ([nan, 4, nan, nan], (0, 2)),
        ([4, 3, 2, 1], (0, 1)),
        ([1, 2, 3, 4], (2, 3)),
    ]
    weight = torch.tensor([row for row, _ in rows], dtype=torch.float16)
    _, memory, _ = compress(compressor, "sparse24_compress_largest", weight, broken=None)
    nibbles = [int(byte) & 0xF for byte in memory["meta"]]
    assert [(n & 3, n >> 2) for n in nibbles] == [kept for _, kept in rows]


@seeds
@pytest.mark.parametrize(("N", "K"), [(1, 3), (9, 64), (65, 301), (7, 2064)])
def test_broken_groups_are_counted_and_the_first_is_named(compressor, N, K, seed):
    weight = any_sparse_weight(N, K, torch.bfloat16, seed)
    weight[:, 0 : 4 * (K // 4)][torch.rand(N, 4 * (K // 4)) < 0.1] = torch.nan
    weight[N - 1, -3:] = 1.0
    with pytest.raises(ValueError, match="at most 2 non-zeros") as error:
        compress_sparse24(weight)
    count, n, column = map(
        int, re.search(r"got (\d+) of .* row (\d+), columns (\d+)", str(error.value)).groups()
    )
    first = n * -(-K // 4) + column // 4
    everything = torch.ones(N, K, dtype=torch.bool)
    for how, mask in (("sparse24_compress", None), ("sparse24_compress_masked", everything)):
        _, _, broken = compress(compressor, how, weight, mask, seed=seed)
        assert broken == (count, first)
    # Launches add up, and the least group stays.
    _, _, broken = compress(compressor, "sparse24_compress", weight, broken=(7, 0))
    assert broken == (count + 7, 0)


# ------------------------------------------------------------------------------------ decompress


@every_dtype
@every_k
def test_decompress_equals_formats(compressor, K, dtype):
    for seed, (N, _K) in enumerate(shapes_with(K)):
        c = any_canonical(N, _K, dtype, seed)
        memory = {
            "values": host_bytes(c.values),
            "meta": host_bytes(c.meta),
            **outputs(dense=((N, _K), dtype)),
        }
        counters = compressor.run(
            "prunekern::sparse24_decompress",
            ["values", "meta", N, _K, "dense", None],
            memory,
            seed=seed,
            uninitialised=("dense",),
        )
        assert_same(memory, dense=decompress(c))
        assert_each_byte_once(counters, memory, read=["values", "meta"], written=["dense"])


# ------------------------------------------------------------------------------------------ pack


def run_pack(packer, c, **options):
    memory = {
        "values": host_bytes(c.values),
        "meta": host_bytes(c.meta),
        **outputs(**panel_shapes(*c.shape, c.dtype)),
    }
    counters = packer.run(
        "prunekern::sparse24_pack_panels",
        ["values", "meta", *c.shape, "panel_values", "panel_meta", None],
        memory,
        uninitialised=("panel_values", "panel_meta"),
        **options,
    )
    return counters, memory


def run_unpack(packer, packed, **options):
    values, meta = packed.tensors
    memory = {
        "panel_values": host_bytes(values),
        "panel_meta": host_bytes(meta),
        **outputs(**sparse24_shapes(*packed.shape, packed.dtype)),
    }
    counters = packer.run(
        "prunekern::sparse24_unpack_panels",
        ["panel_values", "panel_meta", *packed.shape, "values", "meta", None],
        memory,
        uninitialised=("values", "meta"),
        **options,
    )
    return counters, memory


@every_dtype
@every_k
def test_pack_equals_layouts(packer, K, dtype):
    for seed, shape in enumerate(shapes_with(K)):
        c = any_canonical(*shape, dtype, seed)
        values, meta = pack_reference(c, "sm80").tensors
        counters, memory = run_pack(packer, c, seed=seed)
        assert_same(memory, panel_values=values, panel_meta=meta)
        assert_each_byte_once(
            counters, memory, read=["values", "meta"], written=["panel_values", "panel_meta"]
        )


@every_dtype
@every_k
def test_unpack_equals_layouts(packer, K, dtype):
    for seed, shape in enumerate(shapes_with(K)):
        packed = pack_reference(any_canonical(*shape, dtype, seed), "sm80")
        c = unpack(packed)
        counters, memory = run_unpack(packer, packed, seed=seed)
        assert_same(memory, values=c.values, meta=c.meta)
        assert_each_byte_once(
            counters, memory, read=["panel_values", "panel_meta"], written=["values", "meta"]
        )


# -------------------------------------------------------------------- alignment, traffic, limits


@pytest.mark.parametrize(("N", "K"), ALIGNED)
def test_aligned_sizes_move_whole_sectors(compressor, packer, N, K):
    weight, mask = any_sparse_weight(N, K, torch.float16, 0), random_mask(N, K, 0)
    sparse = {"written": ["values", "meta"], "whole": True}
    counters, memory, _ = compress(compressor, "sparse24_compress", weight)
    assert_each_byte_once(counters, memory, read=["dense"], **sparse)
    assert counters.reads["dense"].requests == memory["dense"].nbytes // 512  # 32 lanes x 16 bytes
    counters, memory, _ = compress(compressor, "sparse24_compress_largest", weight, broken=None)
    assert_each_byte_once(counters, memory, read=["dense"], **sparse)
    counters, memory, _ = compress(compressor, "sparse24_compress_masked", weight, mask)
    assert_each_byte_once(counters, memory, read=["dense", "mask"], **sparse)

    c = compress_sparse24(weight)
    memory = {"values": host_bytes(c.values), "meta": host_bytes(c.meta)}
    memory |= outputs(dense=((N, K), torch.float16))
    args = ["values", "meta", N, K, "dense", None]
    counters = compressor.run("prunekern::sparse24_decompress", args, memory)
    assert_each_byte_once(counters, memory, read=["values", "meta"], written=["dense"], whole=True)

    canonical, panels = ["values", "meta"], ["panel_values", "panel_meta"]
    counters, memory = run_pack(packer, c)
    assert_each_byte_once(counters, memory, read=canonical, written=panels, whole=True)
    counters, memory = run_unpack(packer, pack_reference(c, "sm80"))
    assert_each_byte_once(counters, memory, read=panels, written=canonical, whole=True)


@pytest.mark.parametrize("shifted", ["dense", "mask", "values", "meta"])
def test_tensors_may_start_anywhere(compressor, packer, shifted):
    """A view into a larger tensor starts at any element; what lies before it stays."""
    N, K = 66, 128
    weight, mask = any_weight(N, K, torch.float16, 0), random_mask(N, K, 0)
    masked = weight.masked_fill(~mask, 0.0)
    c = compress_sparse24(masked)
    panel_values, panel_meta = pack_reference(c, "sm80").tensors
    full = {
        "dense": host_bytes(weight), "mask": host_bytes(mask),
        "values": host_bytes(c.values), "meta": host_bytes(c.meta),
        "panel_values": host_bytes(panel_values), "panel_meta": host_bytes(panel_meta),
    }  # fmt: skip
    shift = 2 if shifted in ("dense", "values") else 1

    def run(module, function, args, inputs, results):
        """Every byte of the results is as in `full`, and what lies before them is poison."""
        memory = {
            name: np.concatenate(
                [
                    np.full(shift if name == shifted else 0, POISON, np.uint8),
                    full[name] if name in inputs else np.full_like(full[name], POISON),
                ]
            )
            for name in (*inputs, *results)
        } | {"broken": np.array(NONE_BROKEN)}
        at = module.modules[0].addresses(memory)
        args = [at[a] + shift if a == shifted else a for a in args]
        module.run(f"prunekern::{function}", args, memory)
        for name in results:
            before, after = np.split(memory[name], [shift if name == shifted else 0])
            wanted = host_bytes(masked) if name == "dense" else full[name]
            np.testing.assert_array_equal(after, wanted, err_msg=name)
            assert (before == POISON).all()

    dense, sparse = ["dense", "mask"], ["values", "meta"]
    panels = ["panel_values", "panel_meta"]
    run(compressor, "sparse24_compress_masked", [*dense, N, K, *sparse, "broken", None], dense,
        sparse)  # fmt: skip
    run(compressor, "sparse24_decompress", [*sparse, N, K, "dense", None], sparse, ["dense"])
    run(packer, "sparse24_pack_panels", [*sparse, N, K, *panels, None], sparse, panels)
    run(packer, "sparse24_unpack_panels", [*panels, N, K, *sparse, None], panels, sparse)


def test_more_blocks_than_a_grid_has_are_refused(compressor, packer):
    memory = {"any": np.zeros(16, np.uint8)}
    any_ = ["any", "any"]
    with pytest.raises(RuntimeError, match="status 9"):  # cudaErrorInvalidConfiguration
        compressor.run("prunekern::sparse24_decompress", [*any_, 2**40, 4, "any", None], memory)
    with pytest.raises(RuntimeError, match="status 9"):
        packer.run("prunekern::sparse24_pack_panels", [*any_, 2**40, 4, *any_, None], memory)


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"])
@pytest.mark.parametrize("name", ["sparse24_compress", "sparse24_pack"])
def test_nothing_spills(nvcc, name, arch):
    try:
        tool("ptxas")
    except RuntimeError as missing:
        absent(str(missing))
    found = resources(cuda_to_ptx(CUDA / f"{name}.cu", arch), arch)
    assert len(found) == {"sparse24_compress": 8, "sparse24_pack": 4}[name]
    for kernel, used in found.items():
        assert (used.spill_stores, used.spill_loads) == (0, 0), kernel
        assert used.registers <= 64, kernel  # half of an SM's threads, or more, fit
