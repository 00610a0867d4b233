"""SparseLinear: an nn.Linear whose weight is compressed, in the order that its kernel reads."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from prunekern import formats
from prunekern.formats import Canonical
from prunekern.layouts import check_layout, pack, unpack
from prunekern.ops import check_runs, default_layout, linear_with_grad, op_for
from prunekern.pruning.masks import nm_mask


class SparseLinear(nn.Module):
    """y[..., N] = x[..., K] W[N, K]^T + bias[N], W pruned and compressed.

    In memory there is only the packed weight; a state dict and a pickle hold canonical tensors, so
    that they load on any machine. `.to(...)` packs anew for the new dtype or device, where another
    kernel may read another order. Differentiable in x and bias; the weight is fixed.

    Attributes:
        in_features: K.
        out_features: N.
        kernel: One of `prunekern.formats.FORMATS`.
        layout: The variant that runs, e.g. "avx2".
        nnz: How many values are stored, for 2:4 two of every four; of int4, pairs of them.
        group_size: Inputs that share a scale, for int8 and int4; else None.
        bias: Parameter [N] or None.
        values, meta, ...: The canonical tensors of the format, unpacked at each access.
    """

    def __init__(
        self, canonical: Canonical, bias: Tensor | None = None, layout: str | None = None
    ) -> None:
        """Packs `canonical` for this machine.

        Args:
            canonical: The weight; validated by whoever got it from outside.
            bias: [N] of the weight's dtype, or None.
            layout: A variant of `prunekern.layouts.LAYOUTS`; the best that runs here by default.

        Raises:
            ValueError: The layout does not exist, does not run here or does not take the dtype.
        """
        super().__init__()
        self.out_features, self.in_features = canonical.shape
        self.kernel = canonical.kernel
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self.register_parameter("bias", bias)
        self._set(canonical, layout)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        kernel: str = "2:4",
        layout: str | None = None,
        prune: bool = True,
        group_size: int | None = None,
    ) -> SparseLinear:
        """The compressed form of a dense layer.

        Args:
            linear: Its weight's zeros are what is left out; -0.0 counts as one.
            kernel: "2:4", "2:4-int8", "2:4-int4", "csr" or "bitmask".
            layout: See `__init__`.
            prune: For 2:4, whether a weight that breaks the pattern is pruned to it by magnitude.
            group_size: For int8 and int4, see `prunekern.compress`.

        Raises:
            ValueError: Wrong kernel, layout, dtype, shape or group size, or a weight that is not
                2:4 where `prune` is False.
        """
        formats.check_format(kernel, "from_linear")
        formats.check_weight(linear.weight, "from_linear")
        weight = linear.weight.detach()
        if prune and formats.FORMATS[kernel].pattern == "2:4":
            weight = prune_to_24(weight)
        # Adding +0.0 turns -0.0 into it: products with a mask are full of them.
        canonical = formats.compress(weight + 0.0, kernel, group_size)
        return cls(canonical, linear.bias, layout).train(linear.training)

    @classmethod
    def from_canonical(
        cls, canonical: Canonical, bias: Tensor | None = None, layout: str | None = None
    ) -> SparseLinear:
        """From canonical tensors of any origin, validated first.

        Raises:
            ValueError: What is wrong with them, or with the layout.
        """
        formats.validate(canonical)
        return cls(canonical, bias, layout)

    def to_linear(self) -> nn.Linear:
        """The dense layer with the pruned weight, exactly; of int8 and int4 the rounded one."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight)
        linear.bias = self.bias
        return linear.train(self.training)

    def canonical(self) -> Canonical:
        """The weight in its canonical format."""
        return self._unpacked()

    @property
    def weight(self) -> Tensor:
        """The dense weight [N, K], made anew at each access."""
        return formats.decompress(self.canonical())

    @property
    def dtype(self) -> torch.dtype:
        """Of the kept weights or their scales; x must have it."""
        return self._packed.dtype

    @property
    def layout(self) -> str:
        """The variant that runs."""
        return self._packed.layout

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight in memory, without bias."""
        return self._packed.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]; the op checks x and says what is wrong with it."""
        # _parameters and not self.bias: nn.Module.__getattr__ would cost as much as a small layer.
        return self.product(x, self._parameters["bias"])

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[..., K] -> x W^T + bias [..., N], whatever the layer's own bias is."""
        if torch.is_grad_enabled() and (
            x.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return linear_with_grad(x, bias, self._op, self._packed)
        return self._op(x, *self._tensors, bias, self.out_features, self.in_features)

    def extra_repr(self) -> str:
        """For print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, kernel={self.kernel!r}, layout={self.layout!r}"
        )

    # ------------------------------------------------------------------ packing, moving, saving

    def __getattr__(self, name: str):
        # By the names that a state dict has: torch.distributed.checkpoint asks for each of them.
        if "_packed" in self.__dict__ and name in formats.tensor_names(self.kernel):
            return getattr(self._unpacked(), name)
        return super().__getattr__(name)

    def _unpacked(self) -> Canonical:
        return unpack(self._packed)

    def _set(self, canonical: Canonical, layout: str | None) -> None:
        if layout is None:
            layout = default_layout(canonical.stem, canonical.device, canonical.dtype)
        check_layout(canonical.stem, layout, canonical.dtype, "SparseLinear")
        check_runs(canonical.stem, layout, canonical.device, canonical.dtype, "SparseLinear")
        op = op_for(canonical.stem, layout, "SparseLinear")
        packed = pack(canonical, layout)
        self.nnz, self.group_size = canonical.values.numel(), canonical.group_size
        self._packed, self._op, self._tensors = packed, op, packed.tensors
        # As buffers they count in get_memory_footprint() and the like; files hold canonical
        # tensors. DDP sends buffers: see `sendable`.
        for i, tensor in enumerate(packed.tensors):
            self.register_buffer(f"packed_{i}", sendable(tensor), persistent=False)

    def _apply(self, fn, recurse=True):
        buffers, self._buffers = self._buffers, {}
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers = buffers
        old = self._packed.floats
        probe = fn(old[:0].clone())
        if probe.device.type == "meta":
            raise ValueError("SparseLinear: the device must hold data, got meta")
        if (probe.dtype, probe.device) != (old.dtype, old.device):
            self._set(self._unpacked().map(fn), None)
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.canonical().tensors().items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        names = formats.tensor_names(self.kernel)
        found = {n: state_dict[prefix + n] for n in names if prefix + n in state_dict}
        rest = {
            k: v
            for k, v in state_dict.items()
            if k.startswith(prefix) and k[len(prefix) :] not in names
        }
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if len(found) < len(names):
            missing_keys.extend(prefix + n for n in names if n not in found)
            return
        shape = (self.out_features, self.in_features)
        try:
            canonical = formats.from_tensors(self.kernel, found, shape)
            formats.validate(canonical, prefix.rstrip("."))
        except ValueError as error:
            error_msgs.append(str(error))
            return
        self._set(canonical.to(self._packed.tensors[0].device, self.dtype), self.layout)

    def __getstate__(self):
        state = self.__dict__.copy()
        for name in ("_packed", "_op", "_tensors"):
            del state[name]
        state["_buffers"] = {}
        state["_non_persistent_buffers_set"] = set()
        canonical = self.canonical()
        # torch's pickle of a lone tensor (not torch.save's) knows no uint16: same bits as int16.
        tensors = {
            name: t.view(torch.int16) if t.dtype == torch.uint16 else t
            for name, t in canonical.tensors().items()
        }
        state["_pickled"] = (self.kernel, tensors, canonical.shape, self.layout)
        return state

    def __setstate__(self, state):
        state = dict(state)
        kernel, tensors, shape, layout = state.pop("_pickled")
        super().__setstate__(state)
        tensors = {
            name: t.view(torch.uint16) if t.dtype == torch.int16 else t
            for name, t in tensors.items()
        }
        canonical = formats.from_tensors(kernel, tensors, shape)
        formats.validate(canonical)
        try:
            self._set(canonical, layout)
        except ValueError:  # pickled on a machine with other instruction sets
            self._set(canonical, None)


def sendable(t: Tensor) -> Tensor:
    """A uint16 tensor as bytes, which DDP can broadcast where no backend knows 16-bit integers."""
    return t.view(torch.uint8) if t.dtype == torch.uint16 else t


def prune_to_24(weight: Tensor) -> Tensor:
    """The weight, by magnitude 2:4 where it is not yet."""
    if not count_broken_groups(weight):
        return weight
    # masked_fill, not a product with the mask, which would leave -0.0 behind.
    return weight.masked_fill(~nm_mask(weight.float().abs(), 2, 4), 0.0)


def count_broken_groups(weight: Tensor) -> int:
    """Groups of four inputs with more than two non-zeros: 0 if the weight is 2:4."""
    groups = formats.groups_of_four(weight.detach())
    return int(((groups != 0).sum(-1) > 2).sum())


def move_hooks(source: nn.Module, target: nn.Module) -> None:
    """Gives `target` the hooks that were registered on `source`."""
    for hooks in (
        "_forward_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_backward_hooks",
        "_backward_pre_hooks",
    ):
        getattr(target, hooks).update(getattr(source, hooks))


def release_memory() -> None:
    """Gives freed blocks back to the system: glibc keeps those of up to 32 MB for itself."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass  # another C library: nothing to ask for
