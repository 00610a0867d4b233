"""Movement: a weight matters as much as training moves it away from zero (Sanh et al. 2020).

arXiv 2005.07683. Forward uses W' = W * M(S) of learned scores S that start at zero. Backward goes
straight through M:

    dL/dS = dL/dW' * W        of every weight, also of those masked: so what went can come back
    dL/dW = dL/dW' * M        a masked weight rests

so plain descent makes S = -lr * sum(dL/dW' * W): it grows while the weight moves away from zero.
The signed scores are ranked: a weight that training shrinks is the first to go, however fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunekern.pruning.masks import choose_mask, parse_pattern
from prunekern.pruning.report import PruneReport, pruned_layer
from prunekern.pruning.torch_masks import is_masked
from prunekern.targets import DEFAULT_TARGETS, match_modules


def cubic_sparsity(
    step: int,
    steps: int,
    final: float,
    initial: float = 0.0,
    warmup: int = 0,
    cooldown: int = 0,
) -> float:
    """s_f + (s_i - s_f) * (1 - t)^3, t from 0 at the end of warm-up to 1 where cool-down begins.

    Zhu and Gupta 2017, arXiv 1710.01878: much goes early, while there is much to spare.

    Args:
        step: 0 .. steps.
        steps: Of the whole training.
        final: Sparsity of the cool-down.
        initial: Sparsity of the warm-up.
        warmup: Steps at `initial`.
        cooldown: Steps at `final`.

    Raises:
        ValueError: Nothing is left between warm-up and cool-down, or a sparsity outside [0, 1).
    """
    if not 0 <= warmup < steps - cooldown <= steps:
        raise ValueError(
            "cubic_sparsity: warmup and cooldown must leave steps between them, got "
            f"{warmup} and {cooldown} of {steps}"
        )
    for share in (initial, final):
        if not 0 <= share < 1:
            raise ValueError(f"cubic_sparsity: sparsity must be in [0, 1), got {share}")
    t = min(max((step - warmup) / (steps - cooldown - warmup), 0.0), 1.0)
    return final + (initial - final) * (1 - t) ** 3


class _StraightThrough(torch.autograd.Function):
    """W * M, its gradient with respect to S as if M were S itself."""

    @staticmethod
    def forward(ctx, weight, scores, mask):
        ctx.save_for_backward(weight, mask)
        return weight.masked_fill(~mask, 0.0)

    @staticmethod
    def backward(ctx, gradient):
        weight, mask = ctx.saved_tensors
        to_scores = (gradient * weight).to(torch.float32) if ctx.needs_input_grad[1] else None
        return gradient.masked_fill(~mask, 0.0), to_scores, None


class MovementMask(nn.Module):
    """A parametrization W -> W * M(S).

    Attributes:
        scores: S, parameter [N, K] float32.
        sparsity: Share that goes, for unstructured.
        threshold: For soft movement, what sigmoid(S) must exceed to stay; None for ranks.
    """

    def __init__(
        self,
        weight: Tensor,
        nm: tuple[int, int] | None,
        scope: str,
        threshold: float | None,
    ) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))
        self.sparsity = 0.0
        self.threshold = threshold
        self._nm, self._scope = nm, scope

    def mask(self) -> Tensor:
        """M(S), bool [N, K]."""
        scores = self.scores.detach()
        if self.threshold is not None:
            return scores.sigmoid() > self.threshold
        return choose_mask(scores, self._nm, self.sparsity, self._scope)

    def forward(self, weight: Tensor) -> Tensor:
        """[N, K] -> [N, K]."""
        return _StraightThrough.apply(weight, self.scores, self.mask())


class MovementPruner:
    """Movement pruning of a model while it is trained.

        pruner = MovementPruner(model, "unstructured", targets="all-linear")
        scores = {"params": pruner.scores(), "lr": 1e-2}
        optimizer = AdamW([{"params": weights, "lr": 3e-5}, scores])
        for step in range(steps):
            pruner.set_sparsity(cubic_sparsity(step, steps, final=0.5, warmup=10, cooldown=10))
            (loss + penalty * pruner.penalty()).backward() ...        # penalty: soft movement only
        report = pruner.finish()

    Between its making and `finish` the targets are parametrized (torch.nn.utils.parametrize), and
    `layer.parametrizations.weight.original` is the dense weight.
    """

    def __init__(
        self,
        model: nn.Module,
        pattern: str = "unstructured",
        targets: str | Sequence[str] = DEFAULT_TARGETS,
        scope: str = "layer",
        soft: bool = False,
        threshold: float = 0.1,
    ) -> None:
        """Puts scores beside each target's weight.

        Args:
            model: Any module with nn.Linear layers.
            pattern: "unstructured", or "N:M", which holds from the first step.
            targets: See `prunekern.targets.match_modules`.
            scope: For unstructured, "layer" or "row".
            soft: Whether what exceeds a threshold stays, instead of a fixed share: how much that
                is, the weight of `penalty` in the loss decides.
            threshold: For soft movement, on sigmoid(S), in (0, 0.5): at first all stay.

        Raises:
            ValueError: An argument is not one of the above, or a target has another
                parametrization or mask; the model is then as it was.
        """
        nm = parse_pattern(pattern, "MovementPruner")
        if scope not in ("layer", "row"):
            raise ValueError(f"MovementPruner: scope must be layer or row, got {scope!r}")
        if soft and nm is not None:
            raise ValueError(f"MovementPruner: pattern must be unstructured if soft, got {pattern}")
        if soft and not 0 < threshold < 0.5:
            raise ValueError(f"MovementPruner: threshold must be in (0, 0.5), got {threshold}")
        modules = match_modules(model, targets, "MovementPruner")
        for name, module in modules.items():
            if is_masked(module) or parametrize.is_parametrized(module, "weight"):
                raise ValueError(
                    f"MovementPruner: {name} must have a plain weight, got a masked or "
                    "parametrized one; make that permanent first"
                )
        self.pattern, self.soft = pattern, soft
        self._modules: dict[str, nn.Module] = {}
        self._masks: dict[str, MovementMask] = {}
        for name, module in modules.items():
            if module in self._modules.values():
                continue
            mask = MovementMask(module.weight, nm, scope, threshold if soft else None)
            parametrize.register_parametrization(module, "weight", mask)
            self._modules[name], self._masks[name] = module, mask

    def scores(self) -> Iterator[nn.Parameter]:
        """S of each target, for an optimizer's group of their own: 1e-2 beside 3e-5 for weights."""
        return (mask.scores for mask in self._masks.values())

    def set_sparsity(self, sparsity: float) -> None:
        """Share that goes from the next forward pass on; not for soft movement or N:M.

        Raises:
            ValueError: Outside [0, 1), or not up to the caller.
        """
        if self.soft or self.pattern != "unstructured":
            what = "soft movement" if self.soft else self.pattern
            raise ValueError(f"MovementPruner: sparsity of {what} must be left alone")
        if not 0 <= sparsity < 1:
            raise ValueError(f"MovementPruner: sparsity must be in [0, 1), got {sparsity}")
        for mask in self._masks.values():
            mask.sparsity = sparsity

    def penalty(self) -> Tensor:
        """Mean of sigmoid(S) over all weights: soft movement adds a multiple of it to the loss."""
        total = sum(scores.sigmoid().sum() for scores in self.scores())
        return total / sum(scores.numel() for scores in self.scores())

    def finish(self) -> PruneReport:
        """Writes W * M(S) into the weights, +0.0 where masked, and takes the scores away."""
        rows = []
        for name, module in self._modules.items():
            before = module.parametrizations.weight.original.detach().clone()
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            rows.append(pruned_layer(name, before, module.weight))
        method = "soft movement" if self.soft else "movement"
        return PruneReport(self.pattern, method, tuple(rows))
