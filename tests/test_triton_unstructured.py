"""bitmask and csr in Triton, compiled and emulated: any pattern of zeros, and what is read of W."""

import pytest
import torch
from conftest import absent

from prunekern import _triton
from prunekern._triton.plan import Chip
from prunekern.formats import DTYPES, compress
from prunekern.layouts import pack_reference
from prunekern.testing import assert_close_to_float64, random_weight, uneven_weight

pytestmark = pytest.mark.gpu_emulation

every_stem = pytest.mark.parametrize("stem", ["bitmask", "csr"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
every_capability = pytest.mark.parametrize("capability", [80, 90])
halves = pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda d: str(d)[6:])


@pytest.fixture(autouse=True, scope="module")
def triton():
    if _triton.WHY_ABSENT:
        absent(_triton.WHY_ABSENT)


@pytest.fixture
def check(triton, monkeypatch):
    """``check(stem, M, weight, capability)``: a product against float64.

    Returns the packed weight by the kernel's names, and the counters of the product's launch.
    """
    from triton_compiled import put_on

    def run(stem, M, weight, capability):
        packed = pack_reference(compress(weight, stem), "triton")
        N, K = weight.shape
        x, bias = torch.randn(M, K).to(weight.dtype), torch.randn(N).to(weight.dtype)
        with monkeypatch.context() as patch:
            module, gpu = put_on(patch, stem, ("cuda", capability, 32), Chip(2))
            y = module.linear(x, *packed.tensors, bias, N, K)
            names = getattr(module, f"{stem}_linear_kernel").kernel.arg_names[1:]
        assert_close_to_float64(y, x, weight, bias, (M, N, K))
        return dict(zip(names, packed.tensors, strict=False)), gpu.launches[0][1]

    return run


@every_capability
@every_dtype
@every_stem
def test_any_density(check, stem, dtype, capability):
    for density in (0.0, 0.05, 0.5, 1.0):
        check(stem, 5, random_weight(stem, 45, 270, dtype, density), capability)


@every_capability
@every_stem
def test_rows_of_very_different_lengths(check, stem, capability):
    weight = uneven_weight(75, 390, torch.float16)
    for M in (1, 20):
        check(stem, M, weight, capability)


@every_capability
def test_csr_with_32_bit_columns(check, capability):
    read, _ = check("csr", 3, random_weight("csr", 5, 65540, torch.float16, 0.005), capability)
    assert read["columns"].dtype == torch.int32


# Instructions per 1024 weights, for 1 and for 16 tokens. csr: at 90 % zeros.
RECORDED = {("bitmask", 1): 530, ("bitmask", 16): 530, ("csr", 1): 70, ("csr", 16): 460}


@every_capability
@halves
@pytest.mark.parametrize(("stem", "M"), RECORDED)
def test_each_byte_is_read_once_in_full_sectors(check, stem, M, dtype, capability):
    weight = random_weight(stem, 128, 2048, dtype, 0.5 if stem == "bitmask" else 0.1)
    read, counters = check(stem, M, weight, capability)
    assert "values" in read
    for name in {"values", "bitmask", "columns"} & read.keys():
        found = counters.reads[name]
        assert (found.asked, found.distinct, 32 * found.sectors) == (read[name].nbytes,) * 3
    assert counters.instructions / (weight.numel() / 1024) <= RECORDED[stem, M]


@every_stem
def test_padding_costs_few_bytes(stem):
    weight = random_weight(stem, 512, 4096, torch.float16, 0.5 if stem == "bitmask" else 0.1)
    canonical = compress(weight, stem)
    packed = pack_reference(canonical, "triton")
    needed = sum(t.nbytes for t in canonical.tensors().values())
    assert packed.nbytes <= 1.03 * needed
