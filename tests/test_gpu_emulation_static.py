"""Resources, occupancy and SASS: of the samples, and against NVIDIA's own occupancy header."""

import itertools
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import absent
from gpu_emulation import samples
from gpu_emulation.static import (
    Instruction,
    Occupancy,
    assemble,
    main_loop,
    occupancy,
    resources,
    sass,
    tool,
)

pytestmark = pytest.mark.gpu_emulation


@pytest.fixture(scope="module")
def ptx(nvcc):
    for name in ("ptxas", "cuobjdump"):
        try:
            tool(name)
        except RuntimeError as reason:
            absent(str(reason))
    return samples.ptx


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"])
@pytest.mark.parametrize("name", ["gemm_mma", "sparse_mma"])
def test_gemms_do_not_spill(ptx, name, arch):
    found = resources(ptx(name), arch)[name]
    assert (found.spill_stores, found.spill_loads) == (0, 0)
    assert 64 < found.registers <= 255
    assert found.shared_bytes == 0  # all of it is dynamic


def test_few_registers_spill(ptx):
    options = ("-maxrregcount=40", "-override-directive-values")
    found = resources(ptx("gemm_mma"), "sm_80", options)["gemm_mma"]
    assert found.registers <= 40
    assert found.spill_stores and found.spill_loads


def test_each_kernel_of_a_file_is_reported(ptx):
    found = resources(ptx("transpose"), "sm_80")
    assert set(found) == {"transpose_plain", "transpose_padded"}
    assert found["transpose_plain"].shared_bytes == 32 * 32 * 4
    assert found["transpose_padded"].shared_bytes == 32 * 33 * 4
    assert found["transpose_plain"].barriers == 1
    assert resources(ptx("saxpy"), "sm_80")["saxpy"].barriers == 0


def test_ptxas_says_what_it_refuses(ptx):
    with pytest.raises(RuntimeError, match="line 1"):
        assemble("this is not PTX", "sm_80")


def test_main_loop_of_a_dense_gemm(ptx):
    loop = main_loop(sass(ptx("gemm_mma"), "sm_80")["gemm_mma"])
    assert loop["HMMA.16816.F32"] == 32  # 2 x 4 tiles, four k of 16
    assert loop["LDSM.16.M88.4"] == loop["LDSM.16.MT88.4"] == 8
    assert loop["LDGSTS.E.BYPASS.128"] == 8
    assert "LDS" not in loop


def test_main_loop_of_a_sparse_gemm(ptx):
    cubin, _ = assemble(ptx("sparse_mma"), "sm_80")
    loop = main_loop(sass(cubin, "sm_80")["sparse_mma"])
    assert loop["HMMA.SP.16832.F32"] == 16  # half as many as dense
    assert loop["LDSM.16.M88.4"] == 12
    assert loop["LDG.E.U16"] == 4  # metadata, two tiles of two rows


@pytest.mark.parametrize(
    "name, opcode",
    [("wgmma_dense", "HGMMA.64x32x16.F32"), ("wgmma_sparse", "HGMMA.SP.64x32x32.F32")],
)
def test_main_loop_of_a_warpgroup(ptx, name, opcode):
    loop = main_loop(sass(ptx(name), "sm_90a")[name])
    assert loop[opcode] == 4  # 64 columns dense, 128 sparse
    assert resources(ptx(name), "sm_90a")[name].spill_stores == 0


def test_main_loop_without_a_loop(ptx):
    assert not main_loop([Instruction(0, "FFMA", "R0, R1, R2, R3"), Instruction(16, "EXIT", "")])


def test_main_loop_is_the_innermost_with_the_most_work():
    opcodes = [
        "MOV", "FFMA", "BRA 0x10",  # a loop with one
        "IADD3", "FFMA", "FFMA", "LDG", "BRA 0x40", "FFMA", "FFMA", "FFMA", "BRA 0x30",  # nested
        "LDS", "BRA 0xc0",  # without any
    ]  # fmt: skip
    code = [Instruction(16 * i, *[*o.split(), ""][:2]) for i, o in enumerate(opcodes)]
    assert main_loop(code) == {"FFMA": 2, "LDG": 1, "BRA": 1}


def test_occupancy_by_hand():
    # 128 registers: 4096 a warp, 4 in each of 4 files; 4 warps a block
    assert occupancy("sm_80", 128, 0, 128) == Occupancy(4, 16, ("registers",))
    # 48 KiB and the reserved one: three in 164
    assert occupancy("sm_80", 32, 49152, 128) == Occupancy(3, 12, ("shared memory",))
    assert occupancy("sm_86", 32, 49152, 128) == Occupancy(2, 8, ("shared memory",))
    assert occupancy("sm_90a", 32, 0, 1024) == Occupancy(2, 64, ("warps", "registers"))
    assert occupancy("sm_120", 16, 0, 32) == Occupancy(24, 24, ("blocks",))


def test_occupancy_of_what_does_not_fit():
    assert occupancy("sm_80", 255, 0, 1024) == Occupancy(0, 0, ("registers",))
    assert occupancy("sm_86", 32, 100 * 1024, 32) == Occupancy(0, 0, ("shared memory",))


ORACLE = r"""
#include <cstdio>
#include <cuda_occupancy.h>

int main() {
    int major, minor, warps, kib, registers, shared, threads;
    while (std::scanf("%d %d %d %d %d %d %d", &major, &minor, &warps, &kib, &registers, &shared,
                      &threads) == 7) {
        cudaOccDeviceProp chip;
        chip.computeMajor = major, chip.computeMinor = minor, chip.warpSize = 32, chip.numSms = 1;
        chip.maxThreadsPerBlock = 1024, chip.maxThreadsPerMultiprocessor = 32 * warps;
        chip.regsPerBlock = chip.regsPerMultiprocessor = 65536;
        chip.sharedMemPerBlock = 49152, chip.reservedSharedMemPerBlock = 1024;
        chip.sharedMemPerMultiprocessor = 1024 * kib;
        chip.sharedMemPerBlockOptin = 1024 * (kib - 1);
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = shared;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult result;
        auto error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &chip, &kernel, &state,
                                                             threads, shared);
        std::printf("%d\n", error ? -1 : result.activeBlocksPerMultiprocessor);
    }
}
"""
# Compute capability, warps and KiB of shared memory of an SM.
CHIPS = {
    "sm_80": (8, 0, 64, 164),
    "sm_86": (8, 6, 48, 100),
    "sm_89": (8, 9, 48, 100),
    "sm_90": (9, 0, 64, 228),
    "sm_120": (12, 0, 48, 100),
}


def test_occupancy_agrees_with_nvidias_header(nvcc, tmp_path):
    include, compiler = Path(nvcc).parents[1] / "include", shutil.which("c++")
    if compiler is None or not (include / "cuda_occupancy.h").exists():
        absent("needs a C++ compiler and cuda_occupancy.h")
    program = tmp_path / "oracle"
    (tmp_path / "oracle.cpp").write_text(ORACLE)
    command = [compiler, "-I", str(include), str(tmp_path / "oracle.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    draw = random.Random(0)
    cases = [
        (arch, draw.randint(16, 255), draw.choice([0, draw.randint(0, 99 * 1024)]), threads)
        for arch, threads, _ in itertools.product(CHIPS, range(32, 1025, 32), range(20))
    ]
    lines = [
        " ".join(map(str, (*CHIPS[arch], registers, shared, threads)))
        for arch, registers, shared, threads in cases
    ]
    said = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True)
    theirs = [int(line) for line in said.stdout.split()]
    assert theirs == [occupancy(*case).blocks for case in cases]
    assert len(set(theirs)) > 15
