"""The models that can be cut, where their parts are, and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from prunekern.nn import SparseLinear

# Same modules, same names, same meaning; others may scale or share what is cut here.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def check_family(model: nn.Module, who: str) -> None:
    """Raises ValueError unless parts of this kind of model can be removed."""
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family not in FAMILIES or not type(model).__name__.endswith("ForCausalLM"):
        raise ValueError(
            f"{who}: model must be a causal language model of transformers, one of "
            f"{', '.join(FAMILIES)}, got {type(model).__name__}"
        )


def check_model(model: nn.Module, who: str) -> nn.ModuleList:
    """The decoder layers of a model whose parts may be removed.

    Raises:
        ValueError: Another kind of model, spread over devices, or layers that are not plain, finite
            nn.Linear.
    """
    check_family(model, who)
    for name, module in model.named_modules():
        if hasattr(module, "_hf_hook"):
            raise ValueError(
                f"{who}: model must be on one device, got {name or 'one'} moved about by "
                "accelerate; load it without device_map"
            )
        if isinstance(module, SparseLinear):
            raise ValueError(
                f"{who}: {name} must be dense, got a SparseLinear ({module.kernel}); "
                "call prunekern.restore_linears(model) first"
            )
    layers = model.model.layers
    for i, layer in enumerate(layers):
        for name in (*ATTENTION, *MLP):
            _check_linear(layer.get_submodule(name), f"{who}: layers.{i}.{name}")
    return layers


def head_counts(layer: nn.Module) -> tuple[int, int]:
    """(query heads, key/value heads) of one decoder layer, as its weights have them."""
    attention = layer.self_attn
    head_dim = attention.head_dim
    return attention.q_proj.out_features // head_dim, attention.k_proj.out_features // head_dim


def channel_count(layer: nn.Module) -> int:
    """Channels between the MLP's projections of one decoder layer."""
    return layer.mlp.down_proj.in_features


def parameter_count(module: nn.Module) -> int:
    """Numbers that a module learns, each tensor once."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside; each module's own mode is back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check_linear(module: nn.Module, who: str) -> None:
    if type(module) is not nn.Linear:
        raise ValueError(f"{who} must be an nn.Linear, got {type(module).__name__}")
    if hasattr(module, "weight_orig"):
        raise ValueError(
            f"{who} must have a plain weight, got one masked by torch.nn.utils.prune; "
            "call torch.nn.utils.prune.remove(module, 'weight') first"
        )
    weight = module.weight
    if weight.device.type == "meta":
        raise ValueError(f"{who} must hold data, got a meta tensor; load the model")
    if not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise ValueError(f"{who} must have finite weights, got {bad} NaN or infinite")
