"""Masks that torch.nn.utils.prune has put on a layer, taken over.

Such a layer holds `weight_orig`, a parameter, and `weight_mask`; `weight` is their product, made by
a hook before each forward pass. Folded, the product is the parameter again.
"""

from __future__ import annotations

import torch
import torch.nn.utils.prune
from torch import Tensor, nn


def is_masked(module: nn.Module) -> bool:
    """Whether the layer's weight is under a mask of torch.nn.utils.prune."""
    return "weight_orig" in module._parameters


def stored_weight(module: nn.Module) -> nn.Parameter:
    """The parameter behind `module.weight`."""
    return module.weight_orig if is_masked(module) else module.weight


def frozen_zeros(module: nn.Module) -> Tensor | None:
    """Bool [N, K], True where the mask prunes; None without one."""
    return module.weight_mask == 0 if is_masked(module) else None


def masked_weight(module: nn.Module) -> Tensor:
    """The weight [N, K] that counts, detached: `module.weight` may be older than the mask."""
    weight = stored_weight(module).detach()
    if not is_masked(module):
        return weight
    # Filled, as a product would leave -0.0 behind, and NaN where an infinite weight was pruned.
    mask = module.weight_mask
    return torch.where(mask == 0, torch.zeros_like(weight), weight * mask.to(weight.dtype))


def fold_masks(module: nn.Module) -> None:
    """Makes the masks of weight and bias permanent, as torch.nn.utils.prune.remove does.

    The parameters stay the same objects, so that an optimizer keeps them.
    """
    hooks = module._forward_pre_hooks.values()
    masks = [h for h in hooks if isinstance(h, torch.nn.utils.prune.BasePruningMethod)]
    weight = masked_weight(module) if is_masked(module) else None
    for mask in masks:
        torch.nn.utils.prune.remove(module, mask._tensor_name)
    if weight is not None:
        with torch.no_grad():
            module.weight.copy_(weight)
