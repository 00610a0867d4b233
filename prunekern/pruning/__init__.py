"""Which weights go. Scores (one method a file) and choosers of masks (masks.py) are kept apart.

Pruning writes zeros into the model's own weights and knows no kernels; `replace_linears` then
stores and runs what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekern.pruning.magnitude import magnitude_scores
from prunekern.pruning.masks import (
    global_threshold,
    layer_mask,
    nm_mask,
    parse_pattern,
    row_mask,
    threshold_mask,
)
from prunekern.targets import DEFAULT_TARGETS, match_modules

# Method -> scores of one weight. A new method is one entry and one file.
METHODS: dict[str, Callable[[Tensor], Tensor]] = {"magnitude": magnitude_scores}
SCOPES = ("layer", "row", "global")


@dataclass(frozen=True)
class PrunedLayer:
    """What happened to one layer."""

    name: str
    shape: tuple[int, int]
    sparsity: float  # share of zeros after pruning
    energy_kept: float  # share of the sum of squares that is left


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did, layer by layer."""

    pattern: str
    method: str
    layers: tuple[PrunedLayer, ...]

    @property
    def sparsity(self) -> float:
        """Share of zeros over all pruned layers."""
        sizes = [n * k for n, k in (layer.shape for layer in self.layers)]
        zeros = [layer.sparsity * size for layer, size in zip(self.layers, sizes, strict=True)]
        return sum(zeros) / sum(sizes)

    def __str__(self) -> str:
        lines = [
            f"pruned {len(self.layers)} layers to {self.pattern} by {self.method}, "
            f"{self.sparsity:.1%} zeros"
        ]
        width = max(len(layer.name) for layer in self.layers)
        lines += [
            f"  {layer.name:<{width}}  {list(layer.shape)!s:<14}  zeros {layer.sparsity:6.1%}"
            f"  energy kept {layer.energy_kept:6.1%}"
            for layer in self.layers
        ]
        return "\n".join(lines)


def prune(
    model: nn.Module,
    pattern: str = "2:4",
    method: str = "magnitude",
    sparsity: float | None = None,
    targets: str | Sequence[str] = DEFAULT_TARGETS,
    scope: str = "layer",
) -> PruneReport:
    """Writes +0.0 into the weights that matter least, in place; all or nothing.

    Args:
        model: Any module with nn.Linear layers.
        pattern: "N:M" (N of every M inputs kept) or "unstructured".
        method: How a weight's worth is scored: "magnitude".
        sparsity: Share of weights that go, in [0, 1); 0.5 where none is given. Only for
            unstructured: N:M has its own.
        targets: See `prunekern.targets.match_modules`.
        scope: For unstructured, among whom the smallest are sought: "layer", "row" or "global".

    Returns:
        What was done, layer by layer.

    Raises:
        ValueError: An argument is not one of the above, nothing matches, or a weight has NaN or
            infinite scores; the model is then as it was.
    """
    nm = parse_pattern(pattern)
    if method not in METHODS:
        raise ValueError(f"prune: method must be one of {', '.join(METHODS)}, got {method!r}")
    if scope not in SCOPES:
        raise ValueError(f"prune: scope must be one of {', '.join(SCOPES)}, got {scope!r}")
    sparsity = _check_sparsity(sparsity, nm, pattern)
    weights = _check_weights(match_modules(model, targets, "prune"))
    scores_of = METHODS[method]

    threshold = ties = None
    if nm is None and scope == "global":
        threshold, ties = global_threshold([scores_of(w) for w in weights.values()], sparsity)
    layers = []
    for name, weight in weights.items():
        scores = scores_of(weight)
        if nm is not None:
            mask = nm_mask(scores, *nm)
        elif scope == "global":
            mask, ties = threshold_mask(scores, threshold, ties)
        else:
            mask = (layer_mask if scope == "layer" else row_mask)(scores, sparsity)
        energy = weight.detach().double().square().sum()
        with torch.no_grad():
            # masked_fill_, not a product with the mask: that would write -0.0 for negative weights.
            weight.masked_fill_(~mask, 0.0)
            left = weight.double().square().sum()
            zeros = 1 - weight.count_nonzero().item() / weight.numel()
        kept = (left / energy).item() if energy > 0 else 1.0
        layers.append(PrunedLayer(name, tuple(weight.shape), zeros, kept))
    return PruneReport(pattern, method, tuple(layers))


def _check_sparsity(sparsity: float | None, nm: tuple[int, int] | None, pattern: str) -> float:
    if nm is None:
        sparsity = 0.5 if sparsity is None else sparsity
        if not 0 <= sparsity < 1:
            raise ValueError(f"prune: sparsity must be in [0, 1), got {sparsity}")
        return sparsity
    own = 1 - nm[0] / nm[1]
    if sparsity is not None and abs(sparsity - own) > 1e-9:
        raise ValueError(
            f"prune: sparsity of {pattern} must be {own:g} or left out, got {sparsity}"
        )
    return own


def _check_weights(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Name -> weight, each tensor once; refuses what could not be scored."""
    weights: dict[str, Tensor] = {}
    for name, module in modules.items():
        weight = module.weight
        if any(weight is other for other in weights.values()):
            continue
        if weight.device.type == "meta":
            raise ValueError(f"prune: {name} must hold data, got a meta tensor; load the model")
        if not torch.is_floating_point(weight):
            raise ValueError(f"prune: {name} must have float weights, got {weight.dtype}")
        if not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise ValueError(f"prune: {name} must have finite weights, got {bad} NaN or infinite")
        weights[name] = weight
    return weights
