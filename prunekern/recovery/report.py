"""What `recover` did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunekern.recovery.plot import plot_losses


@dataclass(frozen=True)
class Loss:
    """Of one optimizer step, before it; mean over its windows.

    Attributes:
        total: What was minimised.
        next_token: Cross-entropy, nats a token.
        teacher: T^2 KL to the teacher, nats a token; None without one.
        hidden: Relative squared error of hidden states; None where not asked for.
    """

    total: float
    next_token: float
    teacher: float | None = None
    hidden: float | None = None


@dataclass(frozen=True)
class Progress:
    """Told after each optimizer step.

    Attributes:
        step: Steps done.
        steps: Of the whole training.
        loss: Of this step.
        seconds_left: At the pace of this call so far.
    """

    step: int
    steps: int
    loss: float
    seconds_left: float


@dataclass(frozen=True)
class RecoveredLayer:
    """One layer that was held sparse."""

    name: str
    shape: tuple[int, int]
    sparsity: float  # share of zeros now


@dataclass(frozen=True)
class RecoverReport:
    """What `recover` did.

    Attributes:
        method: Its name, or "none".
        steps: Optimizer steps.
        tokens: That were trained on, repetitions included.
        seconds: Of training, over all calls that a resumed one took.
        losses: One a step.
        layers: What was held sparse.
    """

    method: str
    steps: int
    tokens: int
    seconds: float
    losses: tuple[Loss, ...]
    layers: tuple[RecoveredLayer, ...]

    @property
    def sparsity(self) -> float:
        """Share of zeros over all layers that were held sparse."""
        sizes = [n * k for n, k in (layer.shape for layer in self.layers)]
        zeros = [layer.sparsity * size for layer, size in zip(self.layers, sizes, strict=True)]
        return sum(zeros) / max(1, sum(sizes))

    def plot(self, path: str | Path) -> Path:
        """Draws the loss curve and its parts into a file; see `plot_losses`."""
        curves = {"loss": [loss.total for loss in self.losses]}
        for name in ("next_token", "teacher", "hidden"):
            values = [getattr(loss, name) for loss in self.losses]
            if None not in values and values != curves["loss"]:
                curves[name.replace("_", " ")] = values
        return plot_losses(curves, path)

    def __str__(self) -> str:
        first, last = self.losses[0].total, self.losses[-1].total
        return (
            f"recovered {len(self.layers)} layers by {self.method}, {self.sparsity:.1%} zeros: "
            f"{self.steps} steps, {self.tokens:,} tokens, {self.seconds:.0f} s, "
            f"loss {first:.3f} -> {last:.3f}"
        )
