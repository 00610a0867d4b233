"""TrainableSparseLinear: a SparseLinear whose kept values are a Parameter.

Values are kept in canonical order, not in that of a kernel. So the Parameter is what a state dict
and a file hold, an optimizer's moments mean the same on every machine, FSDP2 and DTensor cut it by
rows of W, and gradients need no second order. The price is packing at each call: one pass over the
kept values, see product.py.

Bytes a weight of the dense matrix, trained in float32 with Adam: values, gradient and two moments
16 dense, 8 with 2:4, and 1/8 for metadata.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekern import formats
from prunekern.formats import Canonical, Sparse24
from prunekern.layouts import check_layout
from prunekern.layouts.sparse24 import is_transposable
from prunekern.nn import SparseLinear, count_broken_groups, sendable
from prunekern.ops import check_runs, default_layout
from prunekern.pruning.masks import transposable_mask
from prunekern.training.product import trainable_linear


class TrainableSparseLinear(SparseLinear):
    """y[..., N] = x[..., K] W[N, K]^T + bias[N], trained where W keeps a weight.

    Of 2:4 two positions of every four are kept, also where a value is zero; of csr and bitmask
    those that were not zero. Nothing is packed in memory: each call packs what the values are then.
    Under autocast values stay in their dtype and products are in autocast's, as for nn.Linear.

    Attributes:
        values: Parameter, canonical: [N, 2 ceil(K/4)] for "2:4", [nnz] for others.
        meta, bitmask, col_indices, crow_indices: Buffers, the format's other canonical tensors.
        transposable: Whether W^T is 2:4, too, so that dL/dx is a product of a kernel.
    """

    def __init__(
        self, canonical: Canonical, bias: Tensor | None = None, layout: str | None = None
    ) -> None:
        """As of SparseLinear.

        Raises:
            ValueError: As of SparseLinear, or values that are whole numbers and so not trained.
        """
        check_trainable(canonical.kernel, "TrainableSparseLinear")
        self._chosen_layout = layout
        super().__init__(canonical, bias, layout)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        kernel: str = "2:4",
        layout: str | None = None,
        prune: bool = True,
        group_size: int | None = None,
    ) -> TrainableSparseLinear:
        """The trainable form of a dense layer; see `SparseLinear.from_linear`.

        A 2:4 weight whose zeros allow it is stored with positions that are 2:4 both ways.
        """
        sparse = super().from_linear(linear, kernel, layout, prune, group_size)
        if kernel == "2:4" and not sparse.transposable:
            both_ways = _both_ways(sparse.weight)
            if both_ways is not None:
                sparse._set(both_ways, layout)
        sparse.values.requires_grad_(linear.weight.requires_grad)
        return sparse

    def freeze(self) -> SparseLinear:
        """The layer for inference: packed once, not trained."""
        frozen = SparseLinear(self.canonical(), self.bias, self._chosen_layout)
        return frozen.train(self.training)

    def to_linear(self) -> nn.Linear:
        """The dense layer with the weight as it is, exactly."""
        linear = super().to_linear()
        linear.weight.requires_grad_(self.values.requires_grad)
        return linear

    def canonical(self) -> Canonical:
        """The weight in its canonical format; shares memory with the values."""
        positions = dict(zip(self._position_names, self._positions(), strict=True))
        tensors = {"values": self.values.detach(), **positions}
        return formats.from_tensors(self.kernel, tensors, (self.out_features, self.in_features))

    @property
    def dtype(self) -> torch.dtype:
        """Of the values; without autocast x must have it."""
        return self.values.dtype

    @property
    def layout(self) -> str:
        """The variant that runs without autocast."""
        stem = formats.FORMATS[self.kernel].stem
        return self._chosen_layout or default_layout(stem, self.values.device, self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of values and positions, without bias, gradient and packed copies."""
        return formats.nbytes(self.canonical())

    @property
    def nnz(self) -> int:
        """How many values there are."""
        return self.values.numel()

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        shape = (self.out_features, self.in_features)
        return self._multiply(x, self.values, self._positions(), self.bias, shape)

    def _multiply(
        self,
        x: Tensor,
        values: Tensor,
        positions: list[Tensor],
        bias: Tensor | None,
        shape: tuple[int, int],
    ) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x = x.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        elif x.dtype != values.dtype:
            raise RuntimeError(
                f"TrainableSparseLinear: x must have the dtype of values, {values.dtype}, or be "
                f"under autocast, got {x.dtype}"
            )
        layout = self._chosen_layout or ""
        return trainable_linear(
            x, values, positions, bias, self.kernel, shape, layout, self.transposable
        )

    def _positions(self) -> list[Tensor]:
        return [self._canonical_position(self._buffers[n], n) for n in self._position_names]

    def _canonical_position(self, buffer: Tensor, name: str) -> Tensor:
        if name == "col_indices" and buffer.dtype == torch.uint8:
            return buffer.view(torch.uint16)
        return buffer

    # ------------------------------------------------------------------ moving, saving
    # A SparseLinear hides what it packed. Here parameter and buffers are canonical, so that what
    # every module does is right, but for columns of uint16, which are kept as bytes: `sendable`.

    _apply = nn.Module._apply
    __setstate__ = nn.Module.__setstate__

    def __getstate__(self) -> dict:
        return self.__dict__.copy()

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)
        for name in self._position_names:
            destination[prefix + name] = self._canonical_position(destination[prefix + name], name)

    def _set(self, canonical: Canonical, layout: str | None) -> None:
        self.group_size = None
        if layout is not None:
            check_layout(canonical.stem, layout, canonical.dtype, "TrainableSparseLinear")
            check_runs(
                *(canonical.stem, layout, canonical.device, canonical.dtype),
                "TrainableSparseLinear",
            )
        self._position_names = formats.tensor_names(canonical.kernel)[1:]
        for name in self._position_names:
            self.register_buffer(name, sendable(getattr(canonical, name)))
        self.values = nn.Parameter(canonical.values)
        self._find_transposable(canonical)

    def _find_transposable(self, canonical: Canonical) -> None:
        self.transposable = isinstance(canonical, Sparse24) and is_transposable(canonical)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        names = formats.tensor_names(self.kernel)
        found = {n: state_dict[prefix + n] for n in names if prefix + n in state_dict}
        if len(found) == len(names):
            try:
                loaded = self._validated(found, prefix)
            except ValueError as error:
                error_msgs.append(str(error))
                return
            self._find_transposable(loaded)
            positions = {prefix + n: sendable(found[n]) for n in self._position_names}
            state_dict = {**state_dict, **positions}
        super(SparseLinear, self)._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _validated(self, tensors: dict[str, Tensor], prefix: str) -> Canonical:
        """Positions from outside could make a kernel read out of bounds.

        Raises:
            ValueError: What is wrong, or another number of kept values than the optimizer knows.
        """
        name = prefix.rstrip(".") or "TrainableSparseLinear"
        if tensors["values"].shape != self.values.shape:
            raise ValueError(
                f"{name}: values must have the shape {list(self.values.shape)} that is trained, "
                f"got {list(tensors['values'].shape)}; load before trainable=True"
            )
        tensors = {n: whole(t) for n, t in tensors.items()}
        shape = (self.out_features, self.in_features)
        loaded = formats.from_tensors(self.kernel, tensors, shape)
        formats.validate(loaded, name)
        return loaded


def check_trainable(kernel: str, who: str) -> None:
    """Raises ValueError unless values of the format are numbers that a gradient moves."""
    if formats.FORMATS[kernel].bits:
        raise ValueError(
            f"{who}: kernel must be 2:4, csr or bitmask to be trained, got {kernel}; train as 2:4, "
            "then replace again"
        )


def whole(t: Tensor) -> Tensor:
    """A DTensor's global tensor, and any other tensor as it is."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def _both_ways(weight: Tensor) -> Sparse24 | None:
    """Positions that are 2:4 along both dimensions and hold all of a 2:4 weight, if there are."""
    if count_broken_groups(weight.t()):
        return None
    mask = transposable_mask((weight != 0).float())
    if (weight.masked_fill(mask, 0.0) != 0).any():
        return None
    positions = formats.compress_sparse24(mask.to(weight.dtype))
    return positions.with_values(formats.take_kept(weight, positions))
