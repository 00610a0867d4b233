"""Which kind of pruning is faster than dense on this machine, from which sparsity on: measured.

Pruning alone changes no speed; each kind needs a storage and a kernel for it:

    2:4, 1:4                 kernels "2:4", and with rounded weights "2:4-int8" and "2:4-int4":
                             any weight with at most two of four kept
    other N:M, unstructured  kernels "bitmask" and "csr", which know no pattern
    heads, channels, layers  smaller dense products: any machine's own kernels

`acceleration` times one layer of each storage and a dense one in turn, here and now.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekern.formats import FORMATS
from prunekern.nn import SparseLinear
from prunekern.pruning.masks import layer_mask, nm_mask
from prunekern.timing import seconds_of

ROUNDS = {1: 21, 512: 3}  # tokens -> rounds, as short times are the noisy ones
TOKENS = tuple(ROUNDS)
SPARSITIES = (0.5, 0.7, 0.9)
SIZE = 4096  # rows and columns of the layer that is timed: 32 MB at 16 bits
# What runs on dense kernels once it is cut out: nothing to time.
STRUCTURED = "heads, FFN channels, hidden channels, layers"
_PRUNING = {"2:4": "2:4, 1:4", "unstructured": "unstructured, any N:M"}
_COPIES = 3  # of each weight, in rotation: none stays in a cache that a model would not leave it


@dataclass(frozen=True)
class Row:
    """One way to store a pruned weight here.

    Attributes:
        pruning: What may be pruned that way.
        kernel: One of `prunekern.formats.FORMATS`.
        layout: The variant that runs it here.
        factors: Sparsity -> {tokens: speed as a multiple of dense}.
        why_not: Why no kernel of ours runs it, or "".
    """

    pruning: str
    kernel: str
    layout: str
    factors: dict[float, dict[int, float]]
    why_not: str = ""

    def pays_from(self, tokens: int) -> float | None:
        """The least measured sparsity at which it is faster than dense, None where it never is."""
        return min((s for s, f in self.factors.items() if f[tokens] > 1), default=None)


@dataclass(frozen=True)
class Acceleration:
    """What `acceleration` measured.

    Attributes:
        device, dtype: Of the layer.
        shape: (N, K) of the layer.
        rows: One of each storage.
    """

    device: str
    dtype: str
    shape: tuple[int, int]
    rows: tuple[Row, ...]

    def table(self) -> list[list[str]]:
        """A header, then a line for each storage and sparsity."""
        lines = [["pruning", "kernel", "zeros", *(f"{t} tokens" for t in TOKENS), "pays from"]]
        for row in self.rows:
            pays = " / ".join(
                "never" if s is None else f"{s:.0%}" for s in map(row.pays_from, TOKENS)
            )
            for sparsity, factors in row.factors.items():
                lines.append(
                    [
                        row.pruning,
                        f"{row.kernel} {row.layout}",
                        f"{sparsity:.0%}",
                        *(f"{factors[t]:.2f}x" for t in TOKENS),
                        row.why_not or pays,
                    ]
                )
        lines.append([STRUCTURED, "dense", "any", *["as it shrinks"] * len(TOKENS), "the first"])
        return lines

    def __str__(self) -> str:
        lines = self.table()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        body = (
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        N, K = self.shape
        head = (
            f"measured: y = x W^T, {N} x {K}, {self.dtype}, on the {self.device}; "
            "speed as a multiple of dense"
        )
        return "\n".join([head, *body])


def acceleration(dtype: torch.dtype = torch.bfloat16, size: int = SIZE) -> Acceleration:
    """Times a layer of `size` x `size` in each storage beside the dense one; some seconds.

    Runs on the GPU where there is one. All contenders take turns, and a factor is the median over
    rounds of dense time / own time.

    Args:
        dtype: Of weights and tokens.
        size: N and K.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator) / size**0.5
    cells: dict[tuple[str, float], list[nn.Module]] = {}
    for kernel in FORMATS:
        for sparsity in (0.5,) if FORMATS[kernel].pattern == "2:4" else SPARSITIES:
            pruned = _pruned(weight, kernel, sparsity).to(device, dtype)
            cells[kernel, sparsity] = _copies(functools.partial(_sparse, kernel=kernel), pruned)
    dense = _copies(_dense, weight.to(device, dtype))
    factors: dict[tuple[str, float], dict[int, float]] = {cell: {} for cell in cells}
    for tokens in TOKENS:
        x = torch.randn(tokens, size, generator=generator).to(device, dtype)
        for cell, ratio in _ratios(dense, cells, x).items():
            factors[cell][tokens] = ratio
    rows = tuple(
        Row(
            pruning=_PRUNING[FORMATS[kernel].pattern],
            kernel=kernel,
            layout=cells[kernel, 0.5][0].layout,
            factors={s: f for (k, s), f in factors.items() if k == kernel},
            why_not="no kernel of ours: plain torch"
            if cells[kernel, 0.5][0].layout == "reference"
            else "",
        )
        for kernel in FORMATS
    )
    return Acceleration(device.type, str(dtype).removeprefix("torch."), (size, size), rows)


def _pruned(weight: Tensor, kernel: str, sparsity: float) -> Tensor:
    scores = weight.abs()
    is_24 = FORMATS[kernel].pattern == "2:4"
    mask = nm_mask(scores, 2, 4) if is_24 else layer_mask(scores, sparsity)
    return weight.masked_fill(~mask, 0.0)


def _copies(make: Callable[[Tensor], nn.Module], weight: Tensor) -> list[nn.Module]:
    return [make(weight.clone()) for _ in range(_COPIES)]


def _dense(weight: Tensor) -> nn.Module:
    layer = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _sparse(weight: Tensor, kernel: str) -> nn.Module:
    return SparseLinear.from_linear(_dense(weight), kernel)


@torch.inference_mode()
def _ratios(dense: list[nn.Module], cells: dict, x: Tensor) -> dict:
    """Cell -> median over rounds of dense seconds / its seconds, every copy once a turn."""
    ratios: dict = {cell: [] for cell in cells}
    for _ in range(ROUNDS[len(x)] + 1):  # the first round warms up
        reference = seconds_of(dense, x)
        for cell, layers in cells.items():
            ratios[cell].append(reference / seconds_of(layers, x))
    return {cell: statistics.median(values[1:]) for cell, values in ratios.items()}
