"""What each storage should gain on a GPU: modelled from counted work, never measured.

A product reads each stored byte of W once, x and y once, and makes its kernel's instructions,
shared memory wavefronts and requests to L2; the roofline says which of them binds. The counts are
those of the emulator (benchmarks/results/emulated-unstructured.md); a dense product is taken to
waste nothing, so that factors are those against an ideal rival. No product asks here: which storage
a weight has is said by its user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prunekern.compare.roofline import CHIPS, Chip, Modelled, Work, modelled

DENSE = "dense"
STORAGES = ("2:4", "bitmask", "csr")
SPARSITIES, TOKENS = (0.5, 0.7, 0.9), (1, 16, 512)  # that are spoken of
# What drivers call these chips.
_DRIVER_NAMES = {
    "NVIDIA A100-SXM4-80GB": "A100 80G",
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H200": "H200",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA L4": "L4",
}
# Bytes of the layouts at 16 bits, padding left out: see prunekern/layouts. bitmask has an offset
# for each tile of 1024, whose values fill units of 16 bytes: 7 too many on average.
_META_BYTES = {"2:4": 0.125, "bitmask": 0.125 + 4 / 1024 + 7 / 1024}
_ENTRY_BYTES = {"2:4": 2, "bitmask": 2, "csr": 4}


class Line(NamedTuple):
    """Work for 1024 weights: a part of all of them and a part of those that are kept."""

    all: float
    kept: float = 0.0

    def at(self, density: float) -> float:
        """With so large a share kept."""
        return self.all + self.kept * density


@dataclass(frozen=True)
class Counted:
    """Work of a product by 1024 weights, zeros included.

    Attributes:
        instructions: Of warps.
        wavefronts: Of shared memory, shuffles, and loads to registers.
        l2_bytes: That blocks ask L2 for or write there.
    """

    instructions: Line
    wavefronts: Line
    l2_bytes: Line


# Kernel -> tokens up to which a row counts -> what was counted at so many: fp16, a quarter of a
# W of 4096 x 4096, the plan of a quarter of an A100; lines through 50 and 90 % zeros, which miss
# the counts between by 4 % at most. The last row counts in proportion to the tokens, from the row
# before it on.
COUNTED: Mapping[str, Mapping[int, Counted]] = {
    "2:4": {
        8: Counted(Line(21.7), Line(14.5), Line(1460)),
        16: Counted(Line(28.8), Line(20.1), Line(1768)),
        64: Counted(Line(56.7), Line(38.2), Line(2464)),
        128: Counted(Line(83.3), Line(58.5), Line(4416)),
        512: Counted(Line(308.1), Line(234.0), Line(11648)),
    },
    "2:4 wgmma": {
        128: Counted(Line(55.1), Line(49.5), Line(3264)),
        512: Counted(Line(188.6), Line(198.0), Line(11648)),
    },
    "bitmask": {
        8: Counted(Line(199.7), Line(55.0, 16.2), Line(725, 2108)),
        16: Counted(Line(208.5), Line(56.5, 16.2), Line(1289, 2108)),
        32: Counted(Line(247.8), Line(73.6, 16.2), Line(1233, 2108)),
        64: Counted(Line(278.0), Line(93.7, 16.2), Line(2145, 2108)),
        128: Counted(Line(339.0), Line(133.9, 16.2), Line(3969, 2108)),
        512: Counted(Line(1288.7), Line(527.0, 64.8), Line(12420, 8430)),
    },
    "csr": {
        1: Counted(Line(54.1, 440.5), Line(3.0, 115.0), Line(98, 4226)),
        2: Counted(Line(60.6, 517.7), Line(2.6, 118.8), Line(135, 4229)),
        4: Counted(Line(73.1, 702.0), Line(4.0, 162.5), Line(210, 4236)),
        8: Counted(Line(92.1, 1032.8), Line(8.4, 170.7), Line(360, 4248)),
        64: Counted(Line(265.6, 8264.9), Line(51.2, 1363.4), Line(839, 33797)),
    },
}


def bytes_a_weight(storage: str, sparsity: float) -> float:
    """Of a weight with 16-bit values, zeros included.

    Args:
        storage: "dense", "2:4", "bitmask" or "csr" (16-bit columns).
        sparsity: Share of zeros, in [0, 1].
    """
    if storage == DENSE:
        return 2.0
    return _META_BYTES.get(storage, 0.0) + _ENTRY_BYTES[storage] * (1 - sparsity)


def product(chip: Chip, storage: str, sparsity: float, M: int, N: int, K: int) -> Modelled:
    """y[M,N] = x[M,K] W[N,K]^T on a chip.

    Args:
        chip: One of `roofline.CHIPS`.
        storage: Of W: "dense", "2:4", "bitmask" or "csr".
        sparsity: Share of zeros; 2:4 stores half of the weights whatever it is.
        M: Tokens.
        N: out_features.
        K: in_features.
    """
    sparsity = 0.5 if storage == "2:4" else sparsity
    dram_bytes = N * K * bytes_a_weight(storage, sparsity) + 2 * M * (N + K)
    if storage == DENSE:
        return modelled(chip, Work(dram_bytes, macs=M * N * K, wgmma=chip.mma_share < 1))
    if storage == "bitmask":
        expanded = _launch(chip, storage, sparsity, M, N, K, dram_bytes)
        return min(expanded, made_dense(chip, sparsity, M, N, K), key=lambda m: m.seconds)
    return _launch(chip, storage, sparsity, M, N, K, dram_bytes)


def made_dense(chip: Chip, sparsity: float, M: int, N: int, K: int) -> Modelled:
    """What bitmask does for very many tokens: one launch makes W dense, then a dense product."""
    dense = product(chip, DENSE, 0, M, N, K)
    moved = modelled(chip, Work(N * K * (bytes_a_weight("bitmask", sparsity) + 2)))
    seconds = moved.limits[moved.limit] + dense.limits[dense.limit]
    return Modelled({"made dense": seconds}, moved.fixed + dense.fixed)


def _launch(
    chip: Chip, storage: str, sparsity: float, M: int, N: int, K: int, dram_bytes: float
) -> Modelled:
    """The product of a kernel of ours."""
    wgmma = chip.mma_share < 1 and storage == "2:4" and M > 64
    work, scale = _counted("2:4 wgmma" if wgmma else storage, M)
    units = N * K / 1024 * scale
    macs = 8 * -(-M // 8) * N * K
    return modelled(
        chip,
        Work(
            dram_bytes=dram_bytes,
            l2_bytes=units * work.l2_bytes.at(1 - sparsity),
            macs=macs if storage == "bitmask" else 0,
            sparse_macs=macs / 2 if storage == "2:4" else 0,
            instructions=units * work.instructions.at(1 - sparsity),
            wavefronts=units * work.wavefronts.at(1 - sparsity),
            combined=True,
            wgmma=wgmma,
        ),
    )


def _counted(kernel: str, M: int) -> tuple[Counted, float]:
    """The row for M tokens, which come in eights, and how many times its work that is."""
    *small, last = rows = COUNTED[kernel]
    row = next((m for m in small if m >= M), None)
    return (rows[last], 8 * -(-M // 8) / last) if row is None else (rows[row], 1.0)


def gains(chip: Chip, sparsity: float, M: int, N: int = 4096, K: int = 4096) -> dict[str, float]:
    """Storage -> modelled time of the dense product / its own, the fastest first.

    "2:4" is among them at a sparsity of 0.5 only.
    """
    dense = product(chip, DENSE, 0, M, N, K).seconds
    storages = STORAGES if sparsity == 0.5 else STORAGES[1:]
    found = {s: dense / product(chip, s, sparsity, M, N, K).seconds for s in storages}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def fastest(chip: Chip, sparsity: float, M: int, N: int = 4096, K: int = 4096) -> str:
    """The storage with the least modelled time for a weight with any pattern of zeros, or "dense".

    Says when csr beats bitmask, and when either beats dense. Never "2:4", which takes a pattern of
    its own.
    """
    found = gains(chip, sparsity, M, N, K)
    found.pop("2:4", None)
    storage, gain = next(iter(found.items()))
    return storage if gain > 1 else DENSE


def sentence(chip_name: str, sparsity: float, M: int) -> str:
    """In words: what a layer of 4096 x 4096 gains in each storage, and which to take.

    Args:
        chip_name: A key of `roofline.CHIPS`.
        sparsity: Share of zeros.
        M: Tokens.
    """
    chip = CHIPS[chip_name]
    parts = ", ".join(f"{name} {gain:.2f}x" for name, gain in gains(chip, sparsity, M).items())
    tokens = f"{M} token{'s' if M > 1 else ''}"
    return (
        f"modelled on {chip_name}: at {100 * sparsity:.0f} % zeros and {tokens} {parts} "
        f"of ideal dense; fastest for any pattern: {fastest(chip, sparsity, M)}"
    )


def sentences(chip_name: str, who: str = "sentences") -> list[str]:
    """One at each sparsity and number of tokens of `SPARSITIES` and `TOKENS`.

    Raises:
        ValueError: The chip is not one of `roofline.CHIPS`.
    """
    if chip_name not in CHIPS:
        raise ValueError(f"{who}: chip must be one of {', '.join(CHIPS)}, got {chip_name!r}")
    return [sentence(chip_name, s, M) for s in SPARSITIES for M in TOKENS]


def chip_named(name: str) -> str | None:
    """The key of `roofline.CHIPS` for a GPU's name as its driver gives it, or None.

    Cards of other memory or power, as "NVIDIA A100 80GB PCIe", are none of them.
    """
    return _DRIVER_NAMES.get(name)
