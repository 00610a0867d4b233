"""Pruning layer by layer by what calibration text sends through the model.

A decoder layer's statistics are taken with its dense weights; then it is pruned, and run again, so
that the next layer sees what it will see. All or nothing: whatever goes wrong, the model is as it
was. For that the dense weights of pruned layers are kept until the end, in files if there is a
folder to offload to. With a state folder a run that was stopped goes on where it was, to the same
bits: finished layers are read, and only run once, to feed the next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekern.pruning.allocation import outlier_share, owl_sparsities
from prunekern.pruning.input_statistics import Hessian, InputNorms, InputStatistics, Statistic
from prunekern.pruning.layerwise import (
    Activations,
    Progress,
    decoder_layers,
    evaluating,
    layer_of_target,
    scratch,
    with_head,
)
from prunekern.pruning.report import PrunedLayer, pruned_layer
from prunekern.pruning.state import State, digest
from prunekern.pruning.torch_masks import masked_weight, stored_weight
from prunekern.pruning.wanda import wanda_scores

# Name, module and what is known of its inputs -> its pruned weight [N, K], any float dtype.
Decide = Callable[[str, nn.Module, Statistic], Tensor]


@dataclass(frozen=True)
class Plan:
    """What runs through which decoder layers."""

    model: nn.Module
    layers: nn.ModuleList  # and the head as one more, if it is a target
    prefix: str
    targets: Mapping[int, Mapping[str, nn.Module]]  # decoder layer -> name -> module
    windows: Tensor
    offload: str | Path | None

    @property
    def last(self) -> int:
        """The last decoder layer that has a target."""
        return max(self.targets)


def plan(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    method: str,
    windows: Tensor,
    offload: str | Path | None,
) -> Plan:
    """Sorts the targets into decoder layers.

    Raises:
        ValueError: Another kind of model, or a target outside of them.
    """
    prefix, layers = decoder_layers(model, method)
    headed = with_head(model, prefix, layers)
    head = None
    if headed is not layers:
        head = next((n for n, module in modules.items() if module is headed[-1].head), None)
    targets: dict[int, dict[str, nn.Module]] = defaultdict(dict)
    for name, index in layer_of_target(prefix, list(modules), method, head).items():
        targets[len(layers) if index is None else index][name] = modules[name]
    layers = layers if head is None else headed
    return Plan(model, layers, prefix, targets, windows, offload)


def owl_allocation(work: Plan, sparsity: float, progress: Progress, end: float) -> dict[str, float]:
    """Layer -> sparsity by the outliers of the dense model, which is run once.

    Args:
        work: What is to be pruned.
        sparsity: Of all targets together.
        progress: Told from 0 to `end`.
        end: Share of the whole run that this is.
    """
    tick = progress.span(0.0, end, (work.last + 1) * len(work.windows))
    shares, sizes = {}, {}
    with evaluating(work.model), scratch(work.offload) as make:
        activations = Activations(work.model, work.layers, work.windows, make)
        for index in range(work.last + 1):
            modules = work.targets.get(index, {})
            with InputStatistics(modules, InputNorms) as statistics:
                activations.run(index, keep=True, tick=tick, after_window=statistics.next_window)
            scores = [
                wanda_scores(masked_weight(modules[name]), norms.norm(name))
                for norms, names in statistics.groups()
                for name in names
            ]
            if scores:
                shares[index] = outlier_share(scores)
                sizes[index] = sum(s.numel() for s in scores)
    by_layer = owl_sparsities(shares, sizes, sparsity)
    return {name: by_layer[index] for index, names in work.targets.items() for name in names}


def prune_layerwise(
    work: Plan,
    make_statistic: type[InputNorms] | type[Hessian],
    decide: Decide,
    state: str | Path | None,
    facts: Mapping[str, object],
    progress: Progress,
    begin: float,
) -> list[PrunedLayer]:
    """Prunes, from the first decoder layer to the last that has a target.

    Args:
        work: What is to be pruned.
        make_statistic: What `decide` wants to know of a layer's inputs.
        decide: See `Decide`.
        state: Folder to keep finished layers in, or None.
        facts: All arguments that the result depends on; JSON.
        progress: Told from `begin` to 1.
        begin: Share of the whole run that is done.

    Returns:
        A row for each target.

    Raises:
        ValueError: The state is another run's, or a statistic can not be used; the model is then
            as it was.
    """
    kept = State(state, _run_digest(work, facts)) if state is not None else None
    rows: dict[str, PrunedLayer] = {}
    # Twice through each layer, but for those without a target and the last.
    units = (work.last + len(work.targets)) * len(work.windows)
    tick = progress.span(begin, 1.0, units)
    dense: dict[str, Tensor] = {}
    with evaluating(work.model), scratch(work.offload) as make:
        try:
            activations = Activations(work.model, work.layers, work.windows, make)
            for index in range(work.last + 1):
                modules = work.targets.get(index, {})
                pruned = _pruned(work, index, activations, make_statistic, decide, kept, tick)
                for name, module in modules.items():
                    weight = stored_weight(module)
                    dense[name] = make(weight.shape, weight).copy_(weight)
                    after = pruned.pop(name).to(weight.device)
                    rows[name] = pruned_layer(name, masked_weight(module), after)
                    weight.copy_(after)
                if index < work.last:
                    activations.run(index, keep=True, tick=tick)
        except BaseException:
            for name, weight in dense.items():
                stored_weight(work.model.get_submodule(name)).copy_(weight)
            raise
    return list(rows.values())


def _pruned(
    work: Plan,
    index: int,
    activations: Activations,
    make_statistic: type[InputNorms] | type[Hessian],
    decide: Decide,
    kept: State | None,
    tick: Callable[[], None],
) -> dict[str, Tensor]:
    """Name -> pruned weight of one decoder layer, in its dtype; the layer itself is left dense."""
    modules, layer = work.targets.get(index, {}), work.layers[index]
    if not modules:
        return {}
    like = {name: stored_weight(module) for name, module in modules.items()}
    found = kept.load(index, layer, like) if kept is not None else None
    if found is not None:
        for _ in work.windows:
            tick()
        return found
    with InputStatistics(modules, make_statistic, stop=True) as statistics:
        activations.run(index, keep=False, tick=tick, after_window=statistics.next_window)
    pruned = {}
    groups = statistics.groups()
    while groups:
        # Popped, so that a Hessian is freed when the last of its layers is done.
        statistic, names = groups.pop(0)
        for name in names:
            weight = decide(name, modules[name], statistic).to(like[name].dtype)
            if not torch.isfinite(weight).all():
                raise ValueError(
                    f"prune: {name} must have finite weights after pruning, got NaN or infinite "
                    f"in {weight.dtype}"
                )
            pruned[name] = weight
    if kept is not None:
        kept.save(index, layer, pruned)
    return pruned


def _run_digest(work: Plan, facts: Mapping[str, object]) -> str:
    names = sorted(name for targets in work.targets.values() for name in targets)
    outside = (
        (name, tensor)
        for name, tensor in work.model.state_dict().items()
        if not name.startswith(f"{work.prefix}.")
    )
    windows = [("windows", work.windows)]
    return digest([*outside, *windows], targets=names, **facts)
