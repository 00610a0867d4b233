"""replace_linears and restore_linears: swap the Linear layers of a model, all or nothing."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunekern import formats
from prunekern.fuse import FusedGroup, FusedLinear, fuse_linears, unfuse
from prunekern.layouts import check_layout, why_reference
from prunekern.nn import (
    SparseLinear,
    count_broken_groups,
    move_hooks,
    prune_to_24,
    release_memory,
)
from prunekern.ops import check_runs, facts_of
from prunekern.pruning.torch_masks import fold_masks, masked_weight
from prunekern.targets import DEFAULT_TARGETS, is_linear, match_modules
from prunekern.tied import forget_tie, tied_head
from prunekern.timing import check_tokens, fastest_storage

AUTO = "auto"


@dataclass(frozen=True)
class ReplacedLayer:
    """What happened to one layer.

    Attributes:
        name: In the model.
        shape: (out_features, in_features).
        kernel: The format, or "dense".
        layout: The variant that runs, or "".
        bytes_before: Of the weight; 0 where the input embedding has it and keeps it.
        bytes_after: Of the weight, padding included.
        energy_kept: Share of the sum of squares that pruning left.
        rounding: Root of the share that rounding to int8 or int4 changed of what is kept.
        reason: Why it was left dense, or "".
        note: Why no kernel of ours runs it, only the slow reference, or "".
    """

    name: str
    shape: tuple[int, int]
    kernel: str
    layout: str
    bytes_before: int
    bytes_after: int
    energy_kept: float = 1.0
    rounding: float = 0.0
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class ReplaceReport:
    """What was swapped, layer by layer.

    Attributes:
        layers: In the model's order.
        groups: With `fuse`, projections of one input: fused, or why not.
    """

    layers: tuple[ReplacedLayer, ...]
    groups: tuple[FusedGroup, ...] = ()

    @property
    def replaced(self) -> tuple[ReplacedLayer, ...]:
        """The layers that were swapped."""
        return tuple(layer for layer in self.layers if not layer.reason)

    @property
    def left_dense(self) -> tuple[ReplacedLayer, ...]:
        """The layers that were not, each with its reason."""
        return tuple(layer for layer in self.layers if layer.reason)

    @property
    def bytes_before(self) -> int:
        """Bytes of the weights of all matched layers before."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """And after."""
        return sum(layer.bytes_after for layer in self.layers)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [
            f"swapped {len(self.replaced)} of {len(self.layers)} layers, "
            f"{self.bytes_before / 1e6:.1f} MB -> {self.bytes_after / 1e6:.1f} MB"
        ]
        for layer in self.layers:
            lines.append(
                f"  {layer.name:<{width}}  {list(layer.shape)!s:<14}  "
                + (
                    f"left dense: {layer.reason}"
                    if layer.reason
                    else f"{layer.kernel}/{layer.layout}  {layer.bytes_before:,} -> "
                    f"{layer.bytes_after:,} bytes  energy kept {layer.energy_kept:6.1%}"
                )
                + (f"  rounding {layer.rounding:.2%}" if layer.rounding else "")
                + (f"  ({layer.note})" if layer.note else "")
            )
        lines += _fused_lines(self.groups)
        return "\n".join(lines)


def replace_linears(
    model: nn.Module,
    kernel: str = "2:4",
    targets: str | Sequence[str] = DEFAULT_TARGETS,
    layout: str | None = None,
    prune: bool = True,
    group_size: int | None = None,
    fuse: bool = False,
    tokens: int = 1,
    trainable: bool = False,
) -> ReplaceReport:
    """Swaps Linear layers for SparseLinear ones, in place.

    Every check is made before the first layer is touched. Then layer after layer is compressed and
    its dense weight freed, so that memory never holds more than one layer twice. Masks of
    torch.nn.utils.prune are made permanent: what they prune is left out.

    Args:
        model: Any module; Hugging Face models of the Llama kind are what it is made for.
        kernel: "2:4", "2:4-int8", "2:4-int4", "csr" or "bitmask"; or "auto": for each weight, as
            it is, the one that is timed to be fastest on this machine, and dense where that is as
            fast; prunes and rounds nothing.
        targets: See `prunekern.targets.match_modules`. A head that is named though it shares its
            weight with the input embedding gets a weight of its own, the embedding stays dense.
        layout: A variant of the format instead of the best that runs here.
        prune: For 2:4, whether a weight that breaks the pattern is pruned to it by magnitude,
            with one warning for all, or refused.
        trainable: Whether the kept weights stay parameters: see `prunekern.training`. Make
            optimizers afterwards.
        group_size: For int8 and int4, inputs that share a scale; see `prunekern.compress`.
        fuse: Whether q, k, v and gate, up become one packed weight and one op each; see
            `fuse_linears`. What can not be is left apart with the reason in the report.
        tokens: For "auto": at once, through a layer.

    Returns:
        What was done, layer by layer, and why a layer was left dense.

    Raises:
        ValueError: An unknown kernel or layout, no matching layer, a layer that was swapped
            before, weights of another dtype, on the meta device, NaN or infinite, or not 2:4 where
            `prune` is False, or a bad group size. The model is then as it was.
    """
    _check_kernel(kernel, layout, group_size, tokens)
    kind = _layer_class(trainable, kernel)
    accept = _linear_or_sparse
    matched = match_modules(model, targets, "replace_linears", accept)
    head = tied_head(model)
    reasons = {
        name: "" if module is head else _reason_to_leave(model, module)
        for name, module in matched.items()
    }
    for name, module in matched.items():
        if not reasons[name]:
            _check(name, module, kernel, layout, prune)
    kernels = dict.fromkeys(matched, kernel)
    if kernel == AUTO:
        for name, module in matched.items():
            if not reasons[name]:
                kernels[name], reasons[name] = fastest_storage(masked_weight(module), tokens)

    swapped: dict[int, tuple[SparseLinear, ReplacedLayer]] = {}
    layers = []
    for name in list(matched):
        linear = matched.pop(name)
        if reasons[name]:
            size = linear.weight.numel() * linear.weight.element_size()
            shape = tuple(linear.weight.shape)
            layers.append(ReplacedLayer(name, shape, "dense", "", size, size, reason=reasons[name]))
            continue
        if id(linear) not in swapped:
            own = kernels[name]
            swapped[id(linear)] = _swap(name, linear, kind, own, layout, prune, group_size)
        sparse, row = swapped[id(linear)]
        set_module(model, name, sparse)
        if linear is head:
            row = replace(row, bytes_before=0)
            forget_tie(model)
        layers.append(row if row.name == name else _shared(row, name))
        if linear in matched.values():
            continue  # under a second name: its id must not be given to another layer yet
        del linear
    release_memory()
    if swapped:
        _attach_quantizer(model)
    groups = fuse_linears(model) if fuse and swapped else ()
    report = ReplaceReport(tuple(_as_fused(model, layers)), groups)
    _warn(report, kernel)
    return report


def restore_linears(model: nn.Module) -> ReplaceReport:
    """Swaps every SparseLinear of a model back to nn.Linear with the pruned weight, exactly.

    Returns:
        What was done, layer by layer.

    Raises:
        ValueError: The model has none.
    """
    names = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, SparseLinear)
    ]
    if not names:
        raise ValueError(
            "restore_linears: model must have SparseLinear layers, got none; see replace_linears"
        )
    layers = []
    for name, sparse, linear in swap_modules(model, names, lambda sparse: sparse.to_linear()):
        size = linear.weight.numel() * linear.weight.element_size()
        shape = tuple(linear.weight.shape)
        layers.append(ReplacedLayer(name, shape, "dense", "", sparse.nbytes, size))
    unfuse(model)
    _forget_quantizer(model)
    return ReplaceReport(tuple(layers))


def swap_modules(
    model: nn.Module, names: Sequence[str], make: Callable[[nn.Module], nn.Module]
) -> list[tuple[str, nn.Module, nn.Module]]:
    """Puts `make(module)` in the place of each module of these names, hooks included.

    Returns:
        (name, old, new) of each; a module under two names is made once.
    """
    made: dict[nn.Module, nn.Module] = {}
    swapped = []
    for name in names:
        old = model.get_submodule(name)
        if old not in made:
            made[old] = make(old)
            move_hooks(old, made[old])
        set_module(model, name, made[old])
        swapped.append((name, old, made[old]))
    return swapped


def _linear_or_sparse(module: nn.Module) -> bool:
    return is_linear(module) or isinstance(module, SparseLinear)


def _reason_to_leave(model: nn.Module, module: nn.Module) -> str:
    """Why a matched layer stays dense, or ""."""
    if isinstance(module, SparseLinear):
        return ""  # an error, see _check
    if type(module) is not nn.Linear:
        return f"{type(module).__name__} may compute more than nn.Linear does"
    if hasattr(module, "_hf_hook"):
        return "accelerate moves its weight between devices"
    for name, other in model.named_modules():
        if other is not module and getattr(other, "weight", None) is module.weight:
            return f"its weight is also that of {name}"
    return ""


def _check_kernel(kernel: str, layout: str | None, group_size: int | None, tokens: int) -> None:
    who = "replace_linears"
    if kernel != AUTO:
        known = ", ".join([*formats.FORMATS, AUTO])
        if kernel not in formats.FORMATS:
            raise ValueError(f"{who}: kernel must be one of {known}, got {kernel!r}")
        formats.check_group_size(kernel, group_size, who)
        return
    for name, given in (("layout", layout), ("group_size", group_size)):
        if given is not None:
            raise ValueError(f"{who}: {name} must be left out for auto, got {given!r}")
    check_tokens(tokens, who)


def _check(name: str, module: nn.Module, kernel: str, layout: str | None, prune: bool) -> None:
    who = f"replace_linears: {name}"
    if isinstance(module, SparseLinear):
        raise ValueError(
            f"{who} must be dense, got a SparseLinear ({module.kernel}); "
            "call prunekern.restore_linears(model) first"
        )
    formats.check_weight(module.weight, who)
    weight = masked_weight(module)
    if not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise ValueError(f"{who} must have finite weights, got {bad} NaN or infinite")
    if module.bias is not None and module.bias.dtype != weight.dtype:
        raise ValueError(f"{who} must have a bias of {weight.dtype}, got {module.bias.dtype}")
    if layout is not None:
        stem = formats.FORMATS[kernel].stem
        check_layout(stem, layout, weight.dtype, who)
        check_runs(stem, layout, weight.device, weight.dtype, who)
    if kernel != AUTO and formats.FORMATS[kernel].pattern == "2:4" and not prune:
        broken = count_broken_groups(weight)
        if broken:
            raise ValueError(
                f"{who} must be 2:4, got {broken} groups of 4 inputs with more than 2 non-zeros; "
                'prune it first with prunekern.prune(model, pattern="2:4") or pass prune=True'
            )


def _layer_class(trainable: bool, kernel: str) -> type[SparseLinear]:
    if not trainable:
        return SparseLinear
    from prunekern.training.layer import TrainableSparseLinear, check_trainable  # need this module

    if kernel != AUTO:
        check_trainable(kernel, "replace_linears")
    return TrainableSparseLinear


def _swap(
    name: str,
    linear: nn.Linear,
    kind: type[SparseLinear],
    kernel: str,
    layout: str | None,
    prune: bool,
    group_size: int | None,
) -> tuple[SparseLinear, ReplacedLayer]:
    fold_masks(linear)
    weight = linear.weight.detach()
    before = weight.numel() * weight.element_size()
    sparse = kind.from_linear(linear, kernel, layout, prune, group_size)
    move_hooks(linear, sparse)
    energy_kept, rounding = _losses(weight, sparse.canonical())
    note = ""
    if layout is None and sparse.layout == "reference":
        note = why_reference(formats.FORMATS[kernel].stem, facts_of(weight.device, weight.dtype))
    row = ReplacedLayer(
        name,
        tuple(weight.shape),
        kernel,
        sparse.layout,
        before,
        sparse.nbytes,
        energy_kept,
        rounding,
        note=note,
    )
    return sparse, row


def _losses(weight: Tensor, c: formats.Canonical) -> tuple[float, float]:
    """ReplacedLayer's `energy_kept` and `rounding` of a weight and what was made of it."""
    if c.pattern != "2:4":
        return 1.0, 0.0
    kept = prune_to_24(weight)
    energy = kept.double().square().sum()
    energy_kept, rounding = 1.0, 0.0
    if kept is not weight:
        energy_kept = (energy / weight.double().square().sum()).item()
    if c.bits and energy:
        changed = formats.dequantize(c).double().sub_(kept).square_().sum()
        rounding = (changed / energy).sqrt().item()
    return energy_kept, rounding


def _shared(row: ReplacedLayer, name: str) -> ReplacedLayer:
    """The row of a second name for a layer that was swapped already: it weighs nothing more."""
    return replace(row, name=name, bytes_before=0, bytes_after=0)


def _as_fused(model: nn.Module, layers: Sequence[ReplacedLayer]) -> list[ReplacedLayer]:
    """Rows with the bytes that layers weigh now, where they became part of a larger weight."""
    modules = {layer.name: model.get_submodule(layer.name) for layer in layers}
    return [
        replace(layer, bytes_after=modules[layer.name].nbytes)
        if isinstance(modules[layer.name], FusedLinear)
        else layer
        for layer in layers
    ]


def _fused_lines(groups: Sequence[FusedGroup]) -> list[str]:
    """Which projections are one product, and once for each reason which are not."""
    together = Counter(group.parts for group in groups if not group.reason)
    apart = Counter((group.parts, group.reason) for group in groups if group.reason)
    lines = [f"  {count} times fused: {', '.join(parts)}" for parts, count in together.items()]
    return lines + [
        f"  {count} times left apart: {', '.join(parts)}: {reason}"
        for (parts, reason), count in apart.items()
    ]


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` in the place of the one of that name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _attach_quantizer(model: nn.Module) -> None:
    """Makes transformers' own save_pretrained write what it can read back.

    As after loading; without it config.json would name no format, and the file load as random
    weights. Looked up where prunekern.checkpoint has registered it.
    """
    tables = sys.modules.get("transformers.quantizers.auto")
    quantizer = tables and tables.AUTO_QUANTIZER_MAPPING.get("prunekern")
    if quantizer and hasattr(model, "save_pretrained") and not hasattr(model, "hf_quantizer"):
        model.hf_quantizer = quantizer.of(model)


def _forget_quantizer(model: nn.Module) -> None:
    """Makes transformers save a model that was loaded sparse as the dense one that it is now.

    Not one with layers of different sizes, which needs the quantizer to be loaded again.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", None)
    if method == "prunekern" and not getattr(model.config, "prunekern", None):
        quantizer.remove_quantization_config(model)


def _warn(report: ReplaceReport, kernel: str) -> None:
    lossy = [layer for layer in report.replaced if layer.energy_kept < 1]
    if lossy:
        lost = 1 - sum(layer.energy_kept for layer in lossy) / len(lossy)
        warnings.warn(
            f"replace_linears: pruned {len(lossy)} of {len(report.layers)} layers to {kernel} by "
            f"magnitude, {lost:.1%} of their weight energy is lost; prunekern.prune does it by "
            "choice, prune=False refuses",
            stacklevel=3,
        )
    slow = [layer for layer in report.layers if layer.note]
    if slow:
        notes = "; ".join(sorted({layer.note for layer in slow}))
        warnings.warn(
            f"replace_linears: {len(slow)} of {len(report.layers)} layers run by the plain torch "
            f"reference, slower than dense: {notes}",
            stacklevel=3,
        )
    if not report.replaced:
        reasons = "; ".join(sorted({layer.reason for layer in report.left_dense}))
        warnings.warn(f"replace_linears: every layer was left dense: {reasons}", stacklevel=3)
