"""GPU kernels in the emulator, one run each: counters, what ptxas says, and the work to model.

Ours, CUTLASS's own and Triton's dense product multiply the same sizes in fp16; each result is
judged against float64 before anybody sees its counters.
"""

from __future__ import annotations

import functools
import sys
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
HOPPER = ("H100 SXM", "H200")
REFERENCE_SMS = {"sm80": 108, "sm90a": 132}  # whose plan the tables of counters show


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
        parts: A second launch adds partial sums, or one before rounds x; its work is not counted.
        bytes: Products are those of 8-bit numbers, twice as many multiply-adds in the same time.
    """

    counters: Counters
    weight: tuple[str, ...]
    x: str
    blocks: int
    static: tuple[int, int, int]
    weight_passes: int | None = None
    wgmma: bool = False
    parts: bool = False
    bytes: bool = False

    @property
    def products(self) -> float:
        """In units of mma.m16n8k16 and mma.sp.m16n8k32, which take equally long."""
        return (self.counters.macs + self.sparse_macs) / (16 * 8 * 16)

    @property
    def sparse_macs(self) -> float:
        """As many of 16 bits as take the same time."""
        return self.counters.sparse_macs / (2 if self.bytes else 1)

    def asked(self, *names: str) -> int:
        """Bytes read from these buffers."""
        return sum(self.counters.reads[n].asked for n in names if n in self.counters.reads)

    @property
    def wavefronts(self) -> float:
        """Of 128 bytes on the data path of shared memory and L1, which a shuffle takes too.

        What wgmma.m64n128 reads and TMA writes there is no instruction's own, so it is computed:
        each reads x's tile, and W's unless that comes from registers.
        """
        counted = sum(self.counters.wavefronts.values()) + self.counters.by_class["shuffle"]
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
            sparse_macs=self.sparse_macs,
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
def ours(variant: str, M: int, sms: int, N: int = N) -> Run | None:
    """None where the variant has no kernel of its own."""
    kernel = linear(variant)
    if kernel.variant.least_tokens > M:
        return None
    case = kernel.case(M, N, K, torch.float16, bias=False, group_size=64)
    y, _ = kernel.product(case, sms)
    kernel.assert_right(y, case)
    passes = -(-M // kernel.plan(M, N, K, sms).block_tokens)
    bytes_ = kernel.variant.rounds_x
    facts = {"weight_passes": passes, "wgmma": variant == "sm90a", "bytes": bytes_, "parts": bytes_}
    x = "rounded" if bytes_ else "x"
    return _run(kernel, kernel.variant.arch, tuple(case.packed), x, **facts)


@functools.cache
def bitmask(M: int, sparsity: float, sms: int, N: int = N) -> Run:
    """The bitmask product with so many zeros at random; its W is copied to shared memory."""
    kernel = cuda_bitmask.linear()
    case = cuda_bitmask.make_case(M, N, K, torch.float16, round(1 - sparsity, 2), bias=False)
    y, _ = kernel.product(case, sms)
    assert_close_to_float64(y, case.x, case.weight)
    return _run(kernel, "sm_80", cuda_bitmask.WEIGHT, "x")


@functools.cache
def csr(M: int, sparsity: float, sms: int, N: int = N) -> Run:
    """The CSR product with so many zeros at random: one launch, as many tokens as that takes."""
    kernel, case = cuda_csr.linear(), cuda_csr.random_case(M, N, K, sparsity)
    y, _ = kernel.product(case, sms)
    assert_close_to_float64(y, case.x, case.weight)
    facts = {"weight_passes": kernel.plan_of(case, sms).token_tiles}
    return _run(kernel, "sm_75", ("values", "col_indices"), "x", **facts)


@functools.cache
def oracle(name: str, arch: str) -> Oracle:
    """CUTLASS's kernels, compiled once."""
    return Oracle(name, arch)


@functools.cache
def cutlass(arch: str, kind: str, M: int, N: int = N) -> Run:
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


def cell(found: Modelled | None) -> str:
    """Modelled microseconds and what binds."""
    return f"{found.seconds * 1e6:.1f} {found.limit}" if found else ""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
