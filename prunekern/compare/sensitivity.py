"""Which layers bear pruning: measured one by one, on the text that perplexity is measured on.

    error of a layer    ||x (W - W')^T||^2 / ||x W^T||^2

    divergence          KL(dense || pruned), nats a token: how far the predictions move

with W' pruned by magnitude as the rows of the comparison are, and x what the layer gets in the
dense model: the share of its output's energy that pruning it alone turns into noise. One pass over
one window gives it for all layers. How much the layers after it care is left out; the divergence
has that in it, and costs a pass for each layer. (The loss has it as well, but that of one window
also goes up and down by chance.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunekern.pruning.masks import choose_mask, parse_pattern
from prunekern.targets import ALL_LINEAR, match_modules


class Pruning(NamedTuple):
    """What is done to one layer: its label, and "unstructured" or "N:M" with the share of zeros."""

    label: str
    pattern: str
    sparsity: float

    def pruned(self, weight: Tensor) -> Tensor:
        """A copy with the smallest weights set to zero."""
        nm = parse_pattern(self.pattern, "compare")
        mask = choose_mask(weight.float().abs(), nm, self.sparsity)
        return weight.masked_fill(~mask, 0.0)


def prunings_of(patterns: Sequence[str], sparsity: float) -> list[Pruning]:
    """Those of the comparison; `sparsity` is that of unstructured."""
    found = []
    for pattern in patterns:
        nm = parse_pattern(pattern, "compare")
        label = f"{pattern} {sparsity:.0%}" if nm is None else pattern
        found.append(Pruning(label, pattern, sparsity if nm is None else 1 - nm[0] / nm[1]))
    return found


@torch.inference_mode()
def layer_errors(
    model: nn.Module, targets: Sequence[str] | str, prunings: Sequence[Pruning], window: Tensor
) -> list[dict[str, Any]]:
    """The error of every Linear but the output embedding.

    Args:
        model: Dense.
        targets: Layers that the comparison prunes, marked as such.
        prunings: Each of which is tried.
        window: int64 [1, size].

    Returns:
        A layer each: "name", "block" (the first number in it, or -1), "module" (what follows its
        last dot), "pruned", and by label "error" and "energy_kept", that of its weight.
    """
    chosen = match_modules(model, targets, "compare")
    modules = match_modules(model, ALL_LINEAR, "compare")
    layers = {name: _entry(name, name in chosen) for name in modules}
    hooks = [m.register_forward_hook(_recorder(layers[n], prunings)) for n, m in modules.items()]
    try:
        model(window, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [layer for layer in layers.values() if layer["error"]]


def _entry(name: str, pruned: bool) -> dict[str, Any]:
    number = re.search(r"(?:^|\.)(\d+)\.", name)
    return {
        "name": name,
        "block": int(number[1]) if number else -1,
        "module": name.rsplit(".", 1)[-1],
        "pruned": pruned,
        "error": {},
        "energy_kept": {},
    }


def _recorder(layer: dict[str, Any], prunings: Sequence[Pruning]):
    def record(module: nn.Linear, inputs: tuple[Tensor, ...], _) -> None:
        x, weight = inputs[0].flatten(0, -2).float(), module.weight.float()
        for pruning in prunings:
            pruned = pruning.pruned(module.weight).float()
            lost = (x @ (weight - pruned).t()).square().sum() / (x @ weight.t()).square().sum()
            layer["error"][pruning.label] = lost.item()
            kept = pruned.square().sum() / weight.square().sum()
            layer["energy_kept"][pruning.label] = kept.item()

    return record


@torch.inference_mode()
def log_probabilities(model: nn.Module, window: Tensor) -> Tensor:
    """Of the next token after each of a window: float32 [size, vocabulary]."""
    return model(window, use_cache=False).logits[0].float().log_softmax(-1)


def divergence(
    model: nn.Module, name: str, pruning: Pruning, window: Tensor, dense: Tensor
) -> float:
    """KL(dense || pruned) in nats a token when one layer alone is pruned, by one pass of the model.

    Args:
        model: Dense; left as it was.
        name: Of the layer.
        pruning: What is done to it.
        window: int64 [1, size].
        dense: `log_probabilities` of the dense model on it.
    """
    with _replaced(model.get_submodule(name), pruning):
        pruned = log_probabilities(model, window)
    total = nn.functional.kl_div(pruned, dense, reduction="sum", log_target=True)
    return total.item() / window.numel()


@contextmanager
def _replaced(linear: nn.Linear, pruning: Pruning) -> Iterator[None]:
    dense = linear.weight.data
    linear.weight.data = pruning.pruned(dense)
    try:
        yield
    finally:
        linear.weight.data = dense
