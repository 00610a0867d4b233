"""Kernels that make and unmake packed bitmask weights, to the bit of layouts/bitmask.py."""

import functools

import pytest
import torch
from conftest import bits
from cuda_bitmask import WEIGHT, patterns
from cuda_linear import SOURCES
from gpu_emulation.host import HostCode
from gpu_emulation.static import sass, tool

from prunekern.formats import Bitmask, compress, decompress
from prunekern.layouts import Packed, bitmask, pack_reference, unpack
from prunekern.ops import _dense
from prunekern.testing import random_weight

pytestmark = pytest.mark.gpu_emulation
DTYPES = (torch.float16, torch.bfloat16)
DENSITIES = (0.01, 0.3, 0.5, 0.7, 1.0)
# On and off panels and tiles; rows of whole and of broken bytes; blocks of less than four panels.
SIZES = ((1, 1), (1, 64), (3, 9), (16, 70), (17, 128), (63, 65), (65, 67), (64, 192), (130, 264))
POISON = 0xA5
TESTED = ("test_schema", "test_faketensor")


@pytest.fixture(scope="module")
def kernel(nvcc):
    return HostCode([SOURCES / "bitmask_pack.cu"], "sm_80")


def poisoned(shape, dtype):
    bytes_ = torch.full((torch.Size(shape).numel() * dtype.itemsize,), POISON, dtype=torch.uint8)
    return bytes_.view(dtype).view(shape)


def run(kernel, function, arguments, memory, outputs, **options):
    """Every byte of the outputs is written once; nothing else is touched."""
    counters = kernel.run(
        f"prunekern::{function}", [*arguments, None], memory | outputs,
        uninitialised=tuple(outputs), **options,
    )  # fmt: skip
    for name, tensor in outputs.items():
        written = counters.writes[name]
        assert written.asked == written.distinct == tensor.nbytes, name
    return counters


def ends_of(counts):
    return counts.flatten().cumsum(0)


def pack(kernel, c: Bitmask, **options) -> tuple[torch.Tensor, ...]:
    """As the op does: both launches and the sums between them."""
    N, K = c.shape
    R, C = -(-N // 64), -(-K // 64)
    outputs = {
        "words": poisoned((R, C, 32, 4), torch.int32),
        "units": poisoned((4 * R * C + 1,), torch.int32),
        "counts": poisoned((N, C), torch.int32),
    }
    run(kernel, "bitmask_pack_words", ["bitmask", N, K, *outputs], {"bitmask": c.bitmask},
        outputs, **options)  # fmt: skip
    offsets = outputs["units"].cumsum(0, dtype=torch.int32)
    memory = {"values": c.values, "words": outputs["words"], "offsets": offsets,
              "ends": ends_of(outputs["counts"])}  # fmt: skip
    assert memory["ends"][-1] == len(c.values)
    packed = {"packed": poisoned((int(offsets[-1]) * 8,), c.dtype)}
    if len(c.values):
        run(kernel, "bitmask_pack_values", [*memory, N, K, "packed"], memory, packed, **options)
    return packed["packed"], outputs["words"], offsets


def unpack_by(kernel, packed: Packed, **options) -> Bitmask:
    """As the op does."""
    N, K = packed.shape
    memory = dict(zip(WEIGHT, packed.tensors, strict=True))
    outputs = {
        "rows": poisoned((N, -(-K // 8)), torch.uint8),
        "counts": poisoned((N, -(-K // 64)), torch.int32),
    }
    run(kernel, "bitmask_unpack_words", ["bitmask", N, K, *outputs],
        {"bitmask": memory["bitmask"]}, outputs, **options)  # fmt: skip
    memory["ends"] = ends_of(outputs["counts"])
    values = {"kept": poisoned((int(memory["ends"][-1]),), packed.dtype)}
    if len(values["kept"]):
        run(kernel, "bitmask_unpack_values", [*memory, N, K, "kept"], memory, values, **options)
    return Bitmask(values=values["kept"], bitmask=outputs["rows"], shape=packed.shape)


def check(kernel, c: Bitmask, name, **options):
    wanted = pack_reference(c, "sm80")
    for ours, reference in zip(pack(kernel, c, **options), wanted.tensors, strict=True):
        assert torch.equal(as_bits(ours), as_bits(reference)), name
    back = unpack_by(kernel, wanted, **options)
    assert torch.equal(as_bits(back.values), as_bits(c.values)), name
    assert torch.equal(back.bitmask, c.bitmask), name


def as_bits(t):
    return bits(t) if t.is_floating_point() else t


@pytest.mark.parametrize("density", DENSITIES)
def test_every_size_and_density(kernel, density):
    for i, (N, K) in enumerate(SIZES):
        dtype = DTYPES[i % 2]  # to kernels both are 16 bits
        c = compress(random_weight("bitmask", N, K, dtype, density, seed=N), "bitmask")
        check(kernel, c, (N, K), seed=K)


@pytest.mark.parametrize("name", patterns(2, 2))
def test_adversarial_patterns(kernel, name):
    for N, K in ((200, 520), (129, 130)):
        check(kernel, compress(patterns(N, K)[name].half(), "bitmask"), (N, K), seed=1)


def test_values_keep_their_bits(kernel):
    """Every 16-bit pattern, kept zeros of both signs and NaN with their payloads among them."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    generator = torch.Generator().manual_seed(1)
    rows = torch.zeros(256, 65, dtype=torch.uint8)
    rows.view(-1)[torch.randperm(rows.numel(), generator=generator)[:8192]] = 0xFF
    check(kernel, Bitmask(values=values, bitmask=rows, shape=(256, 520)), "bits")


def test_rows_that_start_at_odd_addresses(kernel):
    """Whole panels, but no pair of bytes that starts at a multiple of two."""
    N, K = 65, 128
    c = compress(random_weight("bitmask", N, K, torch.float16), "bitmask")
    _, words, offsets = pack_reference(c, "sm80").tensors
    given = torch.nn.functional.pad(c.bitmask.flatten(), (1, 0))
    found = {
        "words": poisoned(words.shape, torch.int32),
        "units": poisoned(offsets.shape, torch.int32),
        "counts": poisoned((N, K // 64), torch.int32),
        "rows": poisoned(given.shape, torch.uint8),
    }
    memory = {"given": given, **found}
    at = kernel.modules[0].addresses(memory)
    kernel.run("prunekern::bitmask_pack_words",
               [at["given"] + 1, N, K, "words", "units", "counts", None], memory)  # fmt: skip
    assert torch.equal(found["words"], words)
    assert torch.equal(found["units"].cumsum(0), offsets)
    kernel.run("prunekern::bitmask_unpack_words",
               ["words", N, K, at["rows"] + 1, "counts", None], memory)  # fmt: skip
    assert found["rows"][0] == POISON and torch.equal(found["rows"][1:], given[1:])


@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_no_local_memory(kernel, arch):
    """Nor spills, which are some of it; nvcc is told to refuse both."""
    try:
        tool("ptxas"), tool("cuobjdump")
    except RuntimeError as absent:
        pytest.skip(str(absent))
    for name, code in sass(kernel.modules[0].source.text, arch).items():
        assert not [i for i in code if i.opcode.startswith(("LDL", "STL"))], name


def test_tensors_on_the_cpu_need_no_op():
    weight = random_weight("bitmask", 70, 136, torch.float16)
    packed = pack_reference(compress(weight, "bitmask"), "sm80")
    assert torch.equal(decompress(unpack(packed)), weight)
    assert torch.equal(_dense(packed), weight)


def test_fakes():
    """Of ops with the same schemas in plain torch: sizes that the data decide are left open."""
    library = torch.library.Library("prunekern_tests", "FRAGMENT")
    sizes = "int out_features, int in_features"
    library.define(f"pack(Tensor values, Tensor bitmask, {sizes}) -> (Tensor, Tensor, Tensor)")
    library.define(
        f"unpack(Tensor values, Tensor bitmask, Tensor offsets, {sizes}) -> (Tensor, Tensor)"
    )

    def pack_op(values, rows, N, K):
        return pack_reference(Bitmask(values=values, bitmask=rows, shape=(N, K)), "sm80").tensors

    def unpack_op(values, words, offsets, N, K):
        c = unpack(Packed("bitmask", "sm80", (N, K), (values, words, offsets)))
        return c.values, c.bitmask

    library.impl("pack", pack_op, "CPU")
    library.impl("unpack", unpack_op, "CPU")
    fake_pack = functools.partial(bitmask.fake_pack, "sm80")
    torch.library.register_fake("prunekern_tests::pack", fake_pack, lib=library)
    torch.library.register_fake("prunekern_tests::unpack", bitmask.fake_unpack, lib=library)
    ops = torch.ops.prunekern_tests
    c = compress(random_weight("bitmask", 70, 136, torch.float16), "bitmask")
    packed = pack_reference(c, "sm80").tensors
    torch.library.opcheck(ops.pack.default, (c.values, c.bitmask, 70, 136), test_utils=TESTED)
    torch.library.opcheck(ops.unpack.default, (*packed, 70, 136), test_utils=TESTED)
