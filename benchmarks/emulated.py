"""Counts GPU kernels in the emulator and models their times: writes results/emulated.md.

`make emulated`. Nothing is measured: counters are exact, times come from the roofline of
`prunekern.compare.roofline`. Ours, CUTLASS's own kernels and Triton's dense product multiply the
same sizes; each result was judged against float64 before its counters are shown.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import cuda_bitmask  # noqa: E402
import cuda_csr  # noqa: E402
import triton_compiled  # noqa: E402
import triton_dense  # noqa: E402
from cuda_linear import linear, make_case  # noqa: E402
from gpu_emulation import Counters  # noqa: E402
from gpu_emulation.oracles import cutlass_cases  # noqa: E402
from gpu_emulation.oracles.cutlass import Oracle  # noqa: E402
from gpu_emulation.static import occupancy, resources  # noqa: E402

from prunekern._triton.plan import Chip  # noqa: E402
from prunekern.compare.roofline import CHIPS, Modelled, Work, modelled  # noqa: E402
from prunekern.formats import compress  # noqa: E402
from prunekern.layouts import pack_reference  # noqa: E402
from prunekern.testing import assert_close_to_float64  # noqa: E402

N = K = 4096
TOKENS = (1, 8, 16, 64, 128, 512)
CSR_TOKENS, CSR_ZEROS = (1, 8, 16), (0.7, 0.8, 0.9)
HOPPER = ("H100 SXM", "H200")
REFERENCE_SMS = {"sm80": 108, "sm90a": 132}  # whose plan the table of counters shows


@dataclass(frozen=True)
class Run:
    """One launch: its counters, what ptxas says of the kernel, and what the model needs to know.

    Attributes:
        weight, x: Names of the buffers.
        blocks: Of the grid.
        static: Registers, bytes spilled, and blocks that a multiprocessor holds.
        weight_passes: Where W is loaded to registers: how often it comes from L2, L1 serving warps
            of a block that read it together. None where it is copied to shared memory.
        wgmma: Products are those of warpgroups.
        parts: A second launch adds partial sums; its own work is not counted.
    """

    counters: Counters
    weight: tuple[str, ...]
    x: str
    blocks: int
    static: tuple[int, int, int]
    weight_passes: int | None = None
    wgmma: bool = False
    parts: bool = False

    @property
    def products(self) -> float:
        """In units of mma.m16n8k16 and mma.sp.m16n8k32, which take equally long."""
        return (self.counters.macs + self.counters.sparse_macs) / (16 * 8 * 16)

    def asked(self, *names: str) -> int:
        """Bytes read from these buffers."""
        return sum(self.counters.reads[n].asked for n in names if n in self.counters.reads)

    @property
    def wavefronts(self) -> float:
        """Of 128 bytes on the data path of shared memory and L1.

        What wgmma.m64n128 reads and TMA writes there is no instruction's own, so it is computed:
        each reads x's tile, and W's unless that comes from registers.
        """
        counted = sum(self.counters.wavefronts.values())
        weight_bytes = self.asked(*self.weight)
        if not self.wgmma:
            return counted + (weight_bytes / 128 if self.weight_passes else 0)
        groups = self.products / 64
        x_bytes = 128 * (64 if self.counters.sparse_macs else 32)
        read = groups * (x_bytes + (0 if self.weight_passes else 64 * 32))
        return counted + (read + weight_bytes + self.asked(self.x)) / 128

    @property
    def l2_bytes(self) -> int:
        """Asked of L2, in sectors, and written to it: results once, as all of these kernels do."""
        c = self.counters
        total = sum(32 * t.sectors for name, t in c.reads.items() if name not in self.weight)
        total += sum(t.distinct for t in c.writes.values())
        weight = [c.reads[name] for name in self.weight if name in c.reads]
        if self.weight_passes:
            return total + sum(self.weight_passes * t.distinct for t in weight)
        return total + sum(32 * t.sectors for t in weight)

    @property
    def work(self) -> Work:
        """As the roofline takes it: the workspace stays in L2."""
        c = self.counters
        traffic = [(name, t) for table in (c.reads, c.writes) for name, t in table.items()]
        return Work(
            dram_bytes=sum(t.distinct for name, t in traffic if name != "workspace"),
            l2_bytes=self.l2_bytes,
            macs=c.macs,
            sparse_macs=c.sparse_macs,
            instructions=c.instructions,
            wavefronts=self.wavefronts,
            blocks=self.blocks,
            combined=self.parts or self.asked("workspace") > 0,
            wgmma=self.wgmma,
        )


@functools.cache
def static(ptx: str, arch: str, kernel: str, shared_bytes: int, threads: int):
    """(registers, bytes spilled, blocks a multiprocessor)."""
    r = resources(ptx, arch)[kernel]
    held = occupancy(arch, r.registers, r.shared_bytes + shared_bytes, threads)
    return r.registers, r.spill_stores + r.spill_loads, held.blocks


def _run(host, arch: str, weight, x: str, **facts) -> Run:
    """Of the last launch of some host code."""
    name, grid, counters = host.launched[-1]
    module = host.module_of(name)
    found = static(module.source.text, arch, name, host.shared_bytes, host.threads)
    return Run(counters, weight, x, grid[0] * grid[1] * grid[2], found, **facts)


@functools.cache
def ours(variant: str, M: int, sms: int) -> Run | None:
    """None where the variant has no kernel of its own."""
    kernel = linear(variant)
    if kernel.variant.least_tokens > M:
        return None
    case = make_case(M, N, K, torch.float16, bias=False)
    y, _ = kernel.product(case, sms)
    assert_close_to_float64(y, case.x, case.weight)
    passes = -(-M // kernel.plan(M, N, K, sms).block_tokens)
    facts = {"weight_passes": passes, "wgmma": variant == "sm90a"}
    return _run(kernel, kernel.variant.arch, ("values", "meta"), "x", **facts)


@functools.cache
def bitmask(M: int, sparsity: float, sms: int) -> Run:
    """The bitmask product with so many zeros at random; its W is copied to shared memory."""
    kernel = cuda_bitmask.linear()
    case = cuda_bitmask.make_case(M, N, K, torch.float16, round(1 - sparsity, 2), bias=False)
    y, _ = kernel.product(case, sms)
    assert_close_to_float64(y, case.x, case.weight)
    return _run(kernel, "sm_80", cuda_bitmask.WEIGHT, "x")


@functools.cache
def csr(M: int, sparsity: float, sms: int) -> tuple[Run, int]:
    """(the CSR product with so many zeros at random, kept weights)."""
    kernel, case = cuda_csr.linear(), cuda_csr.random_case(M, N, K, sparsity)
    y, _ = kernel.product(case, sms)
    assert_close_to_float64(y, case.x, case.weight)
    facts = {"weight_passes": kernel.plan_of(case, sms).token_tiles}
    return _run(kernel, "sm_75", ("values", "col_indices"), "x", **facts), case.nnz


@functools.cache
def oracle(name: str, arch: str) -> Oracle:
    """CUTLASS's kernels, compiled once."""
    return Oracle(name, arch)


@functools.cache
def cutlass(arch: str, kind: str, M: int) -> Run:
    """CUTLASS takes tokens in eights; what it computes for the rest of a tile is of no concern."""
    sizes = (N, -(-M // 8) * 8, K)
    if arch == "sm80":
        host, compiled = oracle("cutlass_sm80", "sm_80"), "sm_80"
    else:
        host, compiled = oracle(f"cutlass_sm90_{kind}", "sm_90a"), "sm_90a"
    if kind == "dense":
        outcome = cutlass_cases.dense(host, "f16", *sizes, spread_poison=True)
    elif arch == "sm80":
        outcome = cutlass_cases.sm80_sparse(host, "f16", *sizes, spread_poison=True)
    else:
        outcome = cutlass_cases.sm90_sparse(host, *sizes)
    if outcome.error > 1:
        raise AssertionError(f"CUTLASS's {arch} {kind} product of {sizes} is wrong")
    weight = ("A",) if kind == "dense" else ("A", "V", "E")
    return _run(host, compiled, weight, "B", wgmma=arch == "sm90")


@functools.cache
def triton_sparse(M: int, sms: int) -> Run | None:
    """Ours in Triton: its decode, as above it dense tensor cores do the same work for both."""
    if M > 16:
        return None
    case = make_case(M, N, K, torch.float16, bias=False)
    packed = pack_reference(compress(case.weight, "2:4"), "triton")
    with pytest.MonkeyPatch.context() as patch:
        module, gpu = triton_compiled.put_on(patch, "sparse24", ("cuda", 80, 32), Chip(sms))
        y = module.linear(case.x, *packed.tensors, None, N, K)
    assert_close_to_float64(y, case.x, case.weight)
    (name, counters, ptx), (blocks, shared, threads) = gpu.launches[0], gpu.shapes[0]
    found = static(ptx, "sm_80", name, shared, threads)
    return Run(counters, ("pairs", "meta"), "x", blocks, found, parts=len(gpu.launches) > 1)


@functools.cache
def triton(M: int) -> Run | None:
    """Triton's dense product is for few tokens."""
    if M > triton_dense.BLOCK_M:
        return None
    case = make_case(M, N, K, torch.float16, bias=False)
    y, counters, blocks = triton_dense.product(case.x, case.weight)
    assert_close_to_float64(y, case.x, case.weight)
    found = static(triton_dense.ptx(), "sm_80", *triton_dense.shape())
    return Run(counters, ("W",), "x", blocks, found)


# Name -> (the run at M tokens on so many multiprocessors, only Hopper's).
KERNELS: dict[str, tuple[Callable[[int, int], Run | None], bool]] = {
    "prunekern 2:4 sm80": (lambda M, sms: ours("sm80", M, sms), False),
    "prunekern 2:4 sm90a": (lambda M, sms: ours("sm90a", M, sms), True),
    "prunekern 2:4 triton": (triton_sparse, False),
    "CUTLASS 2:4 SM80": (lambda M, sms: cutlass("sm80", "sparse", M), False),
    "CUTLASS dense SM80": (lambda M, sms: cutlass("sm80", "dense", M), False),
    "CUTLASS 2:4 SM90": (lambda M, sms: cutlass("sm90", "sparse", M), True),
    "CUTLASS dense SM90": (lambda M, sms: cutlass("sm90", "dense", M), True),
    "Triton dense": (lambda M, sms: triton(M), False),
}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def counter_rows() -> list[list[str]]:
    """One of each kernel and number of tokens."""
    rows = []
    for name, (run_at, hopper) in KERNELS.items():
        for M in TOKENS:
            run = run_at(M, REFERENCE_SMS["sm90a" if hopper else "sm80"])
            if run is None:
                continue
            c, (registers, spilled, held) = run.counters, run.static
            rows.append([
                name, str(M), str(run.blocks),
                f"{c.instructions / (N * K / 1024):.1f}",
                f"{c.instructions / run.products:.2f}",
                f"{run.wavefronts / run.products:.2f}",
                str(sum(c.conflicts.values())),
                *(f"{run.asked(*names) / 1e6:.1f}" for names in (run.weight, (run.x,))),
                f"{run.asked('workspace') / 1e6:.2f}",
                str(registers), str(spilled), str(held),
            ])  # fmt: skip
    return rows


def bitmask_rows() -> list[list[str]]:
    """One of each share of zeros and number of tokens."""
    rows = []
    for sparsity in BITMASK_ZEROS:
        for M in BITMASK_TOKENS:
            run = bitmask(M, sparsity, REFERENCE_SMS["sm80"])
            c, tiles = run.counters, N * K / 1024
            registers, spilled, held = run.static
            counts = (c.instructions, run.wavefronts, c.by_class["shuffle"])
            rows.append([
                f"{sparsity:.0%}", str(M), str(run.blocks), *(f"{n / tiles:.1f}" for n in counts),
                *(f"{n / run.products:.2f}" for n in counts), str(sum(c.conflicts.values())),
                f"{run.asked(*run.weight) / 1e6:.1f}", str(registers), str(spilled), str(held),
            ])  # fmt: skip
    return rows


def csr_rows() -> list[list[str]]:
    """One of each share of zeros and number of tokens."""
    rows = []
    for sparsity in CSR_ZEROS:
        for M in CSR_TOKENS:
            run, nnz = csr(M, sparsity, REFERENCE_SMS["sm80"])
            c, (registers, spilled, _) = run.counters, run.static
            moves = c.by_class["move"]
            times = [_cell(modelled(CHIPS[chip], run.work)) for chip in CSR_CHIPS]
            rows.append([
                f"{sparsity:.0%}", str(M), str(run.blocks), f"{run.work.dram_bytes / nnz:.2f}",
                *(f"{1024 * n / nnz:.0f}" for n in (c.instructions, c.instructions - moves)),
                *(f"{n / nnz:.3f}" for n in (run.wavefronts, sum(c.conflicts.values()))),
                f"{c.balance:.2f}", str(registers), str(spilled), *times,
            ])  # fmt: skip
    return rows


def ideal(chip: str, M: int, sparse: bool) -> Modelled:
    """A product that reads and writes everything once and wastes nothing."""
    macs = M * N * K
    work = Work(
        dram_bytes=N * K * (1.125 if sparse else 2) + 2 * M * (N + K),
        macs=0 if sparse else macs,
        sparse_macs=macs / 2 if sparse else 0,
        wgmma=chip in HOPPER,
    )
    return modelled(CHIPS[chip], work)


def _cell(found: Modelled | None) -> str:
    return f"{found.seconds * 1e6:.1f} {found.limit}" if found else ""


def chip_rows(chip: str) -> list[list[str]]:
    """Each kernel's modelled times at each number of tokens, those of ideal ones, and a ratio."""
    rows, best = [], dict.fromkeys(TOKENS, float("inf"))
    for name, (run_at, hopper) in KERNELS.items():
        if hopper and chip not in HOPPER:
            continue
        runs = [run_at(M, CHIPS[chip].sms) for M in TOKENS]
        times = [run and modelled(CHIPS[chip], run.work) for run in runs]
        rows.append([name, *map(_cell, times)])
        if name.startswith("prunekern"):
            for M, time in zip(TOKENS, times, strict=True):
                best[M] = min(best[M], time.seconds if time else float("inf"))
    dense = {M: ideal(chip, M, sparse=False) for M in TOKENS}
    rows.append(["ideal 2:4", *(_cell(ideal(chip, M, sparse=True)) for M in TOKENS)])
    rows.append(["ideal dense", *map(_cell, dense.values())])
    ratios = (f"{dense[M].seconds / best[M]:.2f}" for M in TOKENS)
    rows.append(["ideal dense / prunekern, modelled", *ratios])
    return rows


NOTES = f"""# Emulated and modelled, not measured

Written by `make emulated`. Each kernel was compiled for its GPU and run in an emulator on a CPU:
counts are exact and **emulated**; times are **modelled** by `prunekern/compare/roofline.py`, which
says what it assumes. y = x Wᵀ, fp16, N = K = {N}, M tokens. CUTLASS takes tokens in eights.

## Emulated counters

Instructions are of warps, as PTX has them: the assembler removes some moves. A product is one
mma.sp m16n8k32 or mma m16n8k16, which take equally long; one wgmma of a warpgroup is 64 of them.
Wavefronts: 128 bytes each on the data path of shared memory and L1; what wgmma reads there is
computed, not counted. Megabytes are those that all blocks ask for, not those of DRAM. Plans are
those for {REFERENCE_SMS["sm80"]} (sm80) and {REFERENCE_SMS["sm90a"]} (sm90a) multiprocessors."""

COUNTER_HEADER = [
    "emulated", "M", "blocks", "instr. / 1024 W", "instr. / product", "wavefronts / product",
    "conflicts", "W MB", "x MB", "workspace MB", "registers", "spilled", "blocks / SM",
]  # fmt: skip


BITMASK_ZEROS, BITMASK_TOKENS = (0.5, 0.7, 0.9), (1, 8, 16, 64, 512)
BITMASK_NOTES = """## Bitmask on tensor cores

As above, for 1024 weights, kept or not, and for a mma m16n8k16; shuffles take the data path too and
are not among its wavefronts. W MB has offsets as often as lanes ask for them."""
BITMASK_HEADER = [
    "zeros", "M", "blocks", "instr. / 1024 W", "wavefronts", "shuffles", "instr. / product",
    "wavefronts", "shuffles", "conflicts", "W MB", "registers", "spilled", "blocks / SM",
]  # fmt: skip


CSR_CHIPS = ("A100 80G", "H100 SXM", "RTX 4090")
CSR_NOTES = """## CSR on CUDA cores

As above, for a kept weight and zeros at random. Instructions also without moves, most of which the
assembler removes. Balance: instructions of the busiest warp over the mean. Modelled microseconds
take the counts of the one plan shown."""
CSR_HEADER = [
    "zeros", "M", "blocks", "DRAM bytes", "instr. / 1024", "less moves", "wavefronts",
    "conflicts", "balance", "registers", "spilled", *(f"modelled us, {c}" for c in CSR_CHIPS),
]  # fmt: skip


def report() -> str:
    """The page."""
    parts = [NOTES, table(COUNTER_HEADER, counter_rows())]
    parts.append(f"{BITMASK_NOTES}\n\n{table(BITMASK_HEADER, bitmask_rows())}")
    parts.append(f"{CSR_NOTES}\n\n{table(CSR_HEADER, csr_rows())}")
    parts.append(
        "## Modelled times in microseconds and what binds\n\n"
        "A lower bound with fixed latencies added: limits overlap perfectly, DRAM reaches its\n"
        "whole bandwidth. Good for comparing designs, not for quoting."
    )
    for name, chip in CHIPS.items():
        header = [f"modelled us, {name}", *(f"M = {M}" for M in TOKENS)]
        parts.append(
            f"{table(header, chip_rows(name))}\n\nSource of the chip's rates: {chip.source}."
        )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    path = HERE / "results" / "emulated.md"
    path.write_text(report())
    print(path.read_text())
