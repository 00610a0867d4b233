"""Units that go together: rows of the Linears that make them, columns of the one that reads them.

    unit u of one layer     q, k, v or gate, up           o or down
                            rows[name][u]   [rows] of     columns[u]   [columns] of

A unit is a head, a key/value head with its queries, or one channel of the MLP.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekern.structured.calibration import (
    Calibration,
    LayerInputs,
    Moments,
    check_batches,
    column_gradients,
)
from prunekern.structured.compensate import COMPENSATIONS, least_squares, shifted_bias
from prunekern.structured.counts import check_choice
from prunekern.structured.model import evaluating

SCORES = ("magnitude", "activation", "gradient")


@dataclass(frozen=True)
class Request:
    """What is to stay of one layer.

    Attributes:
        rows: Linear -> int64 [units, rows a unit]; makes the units.
        reader: The Linear that reads them.
        columns: int64 [units, columns a unit] of the reader.
        keep: How many stay, or which: int64, ascending.
        parts: Units lie in so many equal parts, and the same number stays in each.
    """

    rows: dict[str, Tensor]
    reader: str
    columns: Tensor
    keep: int | Tensor
    parts: int = 1

    @property
    def is_given(self) -> bool:
        """Whether the units were named and need no scores."""
        return isinstance(self.keep, Tensor)


@dataclass(frozen=True)
class Cut:
    """What stays of one layer, ready to be applied.

    Attributes:
        rows: Linear -> rows that stay.
        reader: The Linear that loses columns.
        columns: Those of its columns that stay.
        weight: Its refitted weight, or None where the columns stay as they are.
        bias: Its bias from now on, or None.
        energy_kept: Share of the sum of squares of all these Linears' weights, before refitting.
    """

    rows: dict[str, Tensor]
    reader: str
    columns: Tensor
    weight: Tensor | None
    bias: Tensor | None
    energy_kept: float


def plan_cuts(
    model: nn.Module,
    requests: dict[int, Request],
    by: str,
    calibration: Calibration | None,
    compensate: str,
    who: str,
) -> dict[int, Cut]:
    """Layer -> what to do with it; changes nothing.

    Where activations are needed, layers are walked in order with one layer's hidden states in
    memory: statistics come from the whole layer, and the next one sees the output of what is left.

    Args:
        model: Checked by `check_model`.
        requests: Layer -> what is to stay.
        by: One of SCORES.
        calibration: See `check_batches`; needed unless `by` is "magnitude" and nothing is
            compensated.
        compensate: One of COMPENSATIONS.
        who: The caller, for messages.

    Raises:
        ValueError: A wrong argument, scores that are no numbers, or a bias where there is none.
    """
    check_choice(who, "by", by, SCORES)
    check_choice(who, "compensate", compensate, COMPENSATIONS)
    layers = model.model.layers
    if compensate == "bias":
        for i, request in requests.items():
            _check_bias(
                layers[i].get_submodule(request.reader), f"layers.{i}.{request.reader}", who
            )
    scored = not all(request.is_given for request in requests.values())
    walks = compensate != "none" or (scored and by == "activation")
    batches = []
    if walks or (scored and by == "gradient"):
        batches = check_batches(model, calibration, who)
    with evaluating(model):
        gradients = {}
        if scored and by == "gradient":
            gradients = _gradient_scores(model, requests, batches)
        inputs = LayerInputs(model, batches) if walks else None
        cuts = {}
        for i in range(max(requests) + 1):
            layer = layers[i]
            if i in requests:
                request = requests[i]
                moments = None
                if inputs is not None:
                    gram = compensate == "least_squares"
                    moments = inputs.moments(layer, i, request.reader, gram)
                scores = gradients.get(i)
                if scores is None and not request.is_given:
                    scores = _scores(layer, request, moments if by == "activation" else None)
                keep = _choose(request, scores, f"{who}: layer {i}")
                cuts[i] = _cut(layer, request, keep, moments, compensate)
            if inputs is not None and i < max(requests):
                inputs.hidden = inputs.run(_applied_to_copy(layer, cuts.get(i)), i)
    return cuts


def apply_cut(layer: nn.Module, cut: Cut) -> None:
    """Makes the layer's Linears smaller, in place."""
    for name, rows in cut.rows.items():
        linear = layer.get_submodule(name)
        bias = None if linear.bias is None else linear.bias[rows]
        set_linear(linear, linear.weight[rows], bias)
    reader = layer.get_submodule(cut.reader)
    weight = reader.weight[:, cut.columns] if cut.weight is None else cut.weight
    set_linear(reader, weight, cut.bias)


def set_linear(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Gives a Linear other parameters and sizes; the module stays, its hooks with it."""
    linear.weight = nn.Parameter(weight.detach(), linear.weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), linear.bias.requires_grad)
    linear.out_features, linear.in_features = weight.shape


def _applied_to_copy(layer: nn.Module, cut: Cut | None) -> nn.Module:
    if cut is None:
        return layer
    smaller = copy.deepcopy(layer)
    apply_cut(smaller, cut)
    set_sizes(smaller)
    return smaller


def set_sizes(layer: nn.Module) -> None:
    """Numbers that a layer's modules hold beside their weights, from the weights."""
    attention = layer.self_attn
    attention.num_key_value_groups = attention.q_proj.out_features // attention.k_proj.out_features
    layer.mlp.intermediate_size = layer.mlp.down_proj.in_features
    layer.mlp.hidden_size = layer.hidden_size = attention.q_proj.in_features


def _check_bias(reader: nn.Linear, name: str, who: str) -> None:
    if reader.bias is None:
        raise ValueError(
            f'{who}: compensate="bias" must find a bias in {name}, got none, and one that the '
            'config does not know of would not reload; compensate="least_squares" needs none'
        )


def _energies(layer: nn.Module, request: Request) -> Tensor:
    """Sum of squares of each unit's own weights: float32 [units]."""
    reader = layer.get_submodule(request.reader).weight.detach().float()
    energies = reader.square().sum(0)[request.columns].sum(1)
    for name, rows in request.rows.items():
        weight = layer.get_submodule(name).weight.detach().float()
        energies += weight.square().sum(1)[rows].sum(1)
    return energies


def _scores(layer: nn.Module, request: Request, moments: Moments | None) -> Tensor:
    """By weights alone, or with moments by what the units add to the reader's output.

    The latter is sum_j E[x_j^2] |W_j|^2 over the unit's columns, Wanda's score (arXiv 2306.11695)
    squared and summed.
    """
    if moments is None:
        return _energies(layer, request)
    reader = layer.get_submodule(request.reader).weight.detach().float()
    return (moments.square.float() * reader.square().sum(0))[request.columns].sum(1)


def _gradient_scores(
    model: nn.Module, requests: dict[int, Request], batches: list[Tensor]
) -> dict[int, Tensor]:
    """Layer -> sum over batches of |dL / d(factor on unit)|: float32 [units]."""
    scored = {i: request for i, request in requests.items() if not request.is_given}
    layers = model.model.layers
    weights = [layers[i].get_submodule(request.reader).weight for i, request in scored.items()]
    totals = {i: 0 for i in scored}
    for columns in column_gradients(model, weights, batches):
        for (i, request), column in zip(scored.items(), columns, strict=True):
            totals[i] = totals[i] + column[request.columns].sum(1).abs()
    return totals


def _choose(request: Request, scores: Tensor | None, what: str) -> Tensor:
    """Units that stay, ascending; among equal scores the lower index does."""
    if request.is_given:
        return request.keep
    if not torch.isfinite(scores).all():
        raise ValueError(f"{what} must have finite scores, got NaN or infinity")
    parts = scores.view(request.parts, -1)
    order = parts.argsort(dim=1, descending=True, stable=True)[:, : request.keep // request.parts]
    first = torch.arange(request.parts, device=order.device)[:, None] * parts.shape[1]
    return (order + first).flatten().sort().values


def _cut(
    layer: nn.Module, request: Request, keep: Tensor, moments: Moments | None, compensate: str
) -> Cut:
    reader = layer.get_submodule(request.reader)
    columns = request.columns[keep].flatten()
    weight, bias = None, reader.bias
    if compensate == "least_squares":
        weight, bias = least_squares(reader.weight, reader.bias, moments, columns)
    elif compensate == "bias":
        bias = shifted_bias(reader.weight, reader.bias, moments, columns, reader.weight[:, columns])
    energies = _energies(layer, request).double()
    total = energies.sum()
    share = (energies[keep].sum() / total).item() if total > 0 else 1.0
    rows = {name: all_rows[keep].flatten() for name, all_rows in request.rows.items()}
    return Cut(rows, request.reader, columns, weight, bias, share)
