"""Everything that a machine with a GPU is asked for, in one run: build, check, sanitize, measure.

    make gpu                        python3 benchmarks/gpu.py, about 8 minutes
    python3 benchmarks/gpu.py --dry-run    a few tiny cells on the CPU, to try this file

Needs torch, numpy, cmake, ninja, pybind11 and nvcc, and nothing from a registry. Writes
benchmarks/results/gpu-<name>.{json,md} after every step; what is there is not done again for the
same sources, so that a run that was cut off goes on. --fresh forgets it.

A cell is one shape, pattern of zeros and number of tokens. Its contenders, cuBLAS, ours and those
of rivals.py, take turns; each turn replays a CUDA graph of products with enough copies of the
weight in rotation that none is in L2. Times are medians over turns, of one product.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# (out_features, in_features): Llama 3 8B and 70B, Llama 2 7B's down_proj.
SHAPES = (
    (4096, 4096),
    (1024, 4096),
    (14336, 4096),
    (4096, 14336),
    (4096, 11008),
    (8192, 8192),
    (28672, 8192),
    (8192, 28672),
)
DRY_SHAPES = ((64, 128), (96, 64))
ANY_PATTERN_SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 8192)
DENSE = "cublas"
# Pattern -> (stem, layout) of what multiplies such weights.
CONTENDERS = {
    "2:4": (
        *(("sparse24", v) for v in ("sm90a", "sm80", "cusparselt", "cutlass")),
        ("sparse24_int8", "sm80"), ("sparse24_int8", "sm80a8"), ("sparse24_int4", "sm80"),
    ),
    **dict.fromkeys(
        ("50 %", "70 %", "90 %"),
        (
            ("bitmask", "sm80"), ("bitmask", "triton"),
            ("csr", "simt"), ("csr", "triton"), ("csr", "cusparse"),
        ),
    ),
}  # fmt: skip
MOST_TOKENS = {"csr": 512}  # products without tensor cores, which take seconds a turn beyond
DTYPE = torch.bfloat16
TURNS = 15
MOST_CALLS = 64  # in one graph
SANITIZER_SECONDS = 100


def build() -> None:
    """Compiles the package for this chip, into the source tree."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
    environment = {**os.environ, "PRUNEKERN_CUDA": "1"}
    subprocess.run([*pip, "-e", str(ROOT)], check=True, env=environment)


def check() -> dict[str, str]:
    """Check and variant -> "" or what went wrong; one that fails does not stop the others."""
    import gpu_checks

    results = {}
    for stem, layout, dtype in gpu_checks.variants_here():
        for one in gpu_checks.CHECKS:
            name = f"{one.__name__} {stem}-{layout}-{str(dtype)[6:]}"
            try:
                one((stem, layout, dtype))
                results[name] = ""
            except Exception as error:
                results[name] = f"{type(error).__name__}: {error}" or "failed"
                print(f"FAILED {name}\n{traceback.format_exc(limit=3)}", flush=True)
    print(f"{sum(not r for r in results.values())} of {len(results)} checks passed", flush=True)
    return results


def sanitize() -> dict[str, str]:
    """Tool of compute-sanitizer -> its last lines."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"compute-sanitizer": "not installed"}
    results = {}
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = [program, "--tool", tool, sys.executable, str(ROOT / "tests" / "gpu_checks.py")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=SANITIZER_SECONDS, env=environment
            )
            lines = (run.stdout + run.stderr).strip().splitlines()
            results[tool] = f"exit {run.returncode}: " + " | ".join(lines[-3:])
        except subprocess.TimeoutExpired:
            results[tool] = f"did not end within {SANITIZER_SECONDS} s"
        print(f"{tool}: {results[tool]}", flush=True)
    return results


# --------------------------------------------------------------------------------------- measuring


def random_weight(shape: tuple[int, int], pattern: str, device: torch.device) -> torch.Tensor:
    """Two of every four kept at random, or that share zero; made on the device, which is fast."""
    weight = torch.randn(shape, device=device, dtype=DTYPE)
    if pattern == "2:4":
        dropped = torch.rand(shape, device=device).view(-1, 4).argsort(-1).view(shape) < 2
    else:
        dropped = torch.rand(shape, device=device) < float(pattern.removesuffix(" %")) / 100
    return weight.masked_fill_(dropped, 0.0)


def contenders(
    shape: tuple[int, int], pattern: str, device: torch.device
) -> dict[str, list[Callable]]:
    """Name -> one function x -> y for each copy of the weight."""
    from prunekern import compress, ops, pack
    from prunekern.formats import FORMATS

    weight = random_weight(shape, pattern, device)
    cold = (
        3 * torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    )

    def copies(nbytes: int) -> int:
        return max(2, min(MOST_CALLS, -(-cold // nbytes)))

    dense = [weight.clone() for _ in range(copies(weight.nbytes))]
    found = {DENSE: [lambda x, w=w: torch.nn.functional.linear(x, w) for w in dense]}
    kernels = {cls.stem: name for name, cls in FORMATS.items()}
    wanted = CONTENDERS[pattern]
    if device.type == "cpu":
        stems = dict.fromkeys(stem for stem, _ in wanted)
        wanted = [(stem, layout) for stem in stems for layout in ("avx2", "reference")]
    for stem, layout in wanted:
        name = f"{kernels[stem]} {layout}"
        try:
            ops.check_runs(stem, layout, device, DTYPE, "gpu")
            packed = pack(compress(weight, kernels[stem]), layout)
        except (ValueError, RuntimeError) as error:
            print(f"{shape}, {pattern}: without {name}: {error}", flush=True)
            continue
        op = ops.op_for(stem, layout)
        tensors = [tuple(t.clone() for t in packed.tensors) for _ in range(copies(packed.nbytes))]
        found[name] = [lambda x, op=op, t=t: op(x, *t, None, *shape) for t in tensors]
    return found


def as_one_call(functions: list[Callable], x: torch.Tensor) -> Callable[[], None]:
    """All products one after another: a CUDA graph, or on the CPU a loop."""

    def run() -> None:
        for f in functions:
            f(x)

    run()
    if x.device.type == "cpu":
        return run
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def timer(device: torch.device) -> Callable[[Callable[[], None]], float]:
    """A function that takes what to run and returns its milliseconds."""

    def on_cpu(run: Callable[[], None]) -> float:
        begin = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begin)

    def on_gpu(run: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    return on_gpu if device.type == "cuda" else on_cpu


def measure(found: dict[str, list[Callable]], x: torch.Tensor) -> dict[str, float | str]:
    """Contender -> microseconds of one product, or what went wrong."""
    results: dict[str, float | str] = {}
    runs = {}
    for name, functions in found.items():
        try:
            runs[name] = as_one_call(functions, x)
        except Exception as error:
            results[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    milliseconds = timer(x.device)
    times = {name: [] for name in runs}
    for turn in range(TURNS + 2):
        for name, run in runs.items():
            took = milliseconds(run)
            if turn >= 2:  # the first two warm up
                times[name].append(took)
    for name, took in times.items():
        results[name] = round(1e3 * statistics.median(took) / len(found[name]), 3)
    return results


# ----------------------------------------------------------------------------------------- the run


def digest() -> str:
    """Of the sources that results depend on."""
    files = [
        Path(__file__),
        *sorted((ROOT / "csrc").rglob("*.*")),
        *(ROOT / "prunekern").glob("*.py"),
        *(ROOT / "prunekern" / "layouts").glob("*.py"),
        *(ROOT / "prunekern" / "_triton").glob("*.py"),
    ]
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()[:16]


def table(document: dict) -> str:
    """Results as Markdown."""
    lines = [f"# {document['device']}: sparse products against cuBLAS and other libraries", ""]
    for key in ("torch", "cuda", "build", "dtype"):
        lines.append(f"* {key}: {document[key]}")
    failed = [f"{name}: {result}" for name, result in document["checks"].items() if result]
    lines.append(f"* checks: {len(document['checks']) - len(failed)} passed, {len(failed)} failed")
    lines += [f"  * {line}" for line in failed]
    lines += [f"* {tool}: {result}" for tool, result in document["sanitizer"].items()]
    lines += ["", "Microseconds of one product (times the speed of cuBLAS), weights not in cache."]
    for pattern in CONTENDERS:
        cells = [cell for cell in document["cells"].values() if cell["pattern"] == pattern]
        if cells:
            lines += ["", f"## {pattern if pattern == '2:4' else f'{pattern} zeros'}", ""]
            lines += rows_of(cells)
    return "\n".join(lines) + "\n"


def rows_of(cells: list[dict]) -> list[str]:
    """The table of one pattern."""
    names = list(dict.fromkeys(name for cell in cells for name in cell["microseconds"]))
    lines = ["| N x K | M | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for cell in cells:
        took = cell["microseconds"]
        row = [f"{cell['N']} x {cell['K']}", str(cell["M"])]
        for name in names:
            value, dense = took.get(name, ""), took[DENSE]
            compare = isinstance(value, float) and isinstance(dense, float)
            row.append(f"{value} ({dense / value:.2f}x)" if compare else str(value))
        lines.append("| " + " | ".join(row) + " |")
    return lines


def plan(dry: bool) -> list[tuple[tuple[int, int], str, tuple[int, ...]]]:
    """(shape, pattern, tokens), in the order of measuring: 2:4 first."""
    if dry:
        return [(shape, pattern, (1, 16)) for pattern in CONTENDERS for shape in DRY_SHAPES]
    any_pattern = [(s, p, TOKENS) for s in ANY_PATTERN_SHAPES for p in CONTENDERS if p != "2:4"]
    return [(shape, "2:4", TOKENS) for shape in SHAPES] + any_pattern


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seconds", type=float, default=860, help="no new cell after these")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found")
    parser.add_argument("--no-build", action="store_true", help="take the package as it is")
    parser.add_argument("--dry-run", action="store_true", help="tiny cells on the CPU")
    arguments = parser.parse_args()
    begin = time.monotonic()
    if not arguments.dry_run and not torch.cuda.is_available():
        raise SystemExit("gpu: torch must find a GPU, got none; --dry-run tries this on the CPU")
    if not arguments.no_build:
        build()

    from prunekern import hardware

    found = hardware()
    print(found, flush=True)
    device = torch.device("cpu" if arguments.dry_run else "cuda:0")
    name = "cpu" if arguments.dry_run else torch.cuda.get_device_name()
    slug = "-".join(name.lower().split())
    path = arguments.results / f"gpu-{slug}.json"
    document = {
        "device": name, "torch": torch.__version__, "cuda": torch.version.cuda,
        "build": found.build.get("cuda_status", found.problem), "dtype": str(DTYPE)[6:],
        "sources": digest(), "checks": {}, "sanitizer": {}, "cells": {},
    }  # fmt: skip
    if path.exists() and not arguments.fresh:
        earlier = json.loads(path.read_text())
        if earlier["sources"] == document["sources"]:
            document = earlier

    def save() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(document))

    # Dry, the checks are tried by tests/test_gpu.py.
    for step, what in (("checks", check), ("sanitizer", sanitize)):
        if not document[step] and not arguments.dry_run:
            document[step] = what()
            save()
    wanted = plan(arguments.dry_run)
    for shape, pattern, tokens in wanted:
        keys = {M: f"{shape[0]}x{shape[1]}x{M} {pattern}" for M in tokens}
        missing = [M for M, key in keys.items() if key not in document["cells"]]
        if not missing or time.monotonic() - begin > arguments.seconds:
            continue
        runs = contenders(shape, pattern, device)
        for M in missing:
            if time.monotonic() - begin > arguments.seconds:
                break
            x = torch.randn(M, shape[1], device=device).to(DTYPE)
            few = {n: r for n, r in runs.items() if M <= MOST_TOKENS.get(n.split()[0], M)}
            cell = {"N": shape[0], "K": shape[1], "M": M, "pattern": pattern}
            document["cells"][keys[M]] = {**cell, "microseconds": measure(few, x)}
            save()
    print(table(document))
    left = sum(len(tokens) for _, _, tokens in wanted) - len(document["cells"])
    if left:
        print(f"{left} cells are left: run it again")
    if any(document["checks"].values()):
        raise SystemExit("gpu: every check must pass, got failures: see above")


if __name__ == "__main__":
    main()
