"""Fixed masks: the pruned weights stay zero, the kept ones are trained by any optimizer.

Zero gradients alone do not keep a weight at zero: momentum goes on moving it and, where the weight
is not exactly zero, so does weight decay. So masks are applied again after each step.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunekern.recovery.method import Method, sparse_layers, write_zeros


class FixedMask(Method):
    """Keeps the zeros that the weights have, and trains the rest.

    Args:
        targets: Pruned layers, see `prunekern.targets.match_modules`; every Linear layer with
            zeros but the output embedding where left out.
    """

    name = "fixed"

    def attach(self, model: nn.Module, steps: int) -> None:
        """Masks are where weights are not zero.

        Raises:
            ValueError: A layer is not pruned.
        """
        self.modules = sparse_layers(model, self.targets, "recover")
        self.masks = {n: m.weight.detach() != 0 for n, m in self.modules.items()}
        self._hold()

    def after_optimizer(self) -> None:
        """Applies the masks again."""
        write_zeros(self.modules, self.masks)

    def detach(self) -> None:
        """Writes the zeros a last time."""
        write_zeros(self.modules, self.masks)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hold(self) -> None:
        # Gradients of pruned weights are dropped as well, so that they count neither in the norm
        # that is clipped nor in an optimizer's moments.
        self._handles: list[RemovableHandle] = [
            module.weight.register_post_accumulate_grad_hook(_masking(self.masks[name]))
            for name, module in self.modules.items()
            if module.weight.requires_grad
        ]


def _masking(mask: Tensor) -> Callable[[Tensor], None]:
    def drop(weight: Tensor) -> None:
        weight.grad.masked_fill_(~mask, 0.0)

    return drop
