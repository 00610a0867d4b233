"""remove_hidden: channels of the residual stream, out of everything that reads or writes it.

A norm divides by the root mean square over all channels, so that its meaning changes with the
width: y_j = w_j x_j / rms(x). Over the channels that stay, rms_k(x) is another number, and w
becomes w s, with

    calibrated      s = E[rms_k(x) / rms(x)] over tokens, the best fit of one factor a norm to what
                    it gave before
    otherwise       s = sqrt(H / H'), as if the channels that go had been zero

for H channels before and H' after. The epsilon inside the root stays.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekern.structured.calibration import Calibration, check_batches
from prunekern.structured.channels import MULTIPLE
from prunekern.structured.config import can_be_mistral, plain_config_takes, sync_config
from prunekern.structured.counts import check_choice, check_one_of, kept_count
from prunekern.structured.model import ATTENTION, MLP, check_model, evaluating, parameter_count
from prunekern.structured.report import RemovalReport, RemovedPart
from prunekern.structured.units import set_linear, set_sizes

SCORES = ("magnitude", "activation")
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
READERS = tuple(name for name in (*ATTENTION, *MLP) if name not in WRITERS)
NORMS = ("input_layernorm", "post_attention_layernorm")


def remove_hidden(
    model: nn.Module,
    fraction: float | None = None,
    n: int | None = None,
    by: str = "magnitude",
    calibration: Calibration | None = None,
    multiple: int = MULTIPLE,
) -> RemovalReport:
    """Narrows the whole model: embeddings, norms, every projection, lm_head, tied or not; in place.

    Heads and MLP channels keep their number. How norms are rescaled is said at the head of this
    file.

    Args:
        model: LlamaForCausalLM, or Mistral's, Qwen2's or Qwen3's.
        fraction: This share of the width goes, rounded so that a multiple of `multiple` stays; or
        n: so many channels go, exactly.
        by: "magnitude": least sum of squares of all weights that read or write a channel, each
            matrix counting the same; "activation": least mean square in the outputs of all norms on
            calibration tokens, each norm counting the same (after arXiv 2407.14679).
        calibration: Token ids, int64 [windows, length] or an iterable of [batch, length]; needed
            for "activation"; given, norms are rescaled by it.
        multiple: See `fraction`.

    Returns:
        Parameters and share of energy kept, layer by layer.

    Raises:
        ValueError: Another model, sparse layers, a width that does not fit or that Llama's config
            refuses, or missing calibration; the model is then as it was.
    """
    who = "remove_hidden"
    check_one_of(who, fraction=fraction, n=n)
    check_choice(who, "by", by, SCORES)
    if not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"{who}: multiple must be at least 1, got {multiple}")
    layers = check_model(model, who)
    width = model.get_input_embeddings().embedding_dim
    step = multiple if n is None else 1
    kept = kept_count(width, n, fraction, step, f"{who}: hidden channels")
    heads = model.config.num_attention_heads
    if not plain_config_takes(model.config, heads, kept) and not can_be_mistral(model.config):
        raise ValueError(
            f"{who}: hidden channels must stay in multiples of the {heads} heads, or LlamaConfig "
            f"refuses to reload them, got {kept} left of {width}"
        )
    batches = []
    if by == "activation" or calibration is not None:
        batches = check_batches(model, calibration, who)

    energies = [_energy(weights) for weights in _weights(model)]
    with evaluating(model):
        scores = _activation_scores(model, batches) if by == "activation" else _sum(energies)
        if not torch.isfinite(scores).all():
            raise ValueError(f"{who}: hidden channels must have finite scores, got NaN or infinity")
        order = scores.argsort(descending=True, stable=True)
        keep = order[:kept].sort().values
        factors = _norm_factors(model, keep, batches)

    total = parameter_count(model)
    parts = []
    for i, layer in enumerate(layers):
        before = parameter_count(layer)
        _narrow_layer(layer, keep)
        energy = energies[i].double()
        whole = energy.sum()
        share = (energy[keep].sum() / whole).item() if whole > 0 else 1.0
        after = parameter_count(layer)
        parts.append(RemovedPart(i, f"width {width}", f"width {kept}", before, after, share))
    _narrow_embeddings(model, keep)
    for norm, factor in zip(_norms(model), factors, strict=True):
        weight = norm.weight.detach()[keep.to(norm.weight.device)] * factor
        norm.weight = nn.Parameter(weight.to(norm.weight.dtype), norm.weight.requires_grad)
    for layer in layers:
        set_sizes(layer)
    note = sync_config(model)
    return RemovalReport(f"{who} (by {by})", tuple(parts), total, parameter_count(model), note)


def _norms(model: nn.Module) -> list[nn.Module]:
    """All norms of the residual stream, in order."""
    inside = [layer.get_submodule(name) for layer in model.model.layers for name in NORMS]
    return [*inside, model.model.norm]


def _weights(model: nn.Module) -> list[list[Tensor]]:
    """Weights with the residual stream as columns: those of each layer, then the embeddings."""
    lists = []
    for layer in model.model.layers:
        reads = [layer.get_submodule(name).weight for name in READERS]
        writes = [layer.get_submodule(name).weight.t() for name in WRITERS]
        lists.append(reads + writes)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [*lists, [embedding] if head is embedding else [embedding, head]]


def _energy(weights: list[Tensor]) -> Tensor:
    """Sum of squares by channel, each matrix divided by its own total: float32 [H], on the CPU."""
    return _sum([_share(weight.detach().float().square().sum(0)) for weight in weights])


def _share(energies: Tensor) -> Tensor:
    return (energies / energies.sum().clamp(min=torch.finfo(torch.float32).tiny)).cpu()


def _sum(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).sum(0)


@torch.no_grad()
def _activation_scores(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """Share of each channel in the mean square of a norm's outputs, summed over norms: [H]."""
    norms = _norms(model)
    squares = [torch.zeros(norm.weight.shape, dtype=torch.float64) for norm in norms]

    def add(place: int, out: Tensor) -> None:
        squares[place] += out.flatten(0, -2).float().square().sum(0).double().cpu()

    _watch(model, norms, lambda place, _x, out: add(place, out), batches)
    return _sum([_share(square.float()) for square in squares])


def _norm_factors(model: nn.Module, keep: Tensor, batches: list[Tensor]) -> list[float]:
    """The factor s of each norm, see the head of this file."""
    norms = _norms(model)
    if not batches:
        return [(norms[0].weight.numel() / len(keep)) ** 0.5] * len(norms)
    totals = [0.0] * len(norms)

    def add(place: int, x: Tensor) -> None:
        square = x.flatten(0, -2).double().square()
        tiny = torch.finfo(torch.float64).tiny
        left = square[:, keep.to(x.device)].mean(1) / square.mean(1).clamp(min=tiny)
        totals[place] += left.sqrt().sum().item()

    _watch(model, norms, lambda place, x, _out: add(place, x), batches)
    tokens = sum(batch.numel() for batch in batches)
    return [total / tokens for total in totals]


@torch.no_grad()
def _watch(model: nn.Module, norms: list[nn.Module], look, batches: list[Tensor]) -> None:
    """Runs the model and calls look(place, input, output) at each norm."""
    handles = [
        norm.register_forward_hook(lambda _m, args, out, place=place: look(place, args[0], out))
        for place, norm in enumerate(norms)
    ]
    try:
        for batch in batches:
            model.model(input_ids=batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def _narrow_layer(layer: nn.Module, keep: Tensor) -> None:
    for name in READERS:
        linear = layer.get_submodule(name)
        set_linear(linear, linear.weight[:, keep.to(linear.weight.device)], linear.bias)
    for name in WRITERS:
        linear = layer.get_submodule(name)
        rows = keep.to(linear.weight.device)
        set_linear(linear, linear.weight[rows], None if linear.bias is None else linear.bias[rows])


def _narrow_embeddings(model: nn.Module, keep: Tensor) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    weight = embedding.weight.detach()[:, keep.to(embedding.weight.device)].clone()
    embedding.weight = nn.Parameter(weight, embedding.weight.requires_grad)
    embedding.embedding_dim = len(keep)
    if tied:
        head.weight, head.in_features = embedding.weight, len(keep)
    else:
        set_linear(head, head.weight[:, keep.to(head.weight.device)], head.bias)
