"""What `prune` did."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PrunedLayer:
    """What happened to one layer."""

    name: str
    shape: tuple[int, int]
    sparsity: float  # share of zeros after pruning
    energy_kept: float  # sum of squares by what it was; SparseGPT rewrites, so it may exceed 1


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did, layer by layer."""

    pattern: str
    method: str
    layers: tuple[PrunedLayer, ...]
    calibration: tuple[int, int] | None = None  # windows and tokens of each

    @property
    def sparsity(self) -> float:
        """Share of zeros over all pruned layers."""
        sizes = [n * k for n, k in (layer.shape for layer in self.layers)]
        zeros = [layer.sparsity * size for layer, size in zip(self.layers, sizes, strict=True)]
        return sum(zeros) / sum(sizes)

    def __str__(self) -> str:
        told = ""
        if self.calibration:
            told = f", calibrated on {self.calibration[0]} windows of {self.calibration[1]} tokens"
        lines = [
            f"pruned {len(self.layers)} layers to {self.pattern} by {self.method}, "
            f"{self.sparsity:.1%} zeros{told}"
        ]
        width = max(len(layer.name) for layer in self.layers)
        lines += [
            f"  {layer.name:<{width}}  {list(layer.shape)!s:<14}  zeros {layer.sparsity:6.1%}"
            f"  energy kept {layer.energy_kept:6.1%}"
            for layer in self.layers
        ]
        return "\n".join(lines)


def pruned_layer(name: str, before: Tensor, after: Tensor) -> PrunedLayer:
    """The row of one layer.

    Args:
        name: In the model.
        before: [N, K].
        after: [N, K].
    """
    energy = before.detach().double().square().sum()
    left = after.detach().double().square().sum()
    zeros = 1 - after.count_nonzero().item() / after.numel()
    kept = (left / energy).item() if energy > 0 else 1.0
    return PrunedLayer(name, tuple(after.shape), zeros, kept)
