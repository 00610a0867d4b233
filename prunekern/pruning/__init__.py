"""Which weights go. Scores (one method a file) and choosers of masks (masks.py) are kept apart.

Pruning writes zeros into the model's own weights and knows no kernels; `replace_linears` then
stores and runs what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekern.formats import Sparse24Int4, check_group_size
from prunekern.pruning import calibrated
from prunekern.pruning.allocation import check_sparsity, pattern_of_each, sparsity_of_each
from prunekern.pruning.calibration import calibration_windows
from prunekern.pruning.input_statistics import Hessian, InputNorms, Statistic
from prunekern.pruning.layerwise import Progress, evaluating
from prunekern.pruning.magnitude import magnitude_scores
from prunekern.pruning.masks import choose_mask, global_threshold, parse_pattern, threshold_mask
from prunekern.pruning.movement import MovementPruner, cubic_sparsity
from prunekern.pruning.permutation import PermuteReport, permute_channels
from prunekern.pruning.random_scores import random_scores
from prunekern.pruning.report import PrunedLayer, PruneReport, pruned_layer
from prunekern.pruning.ria import ria_scores
from prunekern.pruning.sparsegpt import Rounding, sparsegpt_prune
from prunekern.pruning.taylor import mean_gradients, taylor_scores
from prunekern.pruning.torch_masks import (
    fold_masks,
    frozen_zeros,
    masked_weight,
    stored_weight,
)
from prunekern.pruning.wanda import wanda_scores
from prunekern.targets import DEFAULT_TARGETS, match_modules
from prunekern.tied import untied

__all__ = [
    "METHODS",
    "MovementPruner",
    "PermuteReport",
    "PruneReport",
    "PrunedLayer",
    "cubic_sparsity",
    "permute_channels",
    "prune",
    "pruned_weight",
    "statistic_of",
]


@dataclass(frozen=True)
class Method:
    """What a method looks at, and among whom it may rank; the first scope is its own."""

    needs: str  # "weights", or of calibration "gradients", "norms" or "hessians"
    scopes: tuple[str, ...]


METHODS = {
    "magnitude": Method("weights", ("layer", "row", "global", "quantile")),
    "random": Method("weights", ("layer", "row", "global")),
    "wanda": Method("norms", ("row", "layer")),
    "ria": Method("norms", ("row", "layer")),
    "sparsegpt": Method("hessians", ("block",)),
    "taylor": Method("gradients", ("layer", "row", "global", "quantile")),
}
_LAYERWISE = ("norms", "hessians")
ALLOCATIONS = ("uniform", "owl")
_OWL_SHARE = 1 / 3  # of the whole run's passes


@dataclass(frozen=True)
class _Rule:
    """How masks are made, once arguments are checked."""

    pattern: str | Mapping[str, str]
    nm: tuple[int, int] | None  # of a single pattern
    method: str
    scope: str
    sparsity: float | Mapping[str, float]
    allocation: str
    seed: int
    damping: float
    values: str | None
    group_size: int | None
    transposable: bool


def prune(
    model: nn.Module,
    pattern: str | Mapping[str, str] = "2:4",
    method: str = "magnitude",
    sparsity: float | Mapping[str, float] | None = None,
    targets: str | Sequence[str] = DEFAULT_TARGETS,
    scope: str | None = None,
    *,
    allocation: str = "uniform",
    calibration: Any = None,
    tokenizer: Any = None,
    windows: int | None = None,
    window: int | None = None,
    seed: int = 0,
    damping: float = 0.01,
    values: str | None = None,
    group_size: int | None = None,
    transposable: bool = False,
    offload: str | Path | None = None,
    state: str | Path | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> PruneReport:
    """Writes +0.0 into the weights that matter least, in place; all or nothing.

    "wanda", "ria", "sparsegpt" and OWL's allocation run calibration text through the decoder
    layers, one at a time: in memory there are the inputs of one layer and, so that an error can
    undo everything, the dense weights of those already pruned. "sparsegpt" also holds the Hessians
    of one layer, K^2 float32 for each different input, and rewrites the weights that stay.
    "movement" is learned while training: see `MovementPruner`.

    Masks of torch.nn.utils.prune on a target are folded into its weight: what they prune stays
    zero, whatever the method.

    Args:
        model: Any module with nn.Linear layers; for "wanda", "ria", "sparsegpt" and OWL a model
            of transformers with decoder layers at model.layers; for "taylor" a causal language
            model.
        pattern: "N:M" (N of every M inputs kept, M up to 32; a shorter group at a row's end keeps
            up to N) or "unstructured"; or one for each target by name or its end at a dot.
        method: How a weight's worth is scored: "magnitude", "random", "wanda", "ria", "sparsegpt"
            or "taylor".
        sparsity: Share of weights that go, in [0, 1); 0.5 where none is given; or a share for each
            unstructured target by name or its end at a dot. N:M has its own.
        targets: See `prunekern.targets.match_modules`. A head that is named though it shares its
            weight with the input embedding gets a copy of its own, which alone is pruned.
        scope: For unstructured, among whom the smallest are sought: "layer", "row", "global", or
            "quantile", which keeps what reaches the layer's quantile with all ties. By default
            "row" for Wanda and RIA, "layer" for others; SparseGPT ranks a "block" of 128 columns.
        allocation: "uniform", or "owl": decoder layers with many outliers keep more.
        calibration: The path of a text file, texts, a dataset's split with "text", or token ids:
            see `calibration_windows`. For the methods that need it.
        tokenizer: Of the model, for calibration text.
        windows: Number of calibration windows; 128 where left out.
        window: Tokens of each; at most 2048 and the model's longest.
        seed: Of "random".
        damping: Of SparseGPT's Hessians, as a share of their mean diagonal.
        values: "int4" rounds what "2:4" by "sparsegpt" keeps while it prunes, so that weights to
            the right make up for it; `replace_linears(kernel="2:4-int4")` then changes nothing
            more.
        group_size: Inputs that share a scale, for `values`; see `prunekern.compress`.
        transposable: For "2:4", whether W^T is to be 2:4, too, so that training multiplies by
            sparse weights both ways; of each 4 x 4 block the best of the 90 such masks stays.
        offload: Folder for the activations of the layer and the dense weights, instead of memory.
        state: Folder that keeps each finished decoder layer, also where an error or Ctrl-C has put
            the model back; the same call on the same dense model goes on from there and ends with
            the same bits. For "wanda", "ria" and "sparsegpt".
        progress: Called with the share done and the seconds that the rest may take.

    Returns:
        What was done, layer by layer.

    Raises:
        ValueError: An argument is not one of the above, nothing matches, a weight has NaN or
            infinite scores, calibration can not be used, or a Hessian stays indefinite; the model
            is then as it was.
    """
    rule = _check_rule(
        *(pattern, method, sparsity, scope, allocation, seed, damping),
        *(values, group_size, transposable),
    )
    matched = match_modules(model, targets, "prune")
    modules = _check_weights(matched)
    rules = _rule_of_each(rule, list(modules))
    free = [name for name, own in rules.items() if own.nm is None]
    shares = {name: own.sparsity for name, own in rules.items()}
    shares |= sparsity_of_each(rule.sparsity, free)
    needs = METHODS[method].needs
    work = ids = None
    if needs == "weights" and allocation == "uniform":
        unused = {"windows": windows, "window": window, "state": state, "offload": offload}
        _refuse_unused(method, calibration=calibration, **unused)
    else:
        if calibration is None:
            raise ValueError(
                f"prune: calibration must be given for {_calibrated_by(rule)}: the path of a text "
                "file, texts, a dataset's split or token ids"
            )
        if needs not in _LAYERWISE:
            _refuse_unused(method, state=state)
        ids = calibration_windows(model, calibration, tokenizer, windows, window)
        if needs in _LAYERWISE or allocation == "owl":
            work = calibrated.plan(model, modules, _calibrated_by(rule), ids, offload)
        else:
            _refuse_unused(method, offload=offload)

    told = Progress(progress)
    begin = 0.0
    with untied(model, modules.values()):
        if allocation == "owl":
            begin = _OWL_SHARE if needs != "weights" else 1.0
            shares = calibrated.owl_allocation(work, rule.sparsity, told, begin)
        if needs in _LAYERWISE:
            layers = calibrated.prune_layerwise(
                work,
                InputNorms if needs == "norms" else Hessian,
                partial(_decide, rules, shares),
                state,
                asdict(rule) | {"sparsity": shares},
                told,
                begin,
            )
        else:
            scores_of = _scores(model, rule, modules, ids, told, begin)
            layers = _prune_by_scores(rules, modules, shares, scores_of)
        for module in matched.values():
            fold_masks(module)
    patterns = ", ".join(sorted({own.pattern for own in rules.values()}))
    return PruneReport(patterns, method, tuple(layers), None if ids is None else tuple(ids.shape))


def statistic_of(method: str) -> type[Statistic] | None:
    """What `pruned_weight` wants to know of a layer's inputs, None for nothing.

    Raises:
        ValueError: The method looks at more than one layer, as "taylor" does.
    """
    kinds = {"weights": None, "norms": InputNorms, "hessians": Hessian}
    known = [name for name, one in METHODS.items() if one.needs in kinds and name != "random"]
    if method not in known:
        raise ValueError(f"prune: method must be one of {', '.join(known)}, got {method!r}")
    return kinds[METHODS[method].needs]


def pruned_weight(
    name: str,
    module: nn.Module,
    pattern: str,
    method: str,
    sparsity: float | None = None,
    statistic: Statistic | None = None,
) -> Tensor:
    """What `prune` would make of the weight of one layer; the layer is left as it is.

    Args:
        name: Of the layer, for messages.
        module: The layer.
        pattern: "N:M" or "unstructured".
        method: See `statistic_of`.
        sparsity: See `prune`.
        statistic: Of the layer's inputs, of the kind that `statistic_of` names.

    Returns:
        [N, K], any float dtype.

    Raises:
        ValueError: As `prune`.
    """
    rule = _check_rule(pattern, method, sparsity, None, "uniform", 0, 0.01, None, None, False)
    if statistic is not None:
        return _decide({name: rule}, {name: rule.sparsity}, name, module, statistic)
    weight = masked_weight(module)
    mask = choose_mask(magnitude_scores(weight), rule.nm, rule.sparsity, rule.scope)
    return weight.masked_fill(~mask, 0.0)


def _check_rule(
    pattern: str | Mapping[str, str],
    method: str,
    sparsity: float | Mapping[str, float] | None,
    scope: str | None,
    allocation: str,
    seed: int,
    damping: float,
    values: str | None,
    group_size: int | None,
    transposable: bool,
) -> _Rule:
    mixed = isinstance(pattern, Mapping)
    nms = [parse_pattern(one) for one in (pattern.values() if mixed else [pattern])]
    nm = None if mixed else nms[0]
    if transposable and nm != (2, 4):
        raise ValueError(f'prune: pattern must be "2:4" for transposable, got {pattern!r}')
    if method == "movement":
        raise ValueError(
            "prune: method movement is learned while training; see pruning.MovementPruner"
        )
    if method not in METHODS:
        raise ValueError(f"prune: method must be one of {', '.join(METHODS)}, got {method!r}")
    scopes = METHODS[method].scopes
    if scope is not None and scope not in scopes:
        raise ValueError(
            f"prune: scope must be one of {', '.join(scopes)} for {method}, got {scope!r}"
        )
    scope = scope or scopes[0]
    if allocation not in ALLOCATIONS:
        raise ValueError(
            f"prune: allocation must be one of {', '.join(ALLOCATIONS)}, got {allocation!r}"
        )
    sparsity = check_sparsity(sparsity, nm, pattern)
    if allocation == "owl" and any(nms):
        raise ValueError(f"prune: pattern must be unstructured for owl, got {pattern}")
    if mixed and (allocation == "owl" or scope == "global"):
        what = "owl" if allocation == "owl" else "scope global"
        raise ValueError(f"prune: pattern must be one for {what}, got one a layer")
    if isinstance(sparsity, Mapping) and (allocation == "owl" or scope == "global"):
        what = "owl" if allocation == "owl" else "scope global"
        raise ValueError(f"prune: sparsity must be one number for {what}, got a share a layer")
    if allocation == "owl" and scope == "global":
        raise ValueError("prune: scope must be within a layer for owl, got 'global'")
    if not 0 < damping < float("inf"):
        raise ValueError(f"prune: damping must be positive, got {damping}")
    _check_values(values, group_size, nm, method)
    return _Rule(
        *(pattern, nm, method, scope, sparsity, allocation, seed, damping),
        *(values, group_size, transposable),
    )


def _check_values(
    values: str | None, group_size: int | None, nm: tuple[int, int] | None, method: str
) -> None:
    if values is None:
        if group_size is not None:
            raise ValueError(f"prune: group_size must be left out without values, got {group_size}")
        return
    if values != "int4":
        raise ValueError(
            f'prune: values must be "int4" or None, got {values!r}; int8 loses next to nothing '
            'when replace_linears(kernel="2:4-int8") rounds'
        )
    if method != "sparsegpt" or nm != (2, 4):
        raise ValueError(f"prune: values must go with sparsegpt and 2:4, got {method}, {nm}")
    check_group_size("2:4-int4", group_size, "prune")


def _rule_of_each(rule: _Rule, names: Sequence[str]) -> dict[str, _Rule]:
    """Layer -> rule with its own pattern; the sparsity of N:M is that of the pattern."""
    if not isinstance(rule.pattern, Mapping):
        return dict.fromkeys(names, rule)
    rules = {}
    for name, pattern in pattern_of_each(rule.pattern, names).items():
        nm = parse_pattern(pattern)
        sparsity = rule.sparsity if nm is None else 1 - nm[0] / nm[1]
        rules[name] = replace(rule, pattern=pattern, nm=nm, sparsity=sparsity)
    return rules


def _refuse_unused(method: str, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"prune: {name} must be left out for {method}, which has no use for it, "
                f"got {type(value).__name__}"
            )


def _calibrated_by(rule: _Rule) -> str:
    return "owl" if rule.allocation == "owl" else rule.method


def _check_weights(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Name -> module, each weight once; refuses what could not be scored."""
    result: dict[str, nn.Module] = {}
    seen: set[Tensor] = set()
    for name, module in modules.items():
        if stored_weight(module) in seen:
            continue
        weight = masked_weight(module)
        if weight.device.type == "meta":
            raise ValueError(f"prune: {name} must hold data, got a meta tensor; load the model")
        if not torch.is_floating_point(weight):
            raise ValueError(f"prune: {name} must have float weights, got {weight.dtype}")
        if not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise ValueError(f"prune: {name} must have finite weights, got {bad} NaN or infinite")
        seen.add(stored_weight(module))
        result[name] = module
    return result


def _decide(
    rules: Mapping[str, _Rule],
    shares: Mapping[str, float],
    name: str,
    module: nn.Module,
    statistic: InputNorms | Hessian,
) -> Tensor:
    """The pruned weight of one layer, by what is known of its inputs."""
    rule, weight = rules[name], masked_weight(module)
    if isinstance(statistic, Hessian):
        factor, dead = statistic.factor(rule.damping, name)
        rounding = None
        if rule.values:
            size = rule.group_size or Sparse24Int4.default_group_size
            rounding = Rounding(Sparse24Int4.bits, size, weight.dtype)
        return sparsegpt_prune(
            *(weight, factor, dead, rule.nm, shares[name], frozen_zeros(module)),
            transposable=rule.transposable,
            rounding=rounding,
        )
    score = {"wanda": wanda_scores, "ria": ria_scores}[rule.method]
    scores = score(weight, statistic.norm(name))
    mask = choose_mask(scores, rule.nm, shares[name], rule.scope, rule.transposable)
    return weight.masked_fill(~mask, 0.0)


def _scores(
    model: nn.Module,
    rule: _Rule,
    modules: Mapping[str, nn.Module],
    ids: Tensor | None,
    told: Progress,
    begin: float,
) -> Callable[[str], Tensor]:
    """Name -> scores [N, K], made when asked for."""
    if rule.method == "magnitude":
        return lambda name: magnitude_scores(masked_weight(modules[name]))
    if rule.method == "random":
        return lambda name: random_scores(masked_weight(modules[name]), name, rule.seed)
    with evaluating(model):
        gradients = mean_gradients(
            model,
            {name: stored_weight(module) for name, module in modules.items()},
            ids,
            told.span(begin, 1.0, len(ids)),
        )
    return lambda name: taylor_scores(masked_weight(modules[name]), gradients[name])


def _prune_by_scores(
    rules: Mapping[str, _Rule],
    modules: Mapping[str, nn.Module],
    shares: Mapping[str, float],
    scores_of: Callable[[str], Tensor],
) -> list[PrunedLayer]:
    """Writes the zeros, layer after layer."""
    rule = next(iter(rules.values()))  # all but pattern and sparsity are the same in each
    by_threshold = rule.nm is None and rule.scope == "global"
    if by_threshold:
        threshold, ties = global_threshold([scores_of(name) for name in modules], rule.sparsity)
    rows = []
    for name, module in modules.items():
        if by_threshold:
            mask, ties = threshold_mask(scores_of(name), threshold, ties)
        else:
            scores = scores_of(name)
            mask = choose_mask(scores, rules[name].nm, shares[name], rule.scope, rule.transposable)
        weight = masked_weight(module)
        # masked_fill, not a product with the mask: that would write -0.0 for negative weights.
        pruned = weight.masked_fill(~mask, 0.0)
        rows.append(pruned_layer(name, weight, pruned))
        with torch.no_grad():
            stored_weight(module).copy_(pruned)
    return rows
