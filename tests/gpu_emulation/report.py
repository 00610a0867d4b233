"""Measures the emulator and writes the tables of README.md: make emulation-report.

The README's tables stand between HTML comments that name them; what is printed is what is written.
"""

from __future__ import annotations

import re
import statistics
import time
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from . import mutations, samples
from .compiler import nvcc, tool_version
from .emulator import Module
from .oracles import cutlass_cases as cutlass
from .oracles import triton_cases as triton
from .oracles.cutlass import Oracle

README = Path(__file__).with_name("README.md")
RUNS = 7
ORACLES = {"sm80": "sm_80", "sm90_dense": "sm_90a", "sm90_sparse": "sm_90a"}


@contextmanager
def stopwatch(module: Module):
    """A list to which each launch of the module adds its CPU time and its counters."""
    launch, taken = module.launch, []

    def timed(*args, **options):
        start = time.process_time()
        counters = launch(*args, **options)
        taken.append((time.process_time() - start, counters))
        return counters

    module.launch = timed
    try:
        yield taken
    finally:
        del module.launch  # the class's own again


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    first, *lines = (f"| {' | '.join(line)} |" for line in (head, *rows))
    return "\n".join([first, "|" + "---|" * len(head), *lines])


def speed() -> str:
    """Times of launches, and warp instructions a second."""
    sm80, sm90 = Oracle("cutlass_sm80", "sm_80"), Oracle("cutlass_sm90_dense", "sm_90a")
    gemm = Module(samples.ptx("gemm_mma"))

    def sample(**options):
        samples.SAMPLES["gemm_mma"].run(partial(gemm.launch, **options), m=64, n=64, k=64)

    size = (512, 512, 512)
    kernels = {
        "CUTLASS SM80 dense f16, 512 x 512 x 512": (
            sm80.modules[0], partial(cutlass.dense, sm80, "f16", *size),
        ),
        "CUTLASS SM80 2:4 f16, 512 x 512 x 512": (
            sm80.modules[0], partial(cutlass.sm80_sparse, sm80, "f16", *size),
        ),
        "CUTLASS SM90 dense f16, 512 x 512 x 512": (
            sm90.modules[0], partial(cutlass.dense, sm90, "f16", *size),
        ),
        "`gemm_mma`, 64 x 64 x 64": (gemm, sample),
    }  # fmt: skip
    rows = []
    for name, (module, run) in kernels.items():
        for races in (True, False):
            with stopwatch(module) as taken:
                for _ in range(1 + RUNS):
                    run(races=races)
            seconds = statistics.median(seconds for seconds, _ in taken[1:])
            rate = taken[0][1].instructions / seconds / 1e6
            rows.append([name, "yes" if races else "no", f"{1000 * seconds:.2f}", f"{rate:.1f}"])
    head = ["kernel", "race checks", "ms", "million warp instructions/s"]
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"CPU time of a launch, the median of {RUNS} after a first one, on a core of "
        f"{model[1] if model else 'an unnamed CPU'}:\n\n{markdown(head, rows)}"
    )


def _cases():
    """(name, shapes, one run at each) of every oracle."""
    oracles = {n: Oracle(f"cutlass_{n}", a) for n, a in ORACLES.items()}
    for dtype in cutlass.HALVES:
        run = partial(cutlass.dense, oracles["sm80"], dtype, spread_poison=True)
        yield f"CUTLASS SM80 dense {dtype}", cutlass.DENSE_SHAPES, run
    for dtype in cutlass.HALVES:
        run = partial(cutlass.sm80_sparse, oracles["sm80"], dtype, spread_poison=True)
        yield f"CUTLASS SM80 2:4 {dtype}", cutlass.SPARSE_SHAPES, run
    run = partial(cutlass.sm80_sparse_int8, oracles["sm80"])
    yield "CUTLASS SM80 2:4 s8", cutlass.SPARSE_INT8_SHAPES, run
    for dtype in cutlass.HALVES:
        run = partial(cutlass.dense, oracles["sm90_dense"], dtype)
        yield f"CUTLASS SM90 dense {dtype}", cutlass.DENSE_SHAPES, run
    run = partial(cutlass.sm90_sparse, oracles["sm90_sparse"])
    yield "CUTLASS SM90 2:4 f16 with its compressor", cutlass.SM90_SPARSE_SHAPES, run
    for capability in (80, 90):
        for case in triton.CASES:
            name = f"Triton `{case.__name__}`, sm_{capability}"
            yield name, [], partial(case, capability)
        for dtype, precision in triton.MATMUL_PRECISIONS:
            name = f"Triton `matmul` {dtype}{' ' + precision if dtype == 'fp32' else ''}"
            run = partial(triton.matmul, capability, dtype, precision)
            yield f"{name}, sm_{capability}", triton.MATMUL_SHAPES, run


def oracles() -> str:
    """Each oracle's largest error against float64, as a share of what the tests allow."""
    rows = []
    for name, shapes, run in _cases():
        error = max(run(*shape).error for shape in shapes or [()])
        sizes = ", ".join(" x ".join(map(str, shape)) for shape in shapes)
        rows.append([name, sizes or run.func.__doc__.rstrip("."), f"{error:.3f}" if error else "0"])
    release = re.search(r"release ([\d.]+)", tool_version(nvcc()))[1]
    return (
        f"CUTLASS {version('nvidia-cutlass')}, Triton {version('triton')}, nvcc {release}; the "
        "error is the largest of all sizes, as a share of its bound:\n\n"
        + markdown(["oracle", "sizes", "error / bound"], rows)
    )


SECTIONS = {"speed": speed, "oracles": oracles, "mutations": mutations.table}


def fill(text: str, section: str, body: str) -> str:
    """The text with the body between the section's two comments; LookupError without them."""
    between = re.compile(f"(?<=<!-- {section} -->\n).*?(?=<!-- /{section} -->)", re.DOTALL)
    filled, count = between.subn(lambda _: f"{body}\n", text)
    if count != 1:
        raise LookupError(f"{count} places for {section!r}")
    return filled


def main() -> None:
    """Prints each section and puts it into the README."""
    for section, make in SECTIONS.items():
        body = make()
        print(f"{body}\n", flush=True)
        README.write_text(fill(README.read_text(), section, body))


if __name__ == "__main__":
    main()
