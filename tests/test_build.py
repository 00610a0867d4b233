"""The compiled part: what was built, its ops, and what each does with what it cannot take."""

import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunekern import _C, ops
from prunekern.formats import FORMATS, compress
from prunekern.layouts import LAYOUTS, ONLY_DTYPES, PANEL_LAYOUTS, pack
from prunekern.testing import random_weight

KERNEL = {cls.stem: name for name, cls in FORMATS.items()}
X86 = platform.machine() in ("x86_64", "AMD64")
COMPILED = {
    (stem, layout)
    for stem, layouts in LAYOUTS.items()
    for layout in layouts
    if layout == "scalar"
    or (X86 and layout.startswith("avx"))
    or (layout == "amx" and _C.build_info()["amx"])
}
PACKED = sorted(k for k in COMPILED if k[1][:3] in ("avx", "amx") and k[0] != "csr")
LINEAR = {
    "sparse24": "Tensor x, Tensor values, Tensor meta",
    "sparse24_int8": "Tensor x, Tensor values, Tensor meta, Tensor scales",
    "sparse24_int4": "Tensor x, Tensor values, Tensor meta, Tensor scales",
    "csr": "Tensor x, Tensor values, Tensor col_indices, Tensor crow_indices",
    "bitmask": "Tensor x, Tensor values, Tensor bitmask, Tensor offsets",
}
PACK = {
    "sparse24": ("Tensor values, Tensor meta", "(Tensor, Tensor)"),
    "bitmask": ("Tensor values, Tensor bitmask", "(Tensor, Tensor, Tensor)"),
}
every_op = pytest.mark.parametrize("key", sorted(COMPILED), ids="-".join)


def _packed(key):
    stem, layout = key
    dtype = ONLY_DTYPES.get(layout, (torch.float32,))[0]
    return pack(compress(random_weight(KERNEL[stem], 20, 36, dtype), KERNEL[stem]), layout)


def _runs(key):
    return key in ops.available()


def test_build_info_names_what_was_built():
    info = _C.build_info()
    on_gpu = {key for key in ops.available("cuda") if key[1] in (*PANEL_LAYOUTS, "simt")}
    assert set(info["variants"]) == {f"{stem}_{layout}" for stem, layout in COMPILED | on_gpu}
    assert info["cuda"] == bool(on_gpu) == bool(info["cuda_architectures"])
    assert info["cuda_status"]
    assert info["compiler"].split()[1][0].isdigit()
    assert tuple(int(n) for n in info["torch"].split(".")[:2]) >= (2, 10)


NO_PERMISSION = "the system's permission for tiles (arch_prctl)"
NO_COMPILER = "a build by a compiler that has -mamx-bf16"
NO_FEATURES = {"x86_64", NO_PERMISSION, NO_COMPILER}


def test_cpu_features_are_those_of_the_system():
    features = _C.cpu_features()
    assert _C.cpu_variants()["scalar"] == []
    missing = {name for lacks in _C.cpu_variants().values() for name in lacks}
    assert {name for name, there in features.items() if not there} == missing - NO_FEATURES
    if X86:
        with open("/proc/cpuinfo") as file:
            flags = next(line for line in file if line.startswith("flags")).split(":")[1]
        flags = set(flags.replace("bmi1", "bmi").replace("_", "").split())
        names = {name.replace("-", ""): there for name, there in features.items()}
        assert {name for name, there in names.items() if there} == flags & set(names)


def test_variants_build_on_each_other():
    lacks = _C.cpu_variants()
    names = ["scalar", "avx2", "avx512", "avx512bf16", "amx"]
    assert list(lacks) == names
    for less, more in itertools.pairwise(names):
        assert set(lacks[less]) <= set(lacks[more])


@every_op
def test_schema(key):
    stem, layout = key
    op = getattr(torch.ops.prunekern, f"{stem}_linear_{layout}").default
    name = f"prunekern::{stem}_linear_{layout}"
    assert str(op._schema) == (
        f"{name}({LINEAR[stem]}, Tensor? bias, int out_features, int in_features) -> Tensor"
    )
    if stem in PACK and layout != "scalar":
        inputs, outputs = PACK[stem]
        op = getattr(torch.ops.prunekern, f"{stem}_pack_{layout}").default
        assert str(op._schema) == (
            f"prunekern::{stem}_pack_{layout}({inputs}, int out_features, int in_features)"
            f" -> {outputs}"
        )


@every_op
def test_instructions_that_the_cpu_lacks_are_named_and_not_run(key):
    packed, x = _packed(key), torch.randn(2, 36)
    x = x.to(packed.dtype)
    op = ops.OPS[key]
    lacks = _C.cpu_variants()[key[1]]
    if not lacks:
        assert op(x, *packed.tensors, None, 20, 36).shape == (2, 20)
        return
    with pytest.raises(
        RuntimeError, match=f"{key[0]}_linear_{key[1]}: this CPU must have {re.escape(lacks[0])}"
    ):
        op(x, *packed.tensors, None, 20, 36)


@every_op
def test_sizes_that_would_overflow_are_refused(key):
    if not _runs(key):
        pytest.skip("this CPU can not run it")
    packed = _packed(key)
    x = torch.randn(2, 36).to(packed.dtype)
    for bad in (-(2**63), -1, 0, 2**31, 2**63 - 1):
        with pytest.raises(RuntimeError, match="out_features must be at least 1 and below"):
            ops.OPS[key](x, *packed.tensors, None, bad, 36)
        with pytest.raises(RuntimeError, match="in_features must be at least 1 and below"):
            ops.OPS[key](x, *packed.tensors, None, 20, bad)


@pytest.mark.parametrize(
    "key", sorted(k for k in COMPILED if k[0] in ("csr", "bitmask")), ids="-".join
)
def test_row_pointers_must_end_with_the_number_of_values(key):
    if not _runs(key):
        pytest.skip("this CPU can not run it")
    *tensors, pointers = _packed(key).tensors
    x = torch.randn(2, 36).to(tensors[0].dtype)
    for bad in (-(2**63), -64, -1, int(pointers[-1]) + 1, 2**40, 2**63 - 1):
        broken = pointers.clone()
        broken[-1] = bad
        for values in (tensors[0], tensors[0][:0]):
            with pytest.raises(RuntimeError, match=r"(must end with|values must have the shape)"):
                ops.OPS[key](x, values, *tensors[1:], broken, None, 20, 36)


# A process whose requests for tile registers the kernel refuses: a seccomp filter that answers
# arch_prctl(ARCH_REQ_XCOMP_PERM, ...) with EPERM.
REFUSED = """
import ctypes, struct
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
program = b"".join(struct.pack("HBBI", *line) for line in (
    (LOAD, 0, 0, 0), (IF_EQUAL, 0, 3, 158), (LOAD, 0, 0, 16), (IF_EQUAL, 0, 1, 0x1023),
    (RETURN, 0, 0, 0x00050001), (RETURN, 0, 0, 0x7fff0000)))
lines = ctypes.create_string_buffer(program, len(program))
class Filter(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("lines", ctypes.c_void_p)]
prctl = ctypes.CDLL(None).prctl
prctl(38, 1, 0, 0, 0)
if prctl(22, 2, ctypes.byref(Filter(6, ctypes.addressof(lines)))) != 0:
    raise SystemExit(77)
import torch
from prunekern import _C, ops
from prunekern.formats import compress
from prunekern.layouts import pack
print(_C.cpu_variants()["amx"])
for kernel, stem in (("2:4", "sparse24"), ("bitmask", "bitmask")):
    print(ops.default_layout(stem, torch.device("cpu"), torch.bfloat16))
    packed = pack(compress(torch.eye(4).bfloat16(), kernel), "amx")
    try:
        ops.OPS[stem, "amx"](torch.ones(2, 4).bfloat16(), *packed.tensors, None, 4, 4)
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.skipif(_C.cpu_variants()["amx"] != [], reason="this CPU has no AMX")
def test_without_the_systems_permission_amx_is_not_run():
    ran = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True)
    if ran.returncode == 77:
        pytest.skip("no seccomp filters here")
    assert ran.returncode == 0, ran.stderr
    reason, *rest = ran.stdout.splitlines()
    assert reason == str([NO_PERMISSION])
    for stem, layout, error in (("sparse24", *rest[:2]), ("bitmask", *rest[2:])):
        assert layout == "avx512bf16"
        assert f"{stem}_linear_amx: this CPU must have {NO_PERMISSION}; take another" in error


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="AMX is of x86")
def test_a_compiler_without_amx_leaves_it_out(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\ncase " $* " in *" -mamx"*) echo "unknown option -mamx"; exit 1;; esac\n'
        f'exec {shutil.which(os.environ.get("CXX", "c++"))} "$@"\n'
    )
    compiler.chmod(0o755)
    cmake = [shutil.which("cmake"), "-S", Path(__file__).parents[1], "-B", tmp_path / "build"]
    options = {"CMAKE_CXX_COMPILER": compiler, "Python_EXECUTABLE": sys.executable,
               "PRUNEKERN_OUTPUT": tmp_path}  # fmt: skip
    environment = {**os.environ, "PRUNEKERN_CUDA": "0"}
    subprocess.run([*cmake, *(f"-D{k}={v}" for k, v in options.items())], env=environment,
                   check=True, capture_output=True)  # fmt: skip
    commands = json.loads((tmp_path / "build/compile_commands.json").read_text())
    assert not any("_amx" in entry["file"] for entry in commands)
    assert any("avx512bf16" in entry["file"] for entry in commands)
    subprocess.run([cmake[0], "--build", tmp_path / "build", "--target", "module"], check=True,
                   capture_output=True)  # fmt: skip
    code = "import _C; print(_C.build_info()['amx'], _C.cpu_variants()['amx'][-1])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.strip() == f"False {NO_COMPILER}", ran.stderr


def _off_by_one_byte(t):
    """The same tensor at an address that is no multiple of its element size."""
    raw = bytearray(t.numel() * t.element_size() + 1)
    moved = torch.frombuffer(raw, dtype=t.dtype, offset=1, count=t.numel()).view(t.shape)
    moved.copy_(t)
    assert moved.data_ptr() % t.element_size() == 1
    return moved


@every_op
def test_addresses_off_the_element_size(key):
    if not _runs(key):
        pytest.skip("this CPU can not run it")
    packed = _packed(key)
    x = torch.randn(3, 36).to(packed.dtype)
    wanted = ops.linear(x, packed)
    assert torch.equal(ops.linear(_off_by_one_byte(x), packed), wanted)
    tensors = list(packed.tensors)
    i = next(i for i, t in enumerate(tensors) if t.element_size() > 1)
    tensors[i] = _off_by_one_byte(tensors[i])
    with pytest.raises(RuntimeError, match="must start at a multiple of its element size"):
        ops.OPS[key](x, *tensors, None, 20, 36)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_converts_and_rounds_as_torch_does(dtype):
    """One input, one weight: y is x * w, exact in float32, rounded once to the dtype."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).unsqueeze(1)
    for number in (1.0, -1.0, 0.7, 3.1, 2.0**-9, 2.0**9):
        w = torch.tensor([[number]], dtype=dtype)
        y = ops.linear(x, pack(compress(w, "csr"), "scalar"))
        torch.testing.assert_close(
            y, (x.float() * w.float()).to(dtype), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("key", PACKED, ids="-".join)
def test_packers_refuse_what_does_not_fit(key):
    stem, layout = key
    dtype = ONLY_DTYPES.get(layout, (torch.float32,))[0]
    c = compress(random_weight(KERNEL[stem], 20, 36, dtype), KERNEL[stem])
    name = "meta" if stem == "sparse24" else "bitmask"
    index = getattr(c, name)
    op = getattr(torch.ops.prunekern, f"{stem}_pack_{layout}")
    bad = [
        ((c.values, index, 21, 36), "must have the shape"),
        ((c.values, index, 20, 136), "must have the shape"),
        ((c.values, index, 2**62, 36), "out_features must be"),
        ((c.values, index, 20, -1), "in_features must be"),
        ((c.values, index[:, :-1], 20, 36), f"{name} must have the shape"),
        ((c.values, index.t().contiguous().t(), 20, 36), f"{name} must be contiguous"),
        ((c.values, index.to(torch.int8), 20, 36), f"{name} must be"),
        ((c.values.double(), index, 20, 36), "values must be float32, bfloat16 or float16"),
        ((c.values[:-1], index, 20, 36), "must"),
    ]
    if layout in ONLY_DTYPES:
        bad.append(((c.values.float(), index, 20, 36), "values must be bfloat16"))
    for arguments, message in bad:
        with pytest.raises(RuntimeError, match=f"prunekern::{stem}_pack_{layout}: .*{message}"):
            op(*arguments)
