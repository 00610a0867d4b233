"""What each storage should gain on a GPU: modelled from counted work, never measured.

A product reads each stored byte of W once, x and y once, and makes its kernel's instructions,
shared memory wavefronts and tensor-core products; the roofline says which of them binds. The counts
are those of the emulator (benchmarks/results/emulated.md); a dense product is taken to waste
nothing, so that factors are those against an ideal rival.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunekern.compare.roofline import CHIPS, Chip, Modelled, Work, modelled

DENSE = "dense"
STORAGES = ("2:4", "bitmask", "csr")
# Bytes of the layouts at 16 bits, padding left out: see prunekern/layouts.
_META_BYTES = {"2:4": 0.125, "bitmask": 0.125 + 4 / 1024 + 7 / 1024}
_ENTRY_BYTES = {"2:4": 2, "bitmask": 2, "csr": 4}


@dataclass(frozen=True)
class Counted:
    """Work of one launch, by 1024 weights, or by 1024 stored entries in csr.

    Attributes:
        instructions: Of warps.
        wavefronts: Of shared memory and of loads to registers, at half of the weights kept.
        passes: How often the launch asks L2 for W.
    """

    instructions: float
    wavefronts: float
    passes: int = 1


# Storage -> tokens up to which a row counts -> what was counted at so many. Beyond the last row
# work grows with the tokens.
COUNTED: Mapping[str, Mapping[int, Counted]] = {
    "2:4": {
        8: Counted(21.9, 14.5),
        16: Counted(28.9, 20.0),
        64: Counted(56.7, 38.1, 2),
        128: Counted(83.3, 57.9, 2),
        512: Counted(308.1, 231.7, 8),
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
    weight_bytes = N * K * bytes_a_weight(storage, sparsity)
    tokens_bytes = 2 * M * (N + K)
    hopper = chip.mma_share < 1
    if storage == DENSE:
        return modelled(chip, Work(weight_bytes + tokens_bytes, macs=M * N * K, wgmma=hopper))
    work, scale = _counted(storage, M)
    units = N * K / 1024 * scale * ((1 - sparsity) if storage == "csr" else 1)
    padded = 8 * -(-M // 8)
    return modelled(
        chip,
        Work(
            dram_bytes=weight_bytes + tokens_bytes,
            l2_bytes=weight_bytes * work.passes * scale + tokens_bytes,
            macs=padded * N * K if storage == "bitmask" else 0,
            sparse_macs=padded * N * K / 2 if storage == "2:4" else 0,
            instructions=units * work.instructions,
            wavefronts=units * work.wavefronts,
            wgmma=hopper and storage == "2:4" and M > 64,
        ),
    )


def _counted(storage: str, M: int) -> tuple[Counted, float]:
    """The row for M tokens, and how many times its work that is."""
    rows = COUNTED[storage]
    most = max(rows)
    return (rows[min(m for m in rows if m >= M)], 1.0) if most >= M else (rows[most], M / most)


def gains(chip: Chip, sparsity: float, M: int, N: int = 4096, K: int = 4096) -> dict[str, float]:
    """Storage -> modelled time of the dense product / its own, the fastest first."""
    dense = product(chip, DENSE, 0, M, N, K).seconds
    found = {s: dense / product(chip, s, sparsity, M, N, K).seconds for s in STORAGES}
    if sparsity != 0.5:
        del found["2:4"]
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def fastest(chip: Chip, sparsity: float, M: int, N: int = 4096, K: int = 4096) -> str:
    """The storage with the least modelled time for a weight with any pattern of zeros, or "dense".

    Not "2:4", which takes a pattern of its own.
    """
    found = gains(chip, sparsity, M, N, K)
    found.pop("2:4", None)
    storage, gain = max(found.items(), key=lambda item: item[1])
    return storage if gain > 1 else DENSE


def sentence(chip_name: str, sparsity: float, M: int) -> str:
    """In words, e.g. "modelled on an H100 SXM: at 50 % and 1 token bitmask is 1.7x, csr 0.9x"."""
    found = gains(CHIPS[chip_name], sparsity, M)
    parts = ", ".join(f"{storage} {gain:.1f}x" for storage, gain in found.items())
    tokens = f"{M} token{'s' if M > 1 else ''}"
    where = f"modelled on {chip_name}, 4096 x 4096"
    return f"{where}: at {sparsity:.0%} zeros and {tokens} {parts} of dense"
