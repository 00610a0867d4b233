"""Counts GPU kernels in the emulator and models their times: writes results/emulated*.md.

`make emulated`. Nothing is measured: counters are exact, times come from the roofline of
`prunekern.compare.roofline`. Here: 2:4 beside CUTLASS's kernels and Triton's dense product;
emulated_storages.py: 2:4 beside bitmask and csr.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import emulated_storages
from emulated_runs import (
    HOPPER,
    REFERENCE_SMS,
    K,
    N,
    Run,
    cell,
    cutlass,
    ideal,
    ours,
    table,
    triton,
    triton_sparse,
)

from prunekern.compare.roofline import CHIPS, modelled

RESULTS = Path(__file__).resolve().parent / "results"
TOKENS = (1, 8, 16, 64, 128, 512)

# Name -> (the run at M tokens on so many multiprocessors, only Hopper's).
KERNELS: dict[str, tuple[Callable[[int, int], Run | None], bool]] = {
    "prunekern 2:4 sm80": (lambda M, sms: ours("sm80", M, sms), False),
    "prunekern 2:4 sm90a": (lambda M, sms: ours("sm90a", M, sms), True),
    "prunekern 2:4-int8 sm80": (lambda M, sms: ours("int8-sm80", M, sms), False),
    "prunekern 2:4-int8 sm80a8": (lambda M, sms: ours("int8-sm80a8", M, sms), False),
    "prunekern 2:4-int4 sm80": (lambda M, sms: ours("int4-sm80", M, sms), False),
    "prunekern 2:4 triton": (triton_sparse, False),
    "CUTLASS 2:4 SM80": (lambda M, sms: cutlass("sm80", "sparse", M), False),
    "CUTLASS dense SM80": (lambda M, sms: cutlass("sm80", "dense", M), False),
    "CUTLASS 2:4 SM90": (lambda M, sms: cutlass("sm90", "sparse", M), True),
    "CUTLASS dense SM90": (lambda M, sms: cutlass("sm90", "dense", M), True),
    "Triton dense": (lambda M, sms: triton(M), False),
}


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


def chip_rows(chip: str) -> list[list[str]]:
    """Each kernel's modelled times at each number of tokens, those of ideal ones, and a ratio."""
    rows, best = [], dict.fromkeys(TOKENS, float("inf"))
    for name, (run_at, hopper) in KERNELS.items():
        if hopper and chip not in HOPPER:
            continue
        runs = [run_at(M, CHIPS[chip].sms) for M in TOKENS]
        times = [run and modelled(CHIPS[chip], run.work) for run in runs]
        rows.append([name, *map(cell, times)])
        if name.startswith("prunekern 2:4 "):
            for M, time in zip(TOKENS, times, strict=True):
                best[M] = min(best[M], time.seconds if time else float("inf"))
    dense = {M: ideal(chip, M, sparse=False) for M in TOKENS}
    rows.append(["ideal 2:4", *(cell(ideal(chip, M, sparse=True)) for M in TOKENS)])
    rows.append(["ideal dense", *map(cell, dense.values())])
    ratios = (f"{dense[M].seconds / best[M]:.2f}" for M in TOKENS)
    rows.append(["ideal dense / prunekern, modelled", *ratios])
    return rows


NOTES = f"""# 2:4 beside CUTLASS: emulated and modelled, not measured

Written by `make emulated`. Each kernel was compiled for its GPU and run in an emulator on a CPU:
counts are exact and **emulated**; times are **modelled** by `prunekern/compare/roofline.py`, which
says what it assumes. y = x Wᵀ, fp16, N = K = {N}, M tokens. CUTLASS takes tokens in eights.
int8 and int4 have a scale for 64 inputs; sm80a8 one a row, and its rounding of x is not counted.
Storages of any pattern: [emulated-unstructured.md](emulated-unstructured.md).

## Emulated counters

Instructions are of warps, as PTX has them: machine code has some more and some less. A product is
one mma.sp m16n8k32, mma.sp m16n8k64 of bytes or mma m16n8k16, which take equally long; one wgmma
of a warpgroup is 64 of them. Wavefronts: 128 bytes each on the data path of shared memory and L1,
a shuffle being one; what wgmma reads there is computed, not counted. Megabytes are those that
all blocks ask for, not those of DRAM. Plans are for
{REFERENCE_SMS["sm80"]} (sm80) and {REFERENCE_SMS["sm90a"]} (sm90a)
multiprocessors."""

COUNTER_HEADER = [
    "emulated", "M", "blocks", "instr. / 1024 W", "instr. / product", "wavefronts / product",
    "conflicts", "W MB", "x MB", "workspace MB", "registers", "spilled", "blocks / SM",
]  # fmt: skip


def report() -> str:
    """The page."""
    parts = [NOTES, table(COUNTER_HEADER, counter_rows())]
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
    for name, page in (("emulated-unstructured", emulated_storages.report), ("emulated", report)):
        path = RESULTS / f"{name}.md"
        path.write_text(page())
        print(path.read_text(), flush=True)
