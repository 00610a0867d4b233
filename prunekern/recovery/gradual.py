"""Gradual magnitude pruning: a little more at every step, and the rest trains on meanwhile
(Zhu and Gupta 2017, arXiv 1710.01878).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from prunekern.pruning import magnitude_scores
from prunekern.recovery.masks import FixedMask
from prunekern.recovery.method import linear_layers, write_zeros
from prunekern.recovery.schedule import Sparsity
from prunekern.targets import DEFAULT_TARGETS


class Gradual(FixedMask):
    """Masks of the largest weights, as sparse as the cubic schedule wants at each step.

    What is zero stays zero. Under N:M a group of M loses one weight after the other, until N are
    left.

    Args:
        pattern: "N:M" (N of M kept) or "unstructured".
        sparsity: For unstructured, share of zeros in each layer at the end; 0.5 where left out.
        targets: See `prunekern.targets.match_modules`.
        warmup: Share of all steps before the first weight goes.
        cooldown: Share of all steps at the end in which masks are fixed.
    """

    name = "gradual"

    def __init__(
        self,
        pattern: str = "2:4",
        sparsity: float | None = None,
        targets: str | Sequence[str] = DEFAULT_TARGETS,
        warmup: float = 0.0,
        cooldown: float = 0.3,
    ) -> None:
        super().__init__(targets)
        self.sparsity = Sparsity(pattern, sparsity, warmup, cooldown)

    def attach(self, model: nn.Module, steps: int) -> None:
        """Masks are where weights are not zero yet.

        Raises:
            ValueError: A layer can not be trained.
        """
        self.steps, self._last = steps, -1.0
        self.modules = linear_layers(model, self.targets, "recover")
        self.masks = {n: m.weight.detach() != 0 for n, m in self.modules.items()}
        self._hold()

    def before_step(self, step: int) -> None:
        """Prunes up to the schedule's sparsity."""
        now = self.sparsity.at(step, self.steps)
        if now == self._last:
            return
        self._last = now
        for name, module in self.modules.items():
            self.masks[name] &= self.sparsity.mask(magnitude_scores(module.weight), now)
        write_zeros(self.modules, self.masks)

    def settings(self) -> dict:
        """With the schedule."""
        return super().settings() | self.sparsity.settings()
