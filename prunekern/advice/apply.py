"""apply: prunes and swaps the layers of a model as a plan says."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekern.advice.candidates import Candidate
from prunekern.advice.plan import Plan
from prunekern.advice.sensitivity import rounded
from prunekern.advice.texts import calibration_of, digest_of
from prunekern.pruning import METHODS, PruneReport, prune
from prunekern.replace import ReplaceReport, replace_linears
from prunekern.targets import is_linear


def apply(
    model: nn.Module,
    plan: Plan,
    tokenizer: Any = None,
    text: str | Path | None = None,
    **options: Any,
) -> tuple[PruneReport, ReplaceReport]:
    """Prunes the layers of a dense model and stores them as the plan says, in place.

    Args:
        model: The model that was advised, dense.
        plan: From `advise`.
        tokenizer: Of the model, for calibration text.
        text: The file that the plan was made with; left out where that was the default text.
        **options: `state`, `offload` and `progress` of `prunekern.prune`.

    Returns:
        What was pruned, and what was swapped, layer by layer.

    Raises:
        ValueError: The plan prunes nothing, is of another model, or its text is missing; the
            model is then as it was.
    """
    if not plan.pruned:
        raise ValueError("apply: plan must prune a layer, got one that leaves all dense")
    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    for layer in plan.pruned:
        shape = tuple(linears[layer.name].weight.shape) if layer.name in linears else "none"
        if shape != layer.shape:
            raise ValueError(
                f"apply: {layer.name} must be a dense layer of {list(layer.shape)} as in the "
                f"plan, got {shape if shape == 'none' else list(shape)}"
            )
    calibration = None
    if METHODS[plan.method].needs != "weights":
        if text is None and not plan.default_text:
            raise ValueError(
                f"apply: text must be the file that the plan was made with, {plan.text}, got None"
            )
        calibration = calibration_of(model, tokenizer, text, *plan.calibration)
        if digest_of(calibration) != plan.calibration_digest:
            warnings.warn(
                "apply: the text is not the one that the plan was made with, so that its "
                "perplexity is not promised",
                stacklevel=2,
            )
    wanted = {layer.name: layer.candidate for layer in plan.pruned}
    pruned = prune_as(model, wanted, plan.method, calibration, **options)
    kernels: dict[str, list[str]] = {}
    for layer in plan.pruned:
        kernels.setdefault(layer.kernel, []).append(layer.name)
    reports = [
        replace_linears(model, kernel, targets=names, prune=False)
        for kernel, names in kernels.items()
    ]
    rows = {row.name: row for report in reports for row in report.layers}
    return pruned, ReplaceReport(tuple(rows[layer.name] for layer in plan.pruned))


def prune_as(
    model: nn.Module,
    wanted: Mapping[str, Candidate],
    method: str,
    calibration: Tensor | None,
    **options: Any,
) -> PruneReport:
    """Prunes each layer to its own pattern, in one pass through the model.

    Args:
        model: Dense.
        wanted: Layer -> what is done to it.
        method: See `prunekern.prune`.
        calibration: int64 [count, size], or None for methods that look at none.
        **options: Of `prunekern.prune`.
    """
    shares = {n: c.sparsity for n, c in wanted.items() if c.pattern == "unstructured"}
    return prune(
        model,
        {name: candidate.pattern for name, candidate in wanted.items()},
        method,
        shares or None,
        targets=list(wanted),
        calibration=calibration,
        **options,
    )


@torch.no_grad()
def round_as(model: nn.Module, wanted: Mapping[str, Candidate]) -> None:
    """Gives layers whose storage rounds the weights that it will hold."""
    for name, candidate in wanted.items():
        if candidate.rounded:
            weight = model.get_submodule(name).weight
            weight.copy_(rounded(weight.detach(), candidate.rounded))
