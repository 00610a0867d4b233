"""remove_heads: attention heads, with or without grouped queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from prunekern.structured.apply import remove_units
from prunekern.structured.calibration import Calibration
from prunekern.structured.counts import (
    check_choice,
    check_indices,
    check_layers,
    check_one_of,
    kept_count,
)
from prunekern.structured.model import check_model, head_counts
from prunekern.structured.report import RemovalReport
from prunekern.structured.units import Request

UNITS = ("group", "query")


def remove_heads(
    model: nn.Module,
    n: int | None = None,
    fraction: float | None = None,
    heads: Mapping[int, Iterable[int]] | None = None,
    by: str = "magnitude",
    calibration: Calibration | None = None,
    compensate: str = "none",
    unit: str = "group",
) -> RemovalReport:
    """Removes query heads from every layer, in place; all or nothing.

    Rows of q, k and v and columns of o go; head_dim, rotary embedding, q_norm and k_norm stay as
    they are. The number of heads may differ from layer to layer: `prunekern.structured.config`
    says what the model's config holds then, and when a Llama model becomes a Mistral one.
    Optimizers hold the old parameters: make them afterwards.

    Args:
        model: LlamaForCausalLM, or Mistral's, Qwen2's or Qwen3's.
        n: So many query heads go from each layer; or
        fraction: this share, to the nearest number that `unit` allows; or
        heads: layer -> query heads that go, in the layers named: whole groups, or the same number
            of every group.
        by: What is least goes. "magnitude": sum of squares of a head's weights; "activation": of
            its share in the output of o_proj on calibration tokens; "gradient": |change of the
            loss|, to first order.
        calibration: Token ids, int64 [windows, length] or an iterable of [batch, length]; for
            "activation", "gradient" and compensation.
        compensate: "none"; "least_squares" refits o_proj to the heads that stay; "bias" adds the
            mean of what is lost to o_proj's bias, where it has one.
        unit: With grouped queries, "group" removes key/value heads with all of their queries (and
            their share of the cache), "query" the same number of query heads from each group.

    Returns:
        Parameters and share of energy kept, layer by layer.

    Raises:
        ValueError: Another model, sparse layers, a number that does not fit, or missing
            calibration; the model is then as it was.
    """
    who = "remove_heads"
    check_one_of(who, n=n, fraction=fraction, heads=heads)
    check_choice(who, "unit", unit, UNITS)
    layers = check_model(model, who)
    requests = {}
    if heads is not None:
        check_layers(heads, len(layers), f"{who}: heads")
        for i, gone in sorted(heads.items()):
            requests[i] = _given(layers[i], gone, f"{who}: heads of layer {i}")
    else:
        for i, layer in enumerate(layers):
            queries, key_values = head_counts(layer)
            size = queries // key_values
            whole = unit == "group" or size == 1  # a lone query takes its key and value along
            what = f"{who}: query heads of layer {i}"
            kept = kept_count(queries, n, fraction, size if whole else key_values, what)
            requests[i] = _request(layer, whole, kept // size if whole else kept)
    return remove_units(model, requests, by, calibration, compensate, who, _words)


def _request(layer: nn.Module, whole: bool, keep: int | Tensor) -> Request:
    """Units of one layer: key/value heads with their queries if whole, or query heads by group."""
    queries, key_values = head_counts(layer)
    head_dim = layer.self_attn.head_dim
    device = layer.self_attn.q_proj.weight.device
    rows = torch.arange(queries * head_dim, device=device)
    if not whole:
        rows = rows.view(queries, head_dim)
        return Request({"self_attn.q_proj": rows}, "self_attn.o_proj", rows, keep, key_values)
    few = torch.arange(key_values * head_dim, device=device).view(key_values, head_dim)
    rows = rows.view(key_values, -1)
    made = {"self_attn.q_proj": rows, "self_attn.k_proj": few, "self_attn.v_proj": few}
    return Request(made, "self_attn.o_proj", rows, keep)


def _given(layer: nn.Module, gone: Iterable[int], what: str) -> Request:
    """The named heads as groups or, where they are no whole ones, as queries of every group."""
    queries, key_values = head_counts(layer)
    gone = check_indices(gone, queries, what)
    stays = torch.ones(queries, dtype=torch.bool)
    stays[gone] = False
    left = stays.view(key_values, -1).sum(1)
    size = queries // key_values
    if ((left == 0) | (left == size)).all():
        whole, keep = True, (left > 0).nonzero().flatten()
    elif (left == left[0]).all():
        whole, keep = False, stays.nonzero().flatten()
    else:
        raise ValueError(
            f"{what} must be whole groups of {size} or the same number of every group, got {gone}"
        )
    return _request(layer, whole, keep.to(layer.self_attn.q_proj.weight.device))


def _words(layer: nn.Module) -> str:
    queries, key_values = head_counts(layer)
    grouped = "" if queries == key_values else f", {key_values} key/value"
    return f"{queries} heads{grouped}"
