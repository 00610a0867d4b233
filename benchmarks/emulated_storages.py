"""The page of the four storages: dense, 2:4, bitmask and csr from 50 to 90 % zeros.

Counted on a quarter of the layer, N = 1024, by the plan of a quarter of an A100, which gives each
block the work that it has of the whole; all counts are then taken four times. Blocks are those of
each chip's own plan for the whole layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

from emulated_runs import (
    HOPPER,
    REFERENCE_SMS,
    K,
    N,
    Run,
    bitmask,
    csr,
    cuda_bitmask,
    cuda_csr,
    cutlass,
    ideal,
    linear,
    ours,
    table,
)

from prunekern.compare.expected import made_dense, sentences
from prunekern.compare.roofline import CHIPS, modelled

TOKENS = (1, 8, 16, 64, 512)
ZEROS = (0.5, 0.6, 0.7, 0.8, 0.9)
ANY_PATTERN = ("bitmask", "csr")
QUARTER = 4
SMS = REFERENCE_SMS["sm80"] // QUARTER
CSR_TOKENS = 128  # of a launch: see csr_plan


@dataclass(frozen=True)
class Counted:
    """A storage's product of M tokens: one launch of the quarter, and how many make the layer.

    Attributes:
        run: Of the quarter, by `SMS` multiprocessors.
        M: Tokens of the launch.
        blocks: Multiprocessors -> of the grid for the whole layer.
        launches: With so many tokens each.
    """

    run: Run
    M: int
    blocks: Callable[[int], int]
    launches: int = 1

    def seconds(self, chip: str) -> tuple[float, str]:
        """(modelled time of the layer, what binds)."""
        work = self.run.work
        tokens = 2 * self.M * K
        scaled = {
            name: QUARTER * getattr(work, name)
            for name in ("l2_bytes", "macs", "sparse_macs", "instructions", "wavefronts")
        }
        work = dataclasses.replace(
            work,
            dram_bytes=QUARTER * (work.dram_bytes - tokens) + tokens,
            blocks=self.blocks(CHIPS[chip].sms),
            **scaled,
        )
        found = modelled(CHIPS[chip], work)
        return self.launches * found.seconds, found.limit


def share(zeros: float) -> str:
    """As tables write it."""
    return f"{100 * zeros:.0f} %"


@functools.cache
def dense(M: int) -> Counted:
    """CUTLASS's product; it knows no chip."""
    run = cutlass("sm80", "dense", M, N // QUARTER)
    return Counted(run, M, lambda sms: QUARTER * run.blocks)


@functools.cache
def sparse24(variant: str, M: int) -> Counted | None:
    """Ours, None where the variant has no kernel of its own."""
    run = ours(variant, M, SMS, N // QUARTER)
    plan = linear(variant).plan
    return run and Counted(run, M, lambda sms: plan(M, N, K, sms).blocks)


@functools.cache
def any_pattern(storage: str, sparsity: float, M: int) -> Counted:
    """Bitmask, or csr in launches of at most `CSR_TOKENS`."""
    if storage == "bitmask":
        run = bitmask(M, sparsity, SMS, N // QUARTER)
        plan = cuda_bitmask.linear().plan
        return Counted(run, M, lambda sms: plan(M, N, K, sms).blocks)
    launches = -(-M // CSR_TOKENS)
    tokens = M // launches
    run = csr(tokens, sparsity, SMS, N // QUARTER)
    kernel, case = cuda_csr.linear(), cuda_csr.random_case(tokens, N // QUARTER, K, sparsity)

    def blocks(sms: int) -> int:
        plan = kernel.plan(tokens, N, K, QUARTER * case.units, sms)
        return plan.blocks * plan.token_tiles

    return Counted(run, tokens, blocks, launches)


def counter_row(name: str, M: int, counted: Counted) -> list[str]:
    """By 1024 weights of W, kept or not."""
    run, weights = counted.run, N // QUARTER * K
    c, scale = run.counters, 1024 * counted.launches / weights
    stored = sum(t.distinct for name, t in c.reads.items() if name not in (run.x, "workspace"))
    sectors = sum(t.sectors for name, t in c.reads.items() if name in run.weight)
    counts = (c.instructions, run.wavefronts, c.by_class["shuffle"], sum(c.conflicts.values()))
    registers, spilled, held = run.static
    return [
        name, str(M), f"{stored / weights:.3f}", f"{scale * sectors:.0f}",
        f"{scale * run.l2_bytes / 1024:.2f}", *(f"{scale * n:.1f}" for n in counts),
        f"{c.balance:.2f}", str(registers), str(spilled),
        str(held),
    ]  # fmt: skip


def counter_tables() -> list[str]:
    """One a storage."""
    found = [
        ("dense, CUTLASS SM80", [("0 %", M, dense(M)) for M in TOKENS]),
        ("2:4, sm80", [("50 %", M, sparse24("sm80", M)) for M in TOKENS]),
    ]
    for storage in ANY_PATTERN:
        rows = [(share(z), M, any_pattern(storage, z, M)) for z in ZEROS for M in TOKENS]
        found.append((storage, rows))
    header = [
        "M", "bytes / W", "sectors of W", "L2 bytes / W", "instr.", "wavefronts",
        "shuffles", "conflicts", "balance", "registers", "spilled", "blocks / SM",
    ]  # fmt: skip
    return [
        f"### {name}\n\n{table(['zeros', *header], [counter_row(*row) for row in rows])}"
        for name, rows in found
    ]


def times(chip: str) -> dict[tuple[str, float], list[tuple[float, str]]]:
    """(storage, zeros) -> modelled (seconds, limit) at each number of tokens."""
    found: dict = {("ideal dense", 0.0): []}
    for M in TOKENS:
        best = ideal(chip, M, sparse=False)
        found["ideal dense", 0.0].append((best.seconds, best.limit))
    found["dense, CUTLASS SM80", 0.0] = [dense(M).seconds(chip) for M in TOKENS]
    variants = ("sm80", "sm90a") if chip in HOPPER else ("sm80",)
    found["2:4", 0.5] = [
        min(run.seconds(chip) for v in variants if (run := sparse24(v, M))) for M in TOKENS
    ]
    for storage in ANY_PATTERN:
        for zeros in ZEROS:
            runs = [any_pattern(storage, zeros, M).seconds(chip) for M in TOKENS]
            if storage == "bitmask":
                ways = [made_dense(CHIPS[chip], zeros, M, N, K) for M in TOKENS]
                runs = [
                    min(run, (way.seconds, way.limit)) for run, way in zip(runs, ways, strict=True)
                ]
            found[storage, zeros] = runs
    return found


def fastest_rows(found: dict[tuple[str, float], list[tuple[float, str]]]) -> list[list[str]]:
    """Which storage has the least modelled time, and how many times faster than ideal dense."""
    rows = []
    for zeros, storages in (
        (0.5, ("2:4", "bitmask", "csr")),
        *((z, ANY_PATTERN) for z in ZEROS),
    ):
        row = [f"{share(zeros)}, {'2:4 too' if '2:4' in storages else 'any pattern'}"]
        for i in range(len(TOKENS)):
            seconds, storage = min((found[s, zeros][i][0], s) for s in storages)
            gain = found["ideal dense", 0.0][i][0] / seconds
            row.append(f"{storage} {gain:.2f}x" if gain > 1 else f"dense ({storage} {gain:.2f}x)")
        rows.append(row)
    return rows


NOTES = f"""# Four storages: emulated and modelled, not measured

Written by `make emulated`; see [emulated.md](emulated.md) for what is counted and what modelled.
y = x Wᵀ, fp16, N = K = {N}, M tokens, zeros at random. Everything was run on a quarter of W
({N // QUARTER} x {K}) by the plan of a quarter of an A100's multiprocessors, where blocks have the
work that they have of the whole, and is taken four times.

## Emulated counters

Of 1024 weights, kept or not. Bytes are those stored; sectors, of 32 bytes, those that all blocks
ask for. L2 bytes hold x, sums in parts and y too. Wavefronts count loads to registers and shuffles,
which share their data path. No kernel counts bits (POPC). csr takes {CSR_TOKENS} tokens a launch:
at 512 there are four, whose counts are added. Balance: instructions of the busiest warp over the
mean. Instructions are those of PTX: machine code has some more and some less. Of csr's a quarter
are moves, of 2:4's and bitmask's a tenth at most: if the assembler removed them all, csr would take
that much less where issue binds."""


def report() -> str:
    """The page."""
    parts = [NOTES, *counter_tables()]
    parts.append(
        "## Modelled times in microseconds and what binds\n\n"
        "A lower bound with fixed latencies added: limits overlap perfectly, DRAM reaches its\n"
        "whole bandwidth. Ideal dense reads and writes everything once and wastes nothing. Good\n"
        "for comparing designs, not for quoting. For very many tokens bitmask makes W dense first\n"
        "(bitmask_dense_tokens): where that is faster, it is shown, with an ideal dense product."
    )
    header = [f"M = {M}" for M in TOKENS]
    for chip in CHIPS:
        found = times(chip)
        rows = [
            [
                f"{storage} {share(zeros)}" if storage in ANY_PATTERN else storage,
                *(f"{1e6 * s:.1f} {b}" for s, b in row),
            ]
            for (storage, zeros), row in found.items()
        ]
        parts.append(f"### {chip}\n\n{table([f'modelled us, {chip}', *header], rows)}")
        parts.append(table(["fastest, of ideal dense", *header], fastest_rows(found)))
    parts.append(
        "## In words\n\nAs `prunekern hardware --chip` says it, from these counts put on lines\n"
        "over the share of kept weights and spread evenly over the multiprocessors, which the\n"
        "tables above are not: `prunekern/compare/expected.py`."
    )
    parts.append("\n".join(f"* {one}" for chip in CHIPS for one in sentences(chip)))
    return "\n\n".join(parts) + "\n"
