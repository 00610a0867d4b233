"""What a way of training sparse weights does around each optimizer step; the loop and the callback
call nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunekern.nn import SparseLinear
from prunekern.targets import ALL_LINEAR, match_modules
from prunekern.training import TrainableSparseLinear


class Method:
    """Holds masks on the weights of Linear layers from `attach` to `detach`.

    Attributes:
        name: As `recover` takes it.
        modules: Name -> layer, each layer once; filled by `attach`.
        masks: Name -> bool [N, K], True where a weight is kept.
    """

    name = ""

    def __init__(self, targets: str | Sequence[str] | None = None) -> None:
        self.targets = targets
        self.modules: dict[str, nn.Module] = {}
        self.masks: dict[str, Tensor] = {}

    def attach(self, model: nn.Module, steps: int) -> None:
        """Checks all, then takes hold of the model's layers for a training of `steps` steps."""
        raise NotImplementedError

    def before_step(self, step: int) -> None:
        """Before the first forward pass of optimizer step `step`, counted from 0."""

    def before_optimizer(self) -> None:
        """When gradients are complete and clipped."""

    def after_optimizer(self) -> None:
        """When weights have moved."""

    def detach(self) -> None:
        """Writes +0.0 where masks say so and lets go of the layers."""
        raise NotImplementedError

    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters of the model that the method moves itself; an optimizer must not."""
        return []

    def settings(self) -> dict:
        """What a checkpoint must agree with to be continued; JSON-able."""
        targets = self.targets
        return {
            "method": self.name,
            "targets": targets if targets is None or isinstance(targets, str) else list(targets),
        }

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What a resumed training needs beside the model's own weights."""
        return {"masks": dict(self.masks)}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """In place, so that whoever holds a mask sees the new one."""
        _copy_into(self.masks, state["masks"], f"{self.name}: masks")


def _copy_into(own: dict[str, Tensor], new: dict[str, Tensor], what: str) -> None:
    if own.keys() != new.keys():
        raise ValueError(f"recover: {what} must be of {sorted(own)}, got {sorted(new)}")
    for name, tensor in own.items():
        tensor.copy_(new[name])


def sparse_layers(
    model: nn.Module, targets: str | Sequence[str] | None, who: str
) -> dict[str, nn.Module]:
    """Name -> layer of what is pruned already, each once.

    Args:
        model: Any module.
        targets: See `prunekern.targets.match_modules`; None means every Linear layer but the
            output embedding that has zeros in its weight.
        who: For messages.

    Raises:
        ValueError: None has zeros, or a layer can not be trained.
    """
    modules = linear_layers(model, ALL_LINEAR if targets is None else targets, who)
    sparse = {n: m for n, m in modules.items() if (m.weight == 0).any()}
    dense = modules.keys() - sparse.keys()
    if not sparse or (dense and targets is not None):
        which = ", ".join(sorted(dense)[:3]) + (", ..." if len(dense) > 3 else "")
        raise ValueError(
            f"{who}: layers must be pruned, got no zeros in {which}; call prunekern.prune first"
        )
    return sparse


def linear_layers(model: nn.Module, targets: str | Sequence[str], who: str) -> dict[str, nn.Module]:
    """Name -> matched Linear layer, each once; refuses weights that can not be trained."""
    modules: dict[str, nn.Module] = {}
    for name, module in match_modules(model, targets, who, _linear_or_sparse).items():
        if isinstance(module, TrainableSparseLinear):
            raise ValueError(
                f"{who}: {name} must be an nn.Linear, got a TrainableSparseLinear, which keeps its "
                "own zeros; pass method=None"
            )
        if isinstance(module, SparseLinear):
            raise ValueError(
                f"{who}: {name} must be an nn.Linear, got a SparseLinear, whose weight is fixed; "
                "call prunekern.restore_linears(model) first"
            )
        if any(module.weight is other.weight for other in modules.values()):
            continue
        weight = module.weight
        if not isinstance(weight, nn.Parameter):
            raise ValueError(
                f"{who}: {name} must have a plain weight, got one made by a parametrization or by "
                "torch.nn.utils.prune; remove that first"
            )
        if weight.device.type == "meta" or not torch.is_floating_point(weight):
            raise ValueError(
                f"{who}: {name} must hold float weights, got {weight.dtype} on {weight.device}"
            )
        modules[name] = module
    return modules


def _linear_or_sparse(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, SparseLinear))


@torch.no_grad()
def write_zeros(modules: dict[str, nn.Module], masks: dict[str, Tensor]) -> None:
    """+0.0 wherever a mask is False; a product with the mask would write -0.0."""
    for name, module in modules.items():
        module.weight.masked_fill_(~masks[name], 0.0)


def count_strays(modules: dict[str, nn.Module], masks: dict[str, Tensor]) -> int:
    """Weights that a mask prunes and that are not +0.0 to the bit."""
    strays = 0
    for name, module in modules.items():
        pruned = module.weight.detach()[~masks[name]]
        strays += int(((pruned != 0) | torch.signbit(pruned)).sum())
    return strays
