"""SparseLinear layers of which each process has a part.

Made in place by `shard_linear`, which gives a layer another class, as fully_shard does: names,
hooks and whoever holds the module stay. Each process packs its part for its own kernel.

State dicts hold the whole weight under the names it always has: of 2:4 as DTensors, which
torch.distributed.checkpoint writes and reads in parts, for any other number of processes; of csr
and bitmask, whose parts have their own numbers of values, gathered on every process.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from prunekern import formats, ops
from prunekern.distributed.shards import ROWS, check_cut, gather_parts, part_of
from prunekern.formats import Canonical
from prunekern.nn import SparseLinear
from prunekern.training.layer import TrainableSparseLinear


def shard_linear(module: SparseLinear, mesh: DeviceMesh, dim: int, who: str) -> None:
    """Leaves this process its rows (0) or columns (1) of a sparse layer, in place.

    Every process must hold the same whole weight; nothing is sent.

    Raises:
        ValueError: The weight can not be cut so, or is cut already; nothing has changed then.
    """
    check_shardable(module, mesh, dim, who)
    whole, bias = module.canonical(), module.bias
    trained = _is_trained(module)
    module.__class__ = _PartLinear if trained is None else _TrainablePart
    module._mesh, module._dim = mesh, dim
    module._set_part(part_of(whole, dim, mesh))
    if trained is not None:
        module.values.requires_grad_(trained)
    if bias is not None:
        placement = Shard(0) if dim == ROWS else Replicate()
        local = distribute_tensor(bias.detach(), mesh, [placement], src_data_rank=None)
        module.bias = nn.Parameter(local, requires_grad=bias.requires_grad)


def check_shardable(module: SparseLinear, mesh: DeviceMesh, dim: int, who: str) -> None:
    """Raises ValueError unless `shard_linear` would cut the layer."""
    if mesh.ndim != 1:
        raise ValueError(f'{who}: mesh must have one dimension, got {mesh}; pass mesh["tp"]')
    if isinstance(module, _Part):
        raise ValueError(f"{who}: layer must be whole, got one that is cut over {module._mesh}")
    if formats.FORMATS[module.kernel].bits:
        raise ValueError(
            f"{who}: kernel must be 2:4, csr or bitmask to be cut, got {module.kernel}"
        )
    if _is_trained(module) is not None and module.kernel != "2:4":
        raise ValueError(
            f"{who}: a layer that is trained must be 2:4, got {module.kernel}, whose parts differ "
            "in size; DDP and FSDP2 take it"
        )
    check_cut(who, module.kernel, (module.out_features, module.in_features), dim, mesh.size())


def is_part(module: nn.Module) -> bool:
    """Whether a module is a sparse layer that is cut over processes."""
    return isinstance(module, _Part)


def gather_linear(module: SparseLinear) -> None:
    """Gives every process the whole of a cut layer again, in place; all must call it."""
    whole = gather_parts(module.part(), module.shape, module._dim, module._mesh)
    bias, trained = module.bias, _is_trained(module)
    layout = module.layout if trained is None else module._chosen_layout
    module.__class__ = SparseLinear if trained is None else TrainableSparseLinear
    module._set(whole, layout)
    if trained is not None:
        module.values.requires_grad_(trained)
    if bias is not None:
        module.bias = nn.Parameter(bias.full_tensor().detach(), requires_grad=bias.requires_grad)


def _is_trained(module: SparseLinear) -> bool | None:
    """Whether its values require gradients; None where they are no parameter at all."""
    return module.values.requires_grad if isinstance(module, TrainableSparseLinear) else None


class _Part:
    """What the two classes share: x and y as DTensors around a product of local tensors."""

    _mesh: DeviceMesh
    _dim: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole weight."""
        return self.out_features, self.in_features

    def forward(self, x: DTensor) -> DTensor:
        """Whole x to y cut by its last dimension, or x cut so to a sum of parts."""
        bias = self.bias
        if self._dim == ROWS:
            bias = None if bias is None else bias.to_local()
            # Each process makes the part of dL/dx that its outputs say.
            y = self._product(x.to_local(grad_placements=[Partial()]), bias)
            size = torch.Size((*y.shape[:-1], self.out_features))
            stride = torch.empty(size, device="meta").stride()
            return DTensor.from_local(
                y, self._mesh, [Shard(-1)], run_check=False, shape=size, stride=stride
            )
        if bias is not None:
            bias = bias.to_local()
            # Added once in the sum: by the first process. All of them see its gradient.
            if self._mesh.get_local_rank() != 0:
                bias = bias - bias.detach()
        y = self._product(x.to_local(), bias)
        return DTensor.from_local(y, self._mesh, [Partial()], run_check=False)

    def canonical(self) -> Canonical:
        """ValueError: a part must not be taken for the weight."""
        raise ValueError(
            f"SparseLinear: the weight must be whole, got a part of {list(self.shape)} over "
            f"{self._mesh.size()} processes; call prunekern.distributed.gather(model) on all"
        )

    def extra_repr(self) -> str:
        """For print(model)."""
        cut = ("out_features", "in_features")[self._dim]
        return f"{super().extra_repr()}, {cut} over {self._mesh.size()} processes"

    def _distributed(self, part: Canonical) -> dict[str, Tensor]:
        """The whole 2:4 weight as DTensors."""
        wanted = formats.tensor_specs(part.kernel, self.shape, part.dtype)
        result = {}
        for name, local in part.tensors().items():
            size = torch.Size(wanted[name][1])
            result[name] = DTensor.from_local(
                local, self._mesh, [Shard(self._dim)], run_check=False, shape=size,
                stride=(size[1], 1),
            )  # fmt: skip
        return result

    def _part_from(self, tensors: dict[str, Tensor], name: str) -> Canonical:
        """This process's part of canonical tensors, whole or DTensors; validated."""
        if isinstance(tensors["values"], DTensor):
            local = {
                key: t.redistribute(self._mesh, [Shard(self._dim)]).to_local()
                for key, t in tensors.items()
            }
            part = formats.from_tensors(self.kernel, local, self.part().shape)
            formats.validate(part, name)
            return part
        whole = formats.from_tensors(self.kernel, tensors, self.shape)
        formats.validate(whole, name)
        return part_of(whole, self._dim, self._mesh)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        names = formats.tensor_names(self.kernel)
        found = {n: state_dict[prefix + n] for n in names if prefix + n in state_dict}
        missing_keys.extend(prefix + n for n in names if n not in found)
        bias = state_dict.get(prefix + "bias")
        if self.bias is not None:
            if bias is None:
                missing_keys.append(prefix + "bias")
            else:
                if not isinstance(bias, DTensor):
                    bias = distribute_tensor(
                        bias, self._mesh, self.bias.placements, src_data_rank=None
                    )
                with torch.no_grad():
                    self.bias.copy_(bias)
        known = {*names, *(["bias"] if self.bias is not None else [])}
        unexpected_keys.extend(
            k for k in state_dict if k.startswith(prefix) and k[len(prefix) :] not in known
        )
        if len(found) < len(names):
            return
        try:
            self._take(self._part_from(found, prefix.rstrip(".") or "SparseLinear"))
        except ValueError as error:
            error_msgs.append(str(error))


class _PartLinear(_Part, SparseLinear):
    """A part of a layer whose weight is fixed, packed."""

    def part(self) -> Canonical:
        """This process's part."""
        return self._unpacked()

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return ops.linear(x, self._packed, bias)

    def _set_part(self, part: Canonical) -> None:
        self._set(part, self.layout)

    def _take(self, part: Canonical) -> None:
        self._set(part.to(self._packed.tensors[0].device, self.dtype), self.layout)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)
        part = self.part()
        if self.kernel == "2:4":
            tensors = self._distributed(part)
        else:
            tensors = gather_parts(part, self.shape, self._dim, self._mesh).tensors()
        for name, tensor in tensors.items():
            destination[prefix + name] = tensor


class _TrainablePart(_Part, TrainableSparseLinear):
    """A part of a 2:4 layer that is trained: values and metadata are DTensors."""

    _part_shape: tuple[int, int]

    def part(self) -> Canonical:
        """This process's part; shares memory with the values."""
        tensors = {"values": self.values.detach().to_local(), "meta": self.meta.to_local()}
        return formats.from_tensors(self.kernel, tensors, self._part_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of this process's part."""
        return formats.nbytes(self.part())

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        values, meta = self.values.to_local(), self.meta.to_local()
        return self._multiply(x, values, [meta], bias, self._part_shape)

    def _set_part(self, part: Canonical) -> None:
        self._part_shape = part.shape
        tensors = self._distributed(part)
        self.register_buffer("meta", tensors["meta"])
        self.values = nn.Parameter(tensors["values"])
        self._find_transposable(part)

    def _take(self, part: Canonical) -> None:
        with torch.no_grad():
            self.values.to_local().copy_(part.values)
            self.meta.to_local().copy_(part.meta)
        self._find_transposable(part)
