"""AVX-512 and AMX kernels on any x86 machine with AVX2, compiled with portable intrinsics."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from prunekern.formats import DTYPES, FORMATS, compress, group_size_of
from prunekern.layouts import pack_reference
from prunekern.testing import SHAPES, max_error, random_weight, tolerance

ROOT = Path(__file__).parents[1]
KERNELS = ("sparse24_avx512", "sparse24_avx512bf16", "bitmask_avx512", "bitmask_avx512bf16",
           "csr_avx512", "sparse24_amx", "bitmask_amx", "sparse24_int8_avx512",
           "sparse24_int4_avx512", "sparse24_int8_amx", "sparse24_int4_amx")  # fmt: skip
SOURCES = dict.fromkeys(k.replace("_int8_", "_int_").replace("_int4_", "_int_") for k in KERNELS)
FLAGS = ("-std=c++20 -O1 -fPIC -Wall -Wextra -Werror -Wno-psabi -Wno-attributes "
         "-mavx2 -mfma -mf16c -mbmi -mbmi2 -mpopcnt -ffp-contract=off").split()  # fmt: skip
KERNEL = {cls.stem: name for name, cls in FORMATS.items()}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portable")
    headers = [ROOT / f"tests/portable/{name}_portable.h" for name in ("avx512", "amx")]
    included = [word for header in headers for word in ("-include", str(header))]
    objects = []
    for source in [ROOT / f"csrc/cpu/{k}.cpp" for k in SOURCES] + [
        ROOT / "tests/portable/capi.cpp"
    ]:
        objects.append(str(folder / f"{source.stem}.o"))
        command = ["g++", *FLAGS, *included, "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    path = folder / "portable.so"
    subprocess.run(["g++", "-shared", "-o", str(path), *objects], check=True)
    function = ctypes.CDLL(str(path)).portable_linear
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, pointer, size, size, size, ctypes.c_int,
                         pointer, pointer, pointer, ctypes.c_bool, size, size]  # fmt: skip
    function.restype = None
    return function


def run(function, name, x, packed, bias):
    y = torch.full((x.shape[0], packed.shape[0]), float("nan"), dtype=x.dtype)
    tensors = [t.data_ptr() for t in packed.tensors] + [None]
    wide = packed.tensors[1].dtype == torch.int32
    scales, group_size = 0, 0
    if FORMATS[KERNEL[packed.stem]].bits:
        scales = packed.tensors[2].shape[1]
        group_size = group_size_of(packed.shape[1], scales)
    function(KERNELS.index(name), x.data_ptr(), y.data_ptr(),
             None if bias is None else bias.data_ptr(), x.shape[0], *packed.shape,
             DTYPES.index(x.dtype), *tensors[:3], wide, scales, group_size)  # fmt: skip
    return y


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_portable_kernel_is_right(library, name):
    stem, layout = name.rsplit("_", 1)
    case = 0
    for dtype in DTYPES if layout == "avx512" else (torch.bfloat16,):
        for N, K in SHAPES:
            for M in (1, 2, 4, 5, 9, 13, 17, 41, 70):
                case += 1
                weight = random_weight(KERNEL[stem], N, K, dtype, (0.5, 0.1, 1.0)[case % 3], case)
                packed = pack_reference(compress(weight, KERNEL[stem]), layout)
                x = torch.randn(M, K).to(dtype)
                bias = torch.randn(N).to(dtype) if case % 2 else None
                y = run(library, name, x, packed, bias)
                error, allowed = max_error(y, x, weight, bias), tolerance(x, weight, bias)
                assert error <= allowed, (dtype, N, K, M, error, allowed)
