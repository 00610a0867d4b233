"""Sparse layers over several processes, by torch's own engines.

    mesh = init_device_mesh("cuda", (2, 4), mesh_dim_names=("dp", "tp"))
    prunekern.replace_linears(model, "2:4", targets="all-linear", trainable=True)
    prunekern.distributed.parallelize(model, mesh["tp"])   # each process a part of each layer
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh["dp"])                 # torch.distributed.fsdp
    torch.distributed.checkpoint.save(model.state_dict(), checkpoint_id=folder)

DDP and FSDP2 need nothing from here: the values of a `TrainableSparseLinear` are parameters, and so
is what `requires_grad_(False)` makes of them, which FSDP2 shares out without training it. The
packed weight of a plain SparseLinear is buffers, which both leave whole on each process; DDP sends
them at each step unless it is told broadcast_buffers=False. Serving over machines is for engines
that do nothing else; there is none here.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import parallel as torch_parallel

from prunekern.distributed.clip import clip_grad_norm_
from prunekern.distributed.layers import check_shardable, gather_linear, is_part
from prunekern.distributed.shards import COLUMNS, ROWS, check_cut
from prunekern.distributed.styles import ColwiseParallel, RowwiseParallel, for_sparse
from prunekern.nn import SparseLinear

__all__ = ["ColwiseParallel", "RowwiseParallel", "clip_grad_norm_", "gather", "parallelize"]

_WHO = "parallelize"
# As transformers names them in a config's base_model_tp_plan.
_STYLES = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


def parallelize(
    model: nn.Module,
    mesh: DeviceMesh,
    plan: Mapping[str, torch_parallel.ParallelStyle] | None = None,
) -> list[str]:
    """Cuts layers over the processes of a mesh, in place: tensor parallelism.

    Outputs of column parallel layers and inputs of row parallel ones are shared out as DTensor's
    `Shard` does it, sparse and dense layers alike. Every process must hold the same model; each
    keeps its part, packed for its own kernel. Every check is made before the first layer is cut.
    Make optimizers afterwards.

    Args:
        model: Any module.
        mesh: Of one dimension.
        plan: Name -> style as of `torch.distributed.tensor.parallel.parallelize_module`, "*" for
            any part of a name between dots; torch's styles or those of this package. Where left
            out, the plan of the model's config, `base_model_tp_plan`, as Llama and its kind have.

    Returns:
        Names of the layers that were cut.

    Raises:
        ValueError: No plan, a name that matches nothing, a layer whose size leaves a process
            nothing, cuts a group of 2:4 or a head of attention, or that is trained as csr or
            bitmask. The model is then as it was.
    """
    chosen = _matched(model, _plan_of(model) if plan is None else plan)
    for name, (module, style) in chosen.items():
        _check(model, name, module, style, mesh)
    for module, style in chosen.values():
        torch_parallel.parallelize_module(module, mesh, style)
    return list(chosen)


def gather(model: nn.Module) -> list[str]:
    """Gives every process the whole of each sparse layer that was cut, in place: to save it in one
    file, or to restore dense layers. All processes must call it.

    Returns:
        Names of the layers.
    """
    names = [name for name, module in model.named_modules() if is_part(module)]
    for name in names:
        module = model.get_submodule(name)
        gather_linear(module)
        for hook in module._layout_hooks:
            hook.remove()
    return names


def _plan_of(model: nn.Module) -> dict[str, torch_parallel.ParallelStyle]:
    plan = getattr(getattr(model, "config", None), "base_model_tp_plan", None)
    if not plan:
        raise ValueError(
            f"{_WHO}: plan must be given for {type(model).__name__}, whose config has no "
            "base_model_tp_plan"
        )
    prefix = getattr(model, "base_model_prefix", "")
    prefix = f"{prefix}." if prefix and hasattr(model, prefix) else ""
    unknown = {style for style in plan.values() if style not in _STYLES}
    if unknown:
        raise ValueError(
            f"{_WHO}: plan must be given where the config's has other styles than "
            f"{', '.join(_STYLES)}, got {', '.join(sorted(unknown))}"
        )
    return {prefix + name: _STYLES[style]() for name, style in plan.items()}


def _matched(
    model: nn.Module, plan: Mapping[str, torch_parallel.ParallelStyle]
) -> dict[str, tuple[nn.Module, torch_parallel.ParallelStyle]]:
    chosen = {}
    for pattern, style in plan.items():
        if not isinstance(style, torch_parallel.ParallelStyle):
            raise ValueError(f"{_WHO}: plan must hold parallel styles, got {style!r}")
        wanted = pattern.split(".")
        hits = [
            (name, module)
            for name, module in model.named_modules()
            if len(parts := name.split(".")) == len(wanted) and all(map(fnmatch, parts, wanted))
        ]
        if not hits:
            raise ValueError(f"{_WHO}: plan must name modules of the model, got {pattern!r}")
        chosen |= {name: (module, for_sparse(style)) for name, module in hits}
    return chosen


def _check(
    model: nn.Module,
    name: str,
    module: nn.Module,
    style: torch_parallel.ParallelStyle,
    mesh: DeviceMesh,
) -> None:
    who = f"{_WHO}: {name}"
    dims = {ColwiseParallel: ROWS, RowwiseParallel: COLUMNS}
    dim = dims.get(type(style))
    if dim is None or not isinstance(module, nn.Linear | SparseLinear):
        return  # torch's to judge
    if isinstance(module, SparseLinear):
        check_shardable(module, mesh, dim, who)
    shape = (module.out_features, module.in_features)
    check_cut(who, "dense", shape, dim, mesh.size())
    head = getattr(model.get_submodule(name.rpartition(".")[0]), "head_dim", None)
    chunk = -(-shape[dim] // mesh.size())
    if head is not None and (chunk % head or shape[dim] % head):
        raise ValueError(
            f"{who}: each of {mesh.size()} processes must get whole heads of {head}, got "
            f"{shape[dim]} in chunks of {chunk}; take a number that divides the heads"
        )
