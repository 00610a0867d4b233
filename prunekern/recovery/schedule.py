"""Schedules: how sparse, and at which learning rate, at which step."""

from __future__ import annotations

import math

from torch import Tensor

from prunekern.pruning import cubic_sparsity
from prunekern.pruning.masks import layer_mask, nm_mask, parse_pattern


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear from 1/warmup to 1, then half a cosine towards 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


class Sparsity:
    """A pattern and how much of it there is at a step.

    Args:
        pattern: "N:M" (N of M kept) or "unstructured".
        sparsity: Final share of zeros in each layer; 0.5 where left out, N:M has its own.
        warmup: Share of all steps with nothing pruned yet.
        cooldown: Share of all steps at the end with masks of full sparsity.

    Raises:
        ValueError: Malformed, or nothing left between warm-up and cool-down.
    """

    def __init__(
        self, pattern: str, sparsity: float | None, warmup: float = 0.0, cooldown: float = 0.0
    ) -> None:
        self.pattern, self.nm = pattern, parse_pattern(pattern, "recover")
        if self.nm is not None:
            own = 1 - self.nm[0] / self.nm[1]
            if sparsity is not None and abs(sparsity - own) > 1e-9:
                raise ValueError(
                    f"recover: sparsity of {pattern} must be {own:g} or left out, got {sparsity}"
                )
            sparsity = own
        self.final = 0.5 if sparsity is None else sparsity
        if not 0 <= self.final < 1:
            raise ValueError(f"recover: sparsity must be in [0, 1), got {self.final}")
        if not (warmup >= 0 and cooldown >= 0 and warmup + cooldown < 1):
            raise ValueError(
                "recover: warmup and cooldown must be shares of the steps with a sum below 1, "
                f"got {warmup} and {cooldown}"
            )
        self.warmup, self.cooldown = warmup, cooldown

    def at(self, step: int, steps: int) -> float:
        """Share of zeros at a step of a training of `steps`; full in the last one at least."""
        warmup, cooldown = round(self.warmup * steps), max(1, round(self.cooldown * steps))
        if warmup + cooldown >= steps:  # too few steps for anything between
            return self.final if step >= steps - cooldown else 0.0
        return cubic_sparsity(step, steps, self.final, 0.0, warmup, cooldown)

    def mask(self, scores: Tensor, sparsity: float | None = None) -> Tensor:
        """Bool [N, K] of the largest scores [N, K]; for N:M, of M go as many as `sparsity` fills.

        Args:
            scores: [N, K], no NaN.
            sparsity: The final one where left out.
        """
        sparsity = self.final if sparsity is None else sparsity
        if self.nm is None:
            return layer_mask(scores, sparsity)
        n, m = self.nm
        # Rounded before ceil: 4 * (1 - 0.5) must not come out as 2.0000000001.
        return nm_mask(scores, max(n, math.ceil(round(m * (1 - sparsity), 6))), m)

    def settings(self) -> dict:
        """JSON-able."""
        return {
            "pattern": self.pattern,
            "sparsity": self.final,
            "warmup": self.warmup,
            "cooldown": self.cooldown,
        }
