"""Layers that multiply by W * M while W stays dense, for methods in which pruned weights return."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekern.recovery.method import Method, write_zeros


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
    """What an nn.Linear becomes: the same object, so that names, optimizers and hooks stay valid.

    Attributes:
        mask: Bool [N, K].
    """

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return F.linear(x, Masked.apply(self.weight, self.mask), self.bias)


class StraightThrough(Method):
    """A method whose layers keep dense weights behind masks until `detach`."""

    layer: type[nn.Linear] = MaskedLinear

    def _hold(self, modules: dict[str, nn.Module], masks: dict[str, Tensor]) -> None:
        for name, module in modules.items():
            if type(module) is not nn.Linear:
                raise ValueError(
                    f"recover: {name} must be a plain nn.Linear for {self.name}, "
                    f"got {type(module).__name__}"
                )
        self.modules, self.masks = modules, masks
        for name, module in modules.items():
            module.__class__ = self.layer
            module.mask = masks[name]

    def detach(self) -> None:
        """Writes the zeros; from here on layers are plain again."""
        write_zeros(self.modules, self.masks)
        for module in self.modules.values():
            if type(module) is self.layer:
                module.__class__ = nn.Linear
                del module.mask
