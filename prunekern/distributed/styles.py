"""ColwiseParallel and RowwiseParallel of torch, which take SparseLinear layers, too."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor import parallel as torch_parallel

from prunekern.distributed.layers import shard_linear
from prunekern.distributed.shards import COLUMNS, ROWS
from prunekern.nn import SparseLinear


class ColwiseParallel(torch_parallel.ColwiseParallel):
    """y[..., part of N] = x[..., K] W[part of N, K]^T: outputs are shared out.

    For `torch.distributed.tensor.parallel.parallelize_module`, with torch's own arguments; modules
    that are not sparse are torch's to cut.

    Raises:
        ValueError: When applied: N leaves a process nothing.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, SparseLinear):
            return super()._apply(module, device_mesh)
        shard_linear(module, device_mesh, ROWS, type(self).__name__)
        return _with_layouts(module, device_mesh, self, Replicate())


class RowwiseParallel(torch_parallel.RowwiseParallel):
    """y[..., N] = sum over parts of x[..., part of K] W[N, part of K]^T: inputs are shared out.

    See `ColwiseParallel`. Of 2:4 every part but the last has a multiple of 8 inputs.

    Raises:
        ValueError: When applied: K leaves a process nothing, or cuts two groups of 2:4 apart that
            share a byte of metadata.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, SparseLinear):
            return super()._apply(module, device_mesh)
        shard_linear(module, device_mesh, COLUMNS, type(self).__name__)
        return _with_layouts(module, device_mesh, self, Shard(-1))


def for_sparse(style: torch_parallel.ParallelStyle) -> torch_parallel.ParallelStyle:
    """The style of ours with the arguments of one of torch's; any other as it is."""
    ours = {
        torch_parallel.ColwiseParallel: ColwiseParallel,
        torch_parallel.RowwiseParallel: RowwiseParallel,
    }.get(type(style))
    if ours is None:
        return style
    return ours(
        input_layouts=style.input_layouts[0],
        output_layouts=style.output_layouts[0],
        use_local_output=style.use_local_output,
    )


def _with_layouts(
    module: nn.Module,
    mesh: DeviceMesh,
    style: torch_parallel.ColwiseParallel | torch_parallel.RowwiseParallel,
    wanted: Placement,
) -> nn.Module:
    """Brings x to the layout that the part needs and y to the one that is asked for."""
    given, result = style.input_layouts, style.output_layouts

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, given, run_check=False)
        return (x.redistribute(mesh, [wanted]), *rest)

    def after(module: nn.Module, inputs: tuple[Tensor, ...], y: DTensor) -> Tensor:
        y = y.redistribute(mesh, result)
        return y.to_local() if style.use_local_output else y

    module._layout_hooks = (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
    )
    return module
