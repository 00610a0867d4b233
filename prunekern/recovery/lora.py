"""LoRA that respects masks: (W + s B A) * M, which merges into W with every zero in its place
(adapters of peft; Hu et al. 2021, arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from prunekern.recovery.method import Method, sparse_layers, write_zeros

_ADAPTER = "recovery"


class MaskedLoraLinear(LoraLinear):
    """peft's layer, which would add B A x and so fill every zero, made to multiply by its merged
    and masked weight.

    Attributes:
        mask: Bool [N, K].
    """

    mask: Tensor

    def merged_weight(self) -> Tensor:
        """(W + s B A) * M, [N, K]."""
        # In the weights' own dtype: autocast would round B A to bfloat16.
        with torch.autocast(self.mask.device.type, enabled=False):
            delta = self.get_delta_weight(_ADAPTER)
        weight = self.base_layer.weight
        return (weight + delta.to(weight.dtype)).masked_fill(~self.mask, 0.0)

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """[..., K] -> [..., N]."""
        return F.linear(x, self.merged_weight(), self.base_layer.bias)


class Lora(Method):
    """Trains B and A of each pruned layer and nothing else; `detach` merges them.

    Memory: no gradients and no moments but those of the adapters; a merged weight of each layer is
    kept for the backward pass, unless gradient checkpointing is on.

    Args:
        targets: Pruned layers; every Linear layer with zeros but the output embedding where left
            out.
        rank: Of B A.
        alpha: s = alpha / rank; twice the rank where left out.
    """

    name = "lora"

    def __init__(
        self,
        targets: str | Sequence[str] | None = None,
        rank: int = 16,
        alpha: float | None = None,
    ) -> None:
        super().__init__(targets)
        if type(rank) is not int or rank < 1:
            raise ValueError(f"recover: rank must be 1 or more, got {rank!r}")
        self.rank, self.alpha = rank, 2 * rank if alpha is None else alpha

    def attach(self, model: nn.Module, steps: int) -> None:
        """Puts adapters on the pruned layers; all other parameters are frozen until `detach`.

        Raises:
            ValueError: A layer is not pruned.
        """
        self.modules = sparse_layers(model, self.targets, "recover")
        self.masks = {n: m.weight.detach() != 0 for n, m in self.modules.items()}
        self._trained = [p for p in model.parameters() if p.requires_grad]
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, target_modules=list(self.modules), lora_dropout=0.0
        )
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
        self._model = model
        for name in self.modules:
            adapter = model.get_submodule(name)
            adapter.__class__ = MaskedLoraLinear
            adapter.mask = self.masks[name]

    @torch.no_grad()
    def detach(self) -> None:
        """Merges, and puts the plain layers back."""
        for name, module in self.modules.items():
            module.weight.copy_(self._model.get_submodule(name).merged_weight())
            parent, _, child = name.rpartition(".")
            setattr(self._model.get_submodule(parent), child, module)
        write_zeros(self.modules, self.masks)
        for parameter in self._trained:
            parameter.requires_grad_(True)

    def settings(self) -> dict:
        """With rank and alpha."""
        return super().settings() | {"rank": self.rank, "alpha": self.alpha}
