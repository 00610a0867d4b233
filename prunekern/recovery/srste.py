"""SR-STE: masks chosen anew at each step from dense weights, with the pruned ones pulled to zero
(Zhou et al. 2021, arXiv 2102.04010).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from prunekern.pruning import magnitude_scores
from prunekern.recovery.method import linear_layers
from prunekern.recovery.schedule import Sparsity
from prunekern.recovery.straight_through import StraightThrough
from prunekern.targets import DEFAULT_TARGETS


class SrSte(StraightThrough):
    """Forward W' = W * M, M of the largest |W|; gradient dL/dW' + decay * (1 - M) * W.

    The second term is added once an optimizer step, after clipping. Without it pruned weights
    wander and masks flicker.

    Args:
        pattern: "N:M" (N of M kept) or "unstructured".
        sparsity: For unstructured, share of zeros in each layer; 0.5 where left out.
        targets: See `prunekern.targets.match_modules`.
        decay: The paper's lambda.
    """

    name = "sr-ste"

    def __init__(
        self,
        pattern: str = "2:4",
        sparsity: float | None = None,
        targets: str | Sequence[str] = DEFAULT_TARGETS,
        decay: float = 2e-4,
    ) -> None:
        super().__init__(targets)
        if not 0 <= decay < float("inf"):
            raise ValueError(f"recover: decay must be 0 or more, got {decay}")
        self.sparsity, self.decay = Sparsity(pattern, sparsity), decay

    def attach(self, model: nn.Module, steps: int) -> None:
        """Masks of the weights as they are.

        Raises:
            ValueError: A layer is no plain nn.Linear.
        """
        modules = linear_layers(model, self.targets, "recover")
        masks = {n: self.sparsity.mask(magnitude_scores(m.weight)) for n, m in modules.items()}
        self._hold(modules, masks)

    @torch.no_grad()
    def before_optimizer(self) -> None:
        """Adds the decay of pruned weights to the gradients."""
        for name, module in self.modules.items():
            if module.weight.grad is not None:
                pruned = module.weight.masked_fill(self.masks[name], 0.0)
                module.weight.grad.add_(pruned, alpha=self.decay)

    @torch.no_grad()
    def after_optimizer(self) -> None:
        """Masks of the weights that moved."""
        for name, module in self.modules.items():
            self.masks[name].copy_(self.sparsity.mask(magnitude_scores(module.weight)))

    def detach(self) -> None:
        """Prunes the weights as they are now, which may have been loaded since the last step."""
        self.after_optimizer()
        super().detach()

    def settings(self) -> dict:
        """With pattern and decay."""
        return super().settings() | self.sparsity.settings() | {"decay": self.decay}
