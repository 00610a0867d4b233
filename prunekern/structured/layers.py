"""remove_layers: whole decoder layers, those that change their input least."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from prunekern.structured.calibration import Calibration, check_batches
from prunekern.structured.config import sync_config
from prunekern.structured.counts import check_choice, check_indices, check_one_of, kept_count
from prunekern.structured.model import check_model, evaluating, parameter_count
from prunekern.structured.report import RemovalReport, RemovedPart

SCORES = ("similarity", "block")


def remove_layers(
    model: nn.Module,
    n: int | None = None,
    layers: Iterable[int] | None = None,
    by: str = "similarity",
    calibration: Calibration | None = None,
) -> RemovalReport:
    """Removes whole decoder layers, in place; all or nothing.

    Args:
        model: LlamaForCausalLM, or Mistral's, Qwen2's or Qwen3's.
        n: So many layers go; or
        layers: these.
        by: "similarity": each layer alone, those whose output is most like their input, by the mean
            cosine over calibration tokens (ShortGPT, arXiv 2403.03853); "block": n neighbours,
            whose last output is most like their first input (arXiv 2403.17887).
        calibration: Token ids, int64 [windows, length] or an iterable of [batch, length]; for n.

    Returns:
        What went; of a removed layer no energy is kept.

    Raises:
        ValueError: Another model, sparse layers, a number that does not fit, or missing
            calibration; the model is then as it was.
    """
    who = "remove_layers"
    check_one_of(who, n=n, layers=layers)
    check_choice(who, "by", by, SCORES)
    old = check_model(model, who)
    if layers is not None:
        gone = check_indices(layers, len(old), f"{who}: layers")
    else:
        kept_count(len(old), n, None, 1, f"{who}: layers")
        gone = _least_changing(model, n, by, check_batches(model, calibration, who))

    total = parameter_count(model)
    sizes = [parameter_count(layer) for layer in old]
    parts = tuple(RemovedPart(i, "1 layer", "0", sizes[i], 0, 0.0) for i in gone)
    keep = [i for i in range(len(old)) if i not in gone]
    for i in reversed(gone):
        del old[i]
    # The cache has a place for each layer and asks for it by this number.
    for place, layer in enumerate(old):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    types = getattr(model.config, "layer_types", None)
    if types is not None:
        model.config.layer_types = [types[i] for i in keep]
    note = sync_config(model)
    title = f"{who} ({'given' if layers is not None else f'by {by}'})"
    return RemovalReport(title, parts, total, parameter_count(model), note)


def _least_changing(model: nn.Module, n: int, by: str, batches: list[Tensor]) -> list[int]:
    """Layers that go, ascending; among equal ones the earlier stay."""
    cosines = _cosines(model, n if by == "block" else 1, batches)
    if not torch.isfinite(cosines).all():
        raise ValueError("remove_layers: hidden states must be finite, got NaN or infinity")
    if by == "block":
        first = int(cosines.argmax())
        return list(range(first, first + n))
    order = cosines.flip(0).argsort(descending=True, stable=True)
    return sorted((len(order) - 1 - order[:n]).tolist())


@torch.no_grad()
def _cosines(model: nn.Module, span: int, batches: list[Tensor]) -> Tensor:
    """Mean cosine over tokens between the input of layer i and the output of layer i + span - 1.

    Returns:
        float64 [layers - span + 1].
    """
    layers = model.model.layers
    totals = torch.zeros(len(layers) - span + 1, dtype=torch.float64)
    tokens = 0
    hidden: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _module, args: hidden.append(args[0].float()))
        for layer in layers
    ]
    handles.append(
        layers[-1].register_forward_hook(lambda _module, _args, out: hidden.append(out.float()))
    )
    try:
        with evaluating(model):
            for batch in batches:
                hidden.clear()
                model.model(input_ids=batch, use_cache=False)
                for i in range(len(totals)):
                    later = hidden[i + span].to(hidden[i].device)
                    cosines = torch.nn.functional.cosine_similarity(hidden[i], later, dim=-1)
                    totals[i] += cosines.double().sum().cpu()
                tokens += batch.numel()
    finally:
        for handle in handles:
            handle.remove()
    return totals / tokens
