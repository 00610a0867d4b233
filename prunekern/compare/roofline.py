"""A roofline of one launch: modelled times from counted work. Nothing here was measured.

A launch lasts at least as long as whatever it keeps busy longest; that limit binds. Work inside
multiprocessors is taken to be spread over the blocks evenly; the one with most blocks counts:

    DRAM            bytes of DRAM / bandwidth
    L2              bytes that blocks ask of L2 / its bandwidth
    L2 port         the same / what multiprocessors take from L2
    tensor cores    FLOP / peak, that of mma.sp and wgmma.sp being twice the dense one
    issue           warp instructions / four a clock
    shared memory   wavefronts of 128 bytes / one a clock: register traffic of shared memory and L1

Limits overlap perfectly here, as they never quite do, and DRAM reaches its whole bandwidth: a
modelled time is a lower bound with fixed latencies added, for comparing designs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Assumptions, not measurements. A launch from a CUDA graph until its first bytes arrive and from
# its last store to the next kernel; partial sums written, counted and read again through L2.
LAUNCH_SECONDS = 2.0e-6
COMBINE_SECONDS = 1.5e-6
# Assumption: bytes that a multiprocessor takes from L2 in a clock.
L2_PORT_BYTES = 64
# Source: CUDA C++ Programming Guide, "Compute Capability 8.x, 9.0": four warp schedulers, 32 banks
# of 4 bytes.
ISSUE_A_CLOCK = 4
WAVEFRONTS_A_CLOCK = 1


@dataclass(frozen=True)
class Chip:
    """A GPU at its boost clock; rates are those of 16-bit elements with fp32 sums.

    Attributes:
        dram: Bytes a second.
        dense: FLOP/s of dense products; 2:4 ones reach twice as many.
        sms: Multiprocessors.
        clock: Hz.
        l2_bytes: That L2 gives in a clock, to all multiprocessors together.
        mma_share: Of the peak that mma and mma.sp reach; the rest needs wgmma.
        source: Of the figures, and which of them are assumptions.
    """

    dram: float
    dense: float
    sms: int
    clock: float
    l2_bytes: float
    mma_share: float
    source: str


_HOPPER = (
    "NVIDIA H100 Tensor Core GPU Architecture; mma's share of the peak: Luo et al., arXiv "
    "2402.13499; assumption: L2 as wide as the A100's"
)
_ADA = "; assumption: 16 bytes of L2 a clock and multiprocessor"
CHIPS = {
    "A100 80G": Chip(
        2039e9, 312e12, 108, 1.41e9, 5120, 1.0,
        "NVIDIA A100 80GB datasheet; L2: NVIDIA A100 Tensor Core GPU Architecture",
    ),
    "H100 SXM": Chip(3352e9, 989.4e12, 132, 1.83e9, 5120, 0.63, f"H100 datasheet; {_HOPPER}"),
    "H200": Chip(4800e9, 989.4e12, 132, 1.83e9, 5120, 0.63, f"H200 datasheet; {_HOPPER}"),
    "RTX 4090": Chip(
        1008e9, 165.2e12, 128, 2.52e9, 2048, 1.0, f"NVIDIA Ada GPU Architecture{_ADA}"
    ),
    "L4": Chip(300e9, 121e12, 58, 2.04e9, 928, 1.0, f"NVIDIA L4 datasheet{_ADA}"),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What one launch does; all counts are of the whole grid.

    Attributes:
        dram_bytes: Distinct bytes read and written.
        l2_bytes: Bytes of all sectors that are asked of L2 or written to it.
        macs: Of dense tensor-core products.
        sparse_macs: Of 2:4 ones, of stored values: half of those that the dense product has.
        instructions: Of warps.
        wavefronts: Of shared memory and of loads to registers.
        blocks: Of the grid.
        combined: Whether blocks add partial sums.
        wgmma: Whether products are those of warpgroups.
    """

    dram_bytes: float
    l2_bytes: float = 0
    macs: float = 0
    sparse_macs: float = 0
    instructions: float = 0
    wavefronts: float = 0
    blocks: int | None = None
    combined: bool = False
    wgmma: bool = False


@dataclass(frozen=True)
class Modelled:
    """The limits of a launch in seconds, by name, and its fixed latencies."""

    limits: dict[str, float]
    fixed: float

    @property
    def limit(self) -> str:
        """The name of the one that binds."""
        return max(self.limits, key=self.limits.get)

    @property
    def seconds(self) -> float:
        """The binding limit and the fixed latencies."""
        return self.limits[self.limit] + self.fixed

    def __str__(self) -> str:
        return f"modelled {self.seconds * 1e6:.1f} us, bound by {self.limit}"


def modelled(chip: Chip, work: Work) -> Modelled:
    """The limits of a launch on a chip.

    Args:
        chip: One of `CHIPS`.
        work: What the launch does. Without `blocks`, all multiprocessors have equal shares.

    Raises:
        ValueError: The chip has no wgmma.
    """
    if work.wgmma and chip.mma_share == 1.0:
        raise ValueError("modelled: the chip of a wgmma product must be one of Hopper's")
    busiest = 1 / chip.sms  # share of the grid that the busiest multiprocessor has
    if work.blocks is not None:
        busiest = math.ceil(work.blocks / chip.sms) / work.blocks
    peak = chip.dense * (1.0 if work.wgmma else chip.mma_share) / chip.sms
    return Modelled(
        limits={
            "DRAM": work.dram_bytes / chip.dram,
            "L2": work.l2_bytes / (chip.l2_bytes * chip.clock),
            "L2 port": work.l2_bytes * busiest / (L2_PORT_BYTES * chip.clock),
            "tensor cores": 2 * (work.macs + work.sparse_macs) * busiest / peak,
            "issue": work.instructions * busiest / (ISSUE_A_CLOCK * chip.clock),
            "shared memory": work.wavefronts * busiest / (WAVEFRONTS_A_CLOCK * chip.clock),
        },
        fixed=LAUNCH_SECONDS + (COMBINE_SECONDS if work.combined else 0),
    )
