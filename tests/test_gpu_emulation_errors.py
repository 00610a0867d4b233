"""What the emulator says where PTX, arguments, launch or kernel are wrong, sentence by sentence."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_emulation import EmulationError, Module, PtxError, samples
from gpu_emulation.compiler import cuda_to_ptx

pytestmark = pytest.mark.gpu_emulation


def text_of(body="", parameters="", directives=""):
    """PTX of one kernel, k; the body's first line is line 10."""
    return f"""\
.version 8.0
.target sm_80
.address_size 64
.visible .entry k({parameters})
{directives}
{{
.reg .pred %p<4>;
.reg .b32 %r<8>;
.reg .b64 %rd<8>;
{body}
ret;
}}
"""


POINTER_AND_COUNT = ".param .u64 pointer, .param .u32 count"


def launch(
    body="", args=(), parameters="", directives="", grid=1, block=1, smem_bytes=0, **options
):
    module = Module(text_of(body, parameters, directives))
    return module.launch("k", grid, block, list(args), smem_bytes, **options)


def store(offset):
    """Stores 7 at this byte of the first argument."""
    return f"ld.param.u64 %rd1, [pointer]; mov.u32 %r1, 7; st.global.u32 [%rd1+{offset}], %r1;"


@pytest.fixture
def floats():
    return np.zeros(4, np.float32)


# ---- the text


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "no .entry in this text: is it PTX, and is a kernel defined or instantiated?"),
        (".version 8.0\n.target sm_80\n", "no .entry in this text"),
        (".version 8.0\n§ 1\n", "line 2: '§ 1\\n' is not PTX"),
    ],
)
def test_text_that_is_not_ptx(text, sentence):
    with pytest.raises(PtxError, match="^" + re.escape(sentence)):
        Module(text)


@pytest.mark.parametrize(
    "body, sentence",
    [
        ("mov.u32 %r1, %none;", "line 10: '%none' is neither a register, a variable nor a label"),
        ("\nbra nowhere;", "line 11: 'nowhere' is neither a register, a variable nor a label"),
        ("{ .reg .b32 %q; }\nmov.u32 %r1, %q;", "line 11: '%q' is neither a register"),
        ("@%r1 bra end; end:", "line 10: guard '%r1' is not a predicate register"),
        (".nonsense x;", "line 10: directive .nonsense is not known"),
        ("{", "kernel k: its body does not end"),
    ],
)
def test_a_body_that_is_wrong(body, sentence):
    with pytest.raises(PtxError, match="^" + re.escape(sentence)):
        launch(body)


def test_a_text_that_breaks_off():
    with pytest.raises(PtxError, match=r"^line 1: the text breaks off"):
        Module(".visible .entry k(.param .u64 pointer").launch("k", 1, 1, [None])


@pytest.mark.parametrize("body", ["add.u32 %r1, 1;", "mov.u32 %r1;", "ld.global.u32 %r1;"])
def test_an_instruction_that_lacks_an_operand(body):
    text = text_of(body)
    script = f"from gpu_emulation import Module; Module({text!r}).launch('k', 1, 1, [])"
    command = [sys.executable, "-c", script]  # a process of its own: it may be killed
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 1 and "line 10" in done.stderr


def test_an_instruction_that_is_not_emulated_stops_where_it_is_reached():
    body = "setp.eq.u32 %p1, 0, 1;\n@%p1 frobnicate.u32 %r1, 2;"
    assert Module(text_of(body)).unknown("k") == ["11 frobnicate.u32"]
    launch(body)
    with pytest.raises(EmulationError) as caught:
        launch(body.replace("@%p1 ", ""))
    assert str(caught.value) == (
        "this instruction is not emulated\n"
        "  at kernel k, PTX line 11 (frobnicate.u32), block (0, 0, 0), thread (0, 0, 0)"
    )


def test_cuda_that_does_not_compile(nvcc):
    with pytest.raises(RuntimeError, match=r'(?s)nvcc -ptx .*identifier "nonsense" is undefined'):
        cuda_to_ptx("__global__ void k() {\n    nonsense;\n}\n", "sm_80")


# ---- names and arguments


def test_kernels_by_name():
    module = Module(text_of())
    assert module.kernel_named("k") == "k"
    with pytest.raises(LookupError, match="0 kernels contain 'gemm': k"):
        module.kernel_named("gemm")
    with pytest.raises(KeyError, match="no kernel 'gemm'; this module has k"):
        module.launch("gemm", 1, 1, [])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_number_of_arguments(count):
    sentence = rf"k takes 2 arguments \(u64, u32\), not {count}"
    with pytest.raises(TypeError, match=sentence):
        launch(args=[1] * count, parameters=POINTER_AND_COUNT)


@pytest.mark.parametrize(
    "value, error, sentence",
    [
        (1.5, TypeError, "argument 1 of k: a float for a .u32"),
        ("1", TypeError, "argument 1 of k: str for a .u32 of 4 bytes"),
        (None, TypeError, "argument 1 of k: NoneType for a .u32 of 4 bytes"),
        ([1], TypeError, "argument 1 of k: list for a .u32 of 4 bytes"),
        (np.zeros(1), TypeError, "argument 1 of k is a buffer, the parameter a .u32"),
        (torch.zeros(1), TypeError, "argument 1 of k is a buffer, the parameter a .u32"),
        (1 << 32, ValueError, "argument 1 of k: 4294967296 does not fit 4 bytes"),
        (-(1 << 31) - 1, ValueError, "argument 1 of k: -2147483649 does not fit 4 bytes"),
        (b"123", ValueError, "argument 1 of k: 3 bytes for a parameter of 4"),
    ],
)
def test_a_scalar_that_does_not_fit(floats, value, error, sentence):
    with pytest.raises(error, match="^" + re.escape(sentence)):
        launch(args=[floats, value], parameters=POINTER_AND_COUNT)


@pytest.mark.parametrize("value", [1.5, "x", [1.0]])
def test_a_pointer_that_is_none(value):
    with pytest.raises(TypeError, match=r"^argument 0 of k: .* for a .u64"):
        launch(args=[value, 1], parameters=POINTER_AND_COUNT)


def test_numpys_floats_are_floats():
    launch(args=[np.float32(1)], parameters=".param .f32 x")


@pytest.mark.parametrize(
    "value, sentence",
    [
        (np.zeros((4, 4))[:, ::2], "a non-contiguous array: pass np.ascontiguousarray(...) of it"),
        (torch.zeros(4, 2).t(), "a non-contiguous tensor: pass .contiguous() of it"),
        (
            torch.empty(4, device="meta"),
            "a tensor on meta: the emulator runs on CPU tensors",
        ),
    ],
)
def test_memory_that_the_kernel_could_not_read(value, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        launch(args=[value, 1], parameters=POINTER_AND_COUNT)


# ---- the launch


@pytest.mark.parametrize("shape", [0, -1, (1, 0), (2, -1, 1), (1, 1, 1, 1), ()])
@pytest.mark.parametrize("what", ["grid", "block"])
def test_a_shape_that_is_none(what, shape):
    sentence = f"{what} must be one to three numbers of at least 1, not {shape!r}"
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        launch(**{what: shape})


@pytest.mark.parametrize(
    "what, shape", [("block", (1, 1, 65)), ("grid", (1, 65536)), ("grid", 1 << 31)]
)
def test_a_dimension_that_is_too_long(what, shape):
    with pytest.raises(ValueError, match=f"^{what} may be at most"):
        launch(**{what: shape})


def test_a_shape_of_floats():
    with pytest.raises(TypeError, match=r"^grid must be whole numbers, not 1\.5"):
        launch(grid=1.5)
    launch(grid=np.int64(2))


@pytest.mark.parametrize("block, threads", [(1025, 1025), ((32, 33), 1056)])
def test_too_many_threads(block, threads):
    with pytest.raises(ValueError, match=f"^{threads} threads a block: 1024 at most"):
        launch(block=block)


def test_a_block_that_the_kernel_was_not_compiled_for():
    with pytest.raises(ValueError, match=r"k was compiled for blocks of \(64, 1, 1\), not \(32, "):
        launch(directives=".reqntid 64", block=32)
    with pytest.raises(ValueError, match="k was compiled for at most 64 threads"):
        launch(directives=".maxntid 64, 1, 1", block=96)


def test_a_cluster_of_more_than_one_block():
    launch(directives=".explicitcluster .reqnctapercluster 1, 1, 1")
    with pytest.raises(PtxError, match=r"k was compiled for clusters of \(2, 1, 1\); clusters of"):
        launch(directives=".explicitcluster .reqnctapercluster 2, 1, 1", grid=2)


@pytest.mark.parametrize("target, kib", [("sm_80", 163), ("sm_86", 99), ("sm_90a", 227)])
def test_more_shared_memory_than_a_block_has(target, kib):
    module = Module(text_of("").replace("sm_80", target))
    module.launch("k", 1, 1, [], kib * 1024)
    sentence = f"0 + {kib * 1024 + 1} bytes of shared memory: a block of {target} has {kib * 1024}"
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        module.launch("k", 1, 1, [], kib * 1024 + 1)


def test_shared_memory_below_zero():
    with pytest.raises(ValueError, match=r"^0 \+ -1 bytes of shared memory"):
        launch(smem_bytes=-1)


# ---- the kernel's faults


def test_a_write_to_a_read_only_array(floats):
    floats.flags.writeable = False
    with pytest.raises(EmulationError, match=r"^write to weight, which was passed read-only\n"):
        launch(store(0), [floats, 4], POINTER_AND_COUNT, names=["weight", "count"])


@pytest.mark.parametrize(
    "offset, sentence",
    [
        (16, "byte 16 of weight, which has 16"),
        (-4, "byte -4 of weight, which has 16"),
        (14, "byte 14 of weight, which has 16"),
    ],
)
def test_a_write_out_of_bounds_names_the_nearest_buffer(floats, offset, sentence):
    module = Module(text_of(store(offset), POINTER_AND_COUNT))
    with pytest.raises(EmulationError) as caught:
        module.launch("k", 2, 4, [floats, 4], names=["weight", "count"])
    message = re.sub("at 0x[0-9a-f]+", "at ADDRESS", str(caught.value))
    assert message == (
        f"write of 4 bytes at ADDRESS is out of bounds: {sentence}\n"
        "  at kernel k, PTX line 10 (st.global.u32), block (0, 0, 0), thread (0, 0, 0)"
    )
    assert not floats.any()


def test_an_address_far_from_every_buffer():
    body = "mov.u64 %rd1, 64; mov.u32 %r1, 7; st.global.u32 [%rd1], %r1;"
    with pytest.raises(EmulationError, match=r"^write of 4 bytes at 0x40 is out of bounds"):
        launch(body)


def test_a_misaligned_address(floats):
    with pytest.raises(EmulationError, match=r"^misaligned address 0x.*2 for 4 bytes of weight\n"):
        launch(store(2), [floats, 4], POINTER_AND_COUNT, names=["weight", "count"])


def test_shared_memory_out_of_bounds():
    sentence = "^shared address 0x8 is out of bounds: 4 bytes, the block has 8\n"
    with pytest.raises(EmulationError, match=sentence):
        launch("mov.u32 %r1, 7; st.shared.u32 [8], %r1;", smem_bytes=8)


@pytest.mark.parametrize("value, races", [("7", False), ("%r0", True)])
def test_rows_that_one_stmatrix_stores_twice(value, races):
    """Alike, as Triton does, they are no race: lanes 0 and 4 name one row."""
    body = f"mov.u32 %r0, %tid.x; mov.u32 %r2, {value}; and.b32 %r1, %r0, 3; shl.b32 %r1, %r1, 4;"
    body += "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r1], {%r2};"
    expected = pytest.raises(EmulationError, match="race") if races else contextlib.nullcontext()
    with expected:
        launch(body, block=32, smem_bytes=64)


def test_a_kernel_that_stops_itself():
    with pytest.raises(EmulationError, match=r"^the kernel stopped itself \(trap\)\n"):
        launch("trap;")


def test_a_fault_names_all_there_is_to_know(nvcc):
    """Line of the PTX, line of the source, block and thread of the first lane that reads too far.

    The last vector of x, elements 1000 to 1003, is read by i = 250 = 192 + 58: the second turn of
    thread 58 of the first block.
    """
    source = samples.source("saxpy").replace("i < n / 4;", "i <= n / 4;")
    ptx = cuda_to_ptx(source, "sm_80")
    x, y = np.zeros((2, 1003), np.float32).copy()
    with pytest.raises(EmulationError) as caught:
        Module(ptx).launch("saxpy", 3, 64, [1003, 2.0, x, y], names=["n", "a", "x", "y"])
    found = re.fullmatch(
        r"read of 16 bytes at 0x[0-9a-f]+ is out of bounds: byte 4000 of x, which has 4012\n"
        r"  at kernel saxpy, PTX line (\d+) \(ld\.global\.v4\.f32\), source line (\d+) of "
        r"(.*saxpy\.cu), block \(0, 0, 0\), thread \(58, 0, 0\)",
        str(caught.value),
    )
    assert found
    assert "ld.global.v4.f32" in ptx.splitlines()[int(found[1]) - 1]
    sample = (samples.HERE / "saxpy.cu").read_text().splitlines()
    assert "x4[i]" in sample[int(found[2]) - 1]
