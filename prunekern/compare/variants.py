"""What is compared: one variant a row, and how its model is made."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunekern.formats import FORMATS
from prunekern.fuse import FusedLinear
from prunekern.nn import SparseLinear
from prunekern.pruning import prune
from prunekern.pruning.masks import parse_pattern
from prunekern.replace import replace_linears
from prunekern.structured import remove_channels, remove_heads
from prunekern.targets import match_modules

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DENSE = "dense"
TORCH_CSR = "torch CSR"
REMOVED = "removed"
# Pattern -> how it is removed, and the Linears of a decoder layer that become smaller.
STRUCTURED = {
    "heads": (remove_heads, ("q_proj", "k_proj", "v_proj", "o_proj")),
    "channels": (remove_channels, ("gate_proj", "up_proj", "down_proj")),
}


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        pattern: "dense", "unstructured", "N:M", "heads" or "channels".
        storage: "dense", "csr", "bitmask", "2:4", "torch CSR", the rival, or "removed" for a
            smaller dense layer.
        dtype: float32, bfloat16 or float16.
        sparsity: Of the pruned layers, as asked for.
        fused: Whether q, k, v and gate, up are one product each.
        compiled: Whether a token is decoded by a compiled step.
    """

    pattern: str
    storage: str
    dtype: str
    sparsity: float
    fused: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        return self._stored + ", fused" * self.fused + ", compiled" * self.compiled

    @property
    def _stored(self) -> str:
        if self.pattern == DENSE:
            return f"dense {self.dtype}"
        stored = "stored dense" if self.storage == DENSE else f"as {self.storage}"
        if self.storage == REMOVED:
            # What was asked for is rounded to whole groups or tiles: the table has what is gone.
            return f"{self.pattern} removed {self.dtype}"
        if self.storage == self.pattern:
            return f"{self.pattern} {self.dtype}"
        percent = f" {self.sparsity:.0%}" if self.pattern == "unstructured" else ""
        return f"{self.pattern}{percent} {stored} {self.dtype}"

    @property
    def weights_key(self) -> tuple[str, str]:
        """Variants with the same key hold the same numbers, stored in different ways."""
        return self.pattern, self.dtype


def variants_for(
    patterns: Sequence[str],
    sparsity: float,
    dtypes: Sequence[str],
    structured: float = 0.0,
    fuse: bool = False,
    compiled: bool = False,
) -> list[Variant]:
    """The rows, dense first, for each dtype; with `structured` those of heads and channels.

    `fuse` is for rows that we store, `compiled` for all.

    Raises:
        ValueError: An unknown pattern or dtype, or a sparsity or share outside [0, 1).
    """
    if not 0 <= structured < 1:
        raise ValueError(f"compare: structured must be in [0, 1), got {structured}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"compare: sparsity must be in [0, 1), got {sparsity}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"compare: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    rows = []
    for dtype in dtypes:
        rows.append(Variant(DENSE, DENSE, dtype, 0.0))
        for pattern in patterns:
            nm = parse_pattern(pattern, "compare")
            share = sparsity if nm is None else 1 - nm[0] / nm[1]
            storages = [DENSE, "csr", "bitmask"]
            if nm is None and dtype == "float32":
                storages.append(TORCH_CSR)  # torch multiplies CSR in no shorter dtype on a CPU
            if nm is not None and nm[0] <= 2 and nm[1] % 4 == 0:
                storages = ["2:4"] if pattern == "2:4" else [DENSE, "bitmask", "2:4"]
            rows += [Variant(pattern, storage, dtype, share) for storage in storages]
        if structured:
            rows += [Variant(pattern, REMOVED, dtype, structured) for pattern in STRUCTURED]
    return [replace(row, fused=fuse and row.storage in FORMATS, compiled=compiled) for row in rows]


class TorchCSRLinear(nn.Module):
    """The rival: torch's own CSR times dense product, as a user would write it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "sparse CSR tensor support is in beta state"
            self.csr = linear.weight.detach().to_sparse_csr()
        self.bias = linear.bias

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        parts = (self.csr.crow_indices(), self.csr.col_indices(), self.csr.values())
        return sum(t.numel() * t.element_size() for t in parts)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        y = (self.csr @ x.flatten(0, -2).t()).t().reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def target_names(model: nn.Module, variant: Variant, targets: Sequence[str] | str) -> list[str]:
    """Layers that a variant changes: the targets, or those that a removal makes smaller."""
    if variant.storage == REMOVED:
        targets = STRUCTURED[variant.pattern][1]
    return list(match_modules(model, targets, "compare"))


def build(
    model: nn.Module,
    variant: Variant,
    targets: Sequence[str] | str,
    calibration: Tensor | None = None,
) -> list[str]:
    """Prunes and swaps layers of a dense model, in place; returns their names.

    Args:
        model: Dense.
        variant: What is made of it.
        targets: Layers, but for what is removed.
        calibration: int64 [windows, size], for what is removed: by activation, refitted.
    """
    names = target_names(model, variant, targets)
    if variant.pattern == DENSE:
        return names
    if variant.storage == REMOVED:
        remove = STRUCTURED[variant.pattern][0]
        remove(
            model,
            fraction=variant.sparsity,
            by="activation",
            calibration=calibration,
            compensate="least_squares",
        )
        return names
    sparsity = variant.sparsity if variant.pattern == "unstructured" else None
    prune(model, variant.pattern, sparsity=sparsity, targets=targets)
    if variant.storage == TORCH_CSR:
        for name in names:
            parent, _, child = name.rpartition(".")
            linear = model.get_submodule(name)
            setattr(model.get_submodule(parent), child, TorchCSRLinear(linear))
    elif variant.storage != DENSE:
        replace_linears(model, variant.storage, targets, prune=False, fuse=variant.fused)
    return names


def alone(layer: nn.Module) -> nn.Module:
    """A layer that computes its own product only, where it is fused with others."""
    if not isinstance(layer, FusedLinear):
        return layer
    return SparseLinear(layer.canonical(), layer.bias, layer.layout)


def weight_bytes(module: nn.Module) -> int:
    """Bytes that one layer's weight takes in memory."""
    if isinstance(module, SparseLinear | TorchCSRLinear):
        return module.nbytes
    return module.weight.numel() * module.weight.element_size()


def model_bytes(model: nn.Module) -> int:
    """Bytes of all weights, each tensor once, packed ones with their padding."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    rival = sum(m.nbytes for m in model.modules() if isinstance(m, TorchCSRLinear))
    return rival + sum(t.numel() * t.element_size() for t in tensors.values())
