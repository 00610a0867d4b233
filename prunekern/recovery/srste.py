"""SR-STE: masks chosen anew at each step from dense weights, with the pruned ones pulled to zero
(Zhou et al. 2021, arXiv 2102.04010).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekern.pruning import magnitude_scores
from prunekern.recovery.method import Method, linear_layers, write_zeros
from prunekern.recovery.schedule import Sparsity
from prunekern.targets import DEFAULT_TARGETS


class Masked(torch.autograd.Function):
    """W' = W * M; backwards dL/dW = dL/dW', as if there were no mask (Bengio et al. 2013,
    arXiv 1308.3432).
    """

    @staticmethod
    def forward(ctx, weight: Tensor, mask: Tensor) -> Tensor:
        """[N, K] and bool [N, K] -> [N, K]."""
        return weight.masked_fill(~mask, 0.0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of the product, whole."""
        return grad, None


class MaskedLinear(nn.Linear):
    """What an nn.Linear becomes meanwhile, the same object, so that names, optimizers and hooks
    stay valid: it multiplies by W * M while W stays dense.

    Attributes:
        mask: Bool [N, K].
    """

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return F.linear(x, Masked.apply(self.weight, self.mask), self.bias)


class SrSte(Method):
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
        for name, module in modules.items():
            if type(module) is not nn.Linear:
                raise ValueError(
                    f"recover: {name} must be a plain nn.Linear for {self.name}, "
                    f"got {type(module).__name__}"
                )
        self.modules = modules
        self.masks = {n: self.sparsity.mask(magnitude_scores(m.weight)) for n, m in modules.items()}
        for name, module in modules.items():
            module.__class__ = MaskedLinear
            module.mask = self.masks[name]

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
        write_zeros(self.modules, self.masks)
        for module in self.modules.values():
            module.__class__ = nn.Linear
            del module.mask

    def settings(self) -> dict:
        """With pattern and decay."""
        return super().settings() | self.sparsity.settings() | {"decay": self.decay}
