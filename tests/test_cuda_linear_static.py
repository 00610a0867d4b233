"""What the compiler says of the CUDA 2:4 products: spills, occupancy and the main loop."""

import re

import pytest
from cuda_linear import VARIANTS, linear
from gpu_emulation.static import main_loop, occupancy, resources, sass, tool

pytestmark = pytest.mark.gpu_emulation


@pytest.fixture(scope="module", params=VARIANTS)
def kernel(request, nvcc):
    for name in ("ptxas", "cuobjdump"):
        try:
            tool(name)
        except RuntimeError as absent:
            pytest.skip(str(absent))
    return linear(request.param)


def launch_bounds(module, name):
    """(threads of a block, blocks of a multiprocessor at least)."""
    entry = module.source.text.split(f".entry {name}", 1)[1]
    threads = re.search(r"\.maxntid (\d+)", entry)
    blocks = re.search(r"\.minnctapersm (\d+)", entry)
    return int(threads[1]), int(blocks[1]) if blocks else 1


def arches():
    return [(name, arch) for name, v in VARIANTS.items() for arch in v.runs_on]


@pytest.mark.parametrize("kernel, arch", arches(), indirect=["kernel"])
def test_no_spills_and_as_many_blocks_as_the_launch_bounds_say(kernel, arch):
    for module in kernel.modules:
        found = resources(module.source.text, arch)
        assert set(found) == set(module.kernels)
        for name, r in found.items():
            assert (r.spill_stores, r.spill_loads) == (0, 0), name
            threads, blocks = launch_bounds(module, name)
            assert occupancy(arch, r.registers, r.shared_bytes, threads).blocks >= blocks, name


def test_no_local_memory(kernel):
    for module in kernel.modules:
        for name, code in sass(module.source.text, kernel.variant.arch).items():
            assert module.source.kernel(name).local_bytes == 0
            assert not [i for i in code if i.opcode.startswith(("LDL", "STL"))], name


def test_both_dtypes_are_compiled(kernel):
    for dtype in ("6__half", "13__nv_bfloat16"):
        kernels = [name for name in kernel.kernels if dtype in name]
        assert 2 * len(kernels) == len(kernel.kernels)


def test_main_loop_of_sm80(nvcc):
    """Weights go to registers, x through shared memory by asynchronous copies and ldmatrix."""
    for module in linear("sm80").modules:
        for name, code in sass(module.source.text, "sm_80").items():
            loop = main_loop(code)
            opcodes = set(loop)
            assert any(o.startswith("HMMA.SP.16832.F32") for o in opcodes), name
            assert {"LDGSTS.E.BYPASS.128", "LDSM.16.M88.4"} <= opcodes, name
            weights = "LDG.E.NA.128.CONSTANT" if "decode" in name else "LDG.E.128.CONSTANT"
            assert weights in opcodes, name
            assert not {"LDS", "STS", "LDS.128", "STS.128"} & opcodes, name


def test_main_loop_of_sm90a(nvcc):
    """Four products a fence: ptxas has not put them one after the other."""
    (module,) = (m for m in linear("sm90a").modules if "sm90a" in m.kernels[0])
    for name, code in sass(module.source.text, "sm_90a").items():
        loop = main_loop(code)
        products = sum(n for o, n in loop.items() if o.startswith("HGMMA.SP.64x128x32.F32"))
        assert products > 0 and products % 4 == 0, name
        assert loop["WARPGROUP.ARRIVE"] == products // 4, name
        assert "LDG.E.128.CONSTANT" in loop, name
        assert not [o for o in loop if o.startswith(("LDS", "STS", "LDGSTS"))], name
