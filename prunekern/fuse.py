"""Projections that read the same input, stored as one packed weight and multiplied by one op.

    q_proj [Nq, K] ┐                       ┌ y[..., :Nq]         what q_proj(x) returns
    k_proj [Nk, K] ├ [Nq + Nk + Nv, K] x = ┤ y[..., Nq:Nq + Nk]  k_proj(x)
    v_proj [Nv, K] ┘                       └ y[..., Nq + Nk:]    v_proj(x)

gate_proj and up_proj of an MLP likewise. Rows are put one below the other in the canonical format,
so that nothing is rounded anew. Each projection stays a module under its own name: files, state
dicts, hooks and `restore_linears` see no difference.

The first projection that an attention or MLP calls multiplies for all, the others take their rows
of the product. It is kept only while the parent's forward runs, and given only to a projection
called with the very same tensor, so that another input, say of a hook, gets a product of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekern.formats import Canonical
from prunekern.nn import SparseLinear, move_hooks, release_memory
from prunekern.slicing import concatenate_rows, slice_rows

# Class of transformers -> its projections of one input. Each is called once with the input itself,
# which nothing changes in between.
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
GROUPS = {
    **{f"{family}Attention": ("q_proj", "k_proj", "v_proj") for family in FAMILIES},
    **{f"{family}MLP": ("gate_proj", "up_proj") for family in FAMILIES},
}

_HOLDER = "fused"  # name of the packed weight in its parent


@dataclass(frozen=True)
class FusedGroup:
    """Projections of one parent, fused or not.

    Attributes:
        name: Of the parent in the model.
        parts: Of its children.
        reason: Why they were left apart, or "".
    """

    name: str
    parts: tuple[str, ...]
    reason: str = ""


def fuse_linears(model: nn.Module) -> tuple[FusedGroup, ...]:
    """Makes one packed weight of q, k and v and one of gate and up, in place.

    For attentions and MLPs of Llama, Mistral, Qwen2 and Qwen3 in transformers; of each those
    projections that are SparseLinear of one kernel, layout and dtype. `restore_linears` undoes it.
    Products equal those of separate layers up to the order of sums in the kernel.

    Args:
        model: After `replace_linears`, or loaded sparse.

    Returns:
        Every parent with two or more SparseLinear of one input size, and why some were left apart.

    Raises:
        ValueError: The model has no SparseLinear.
    """
    if not any(isinstance(m, SparseLinear) for m in model.modules()):
        raise ValueError(
            "fuse_linears: model must have SparseLinear layers, got none; see replace_linears"
        )
    uses = _uses(model)
    groups = []
    for name, parent in list(model.named_modules()):
        for parts in _candidates(parent):
            reason = _why_apart(parent, parts, uses)
            if not reason:
                _fuse(parent, parts)
            groups.append(FusedGroup(name, parts, reason))
    return tuple(groups)


def unfuse(model: nn.Module) -> None:
    """Gives parents whose projections are no longer fused their own class back."""
    for parent in model.modules():
        fused = isinstance(parent, _SharesProduct)
        if fused and not any(isinstance(child, FusedLinear) for child in parent.children()):
            delattr(parent, _HOLDER)
            parent.__class__ = type(parent).__bases__[1]


class FusedWeight(nn.Module):
    """The packed rows of all projections of a group, and their last product while it is wanted.

    Attributes:
        kept: None while the parent's forward does not run; then (), or (x, y) of the last product.
    """

    def __init__(self, weights: Sequence[Canonical], layout: str) -> None:
        """Packs `weights` one below the other."""
        super().__init__()
        self.kept: tuple[Tensor, ...] | None = None
        self._pack(concatenate_rows(weights), layout)

    def _pack(self, canonical: Canonical, layout: str) -> None:
        # Hidden from named_modules: a file holds the projections and not what they became.
        self.__dict__["_whole"] = SparseLinear(canonical, None, layout)
        self._adopt_buffers()

    def _adopt_buffers(self) -> None:
        """Shows the packed tensors as buffers, which is where memory is counted."""
        self._buffers.clear()
        for name, tensor in self._whole.named_buffers():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def whole(self) -> SparseLinear:
        """All rows, without bias."""
        return self._whole

    def product(self, x: Tensor, mates: Sequence[FusedLinear]) -> Tensor:
        """[..., K] -> [..., all rows] with the biases of `mates`, or what was kept for this x."""
        kept = self.kept  # once: another thread may put its own there
        if kept and kept[0] is x:
            return kept[1]
        biases = [mate._parameters["bias"] for mate in mates]
        y = self._whole.product(x, None if biases[0] is None else torch.cat(biases))
        if kept is not None:
            self.kept = (x, y)
        return y

    def replace_rows(self, begin: int, rows: Canonical) -> None:
        """Other weights for one projection."""
        old = self._whole.canonical()
        end, N = begin + rows.shape[0], old.shape[0]
        above = [slice_rows(old, 0, begin)] if begin else []
        below = [slice_rows(old, end, N)] if end < N else []
        self._pack(concatenate_rows([*above, rows, *below]), self._whole.layout)

    def _apply(self, fn, recurse=True):
        self._whole._apply(fn, recurse)
        self._adopt_buffers()
        return self

    def __getstate__(self):
        return {**self.__dict__, "_buffers": {}, "kept": None}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._adopt_buffers()


class FusedLinear(SparseLinear):
    """A projection whose weight is some rows of a FusedWeight; otherwise like any SparseLinear.

    `.to(...)` of one moves all of the group. The bias is its own parameter.
    """

    def __init__(self, sparse: SparseLinear, group: FusedWeight, begin: int) -> None:
        """Takes the place of `sparse`, whose rows of `group` start at `begin`."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = sparse.out_features, sparse.in_features
        self.kernel, self.nnz, self.group_size = sparse.kernel, sparse.nnz, sparse.group_size
        self.register_parameter("bias", sparse.bias)
        self.begin, self.end = begin, begin + sparse.out_features
        self.__dict__["_group"] = group  # the parent's child, not this module's
        self.__dict__["_mates"] = (self,)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], some columns of the group's product."""
        return self._group.product(x, self._mates)[..., self.begin : self.end]

    def canonical(self) -> Canonical:
        """The weight in its canonical format."""
        return slice_rows(self._group.whole.canonical(), self.begin, self.end)

    @property
    def _packed(self):
        return self._group.whole._packed

    @property
    def nbytes(self) -> int:
        """Its share, by rows, of the group's bytes: they add up."""
        whole = self._group.whole
        first, last = (whole.nbytes * row // whole.out_features for row in (self.begin, self.end))
        return last - first

    def _set(self, canonical: Canonical, layout: str | None) -> None:
        self._group.replace_rows(self.begin, canonical)
        self.nnz, self.group_size = canonical.values.numel(), canonical.group_size

    def _apply(self, fn, recurse=True):
        nn.Module._apply(self, fn, recurse)
        self._group._apply(fn)
        return self

    def __getstate__(self):
        return self.__dict__.copy()

    def __setstate__(self, state):
        nn.Module.__setstate__(self, state)


class _SharesProduct:
    """Put before the class of an attention or MLP, whose projections then share products."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.fused.kept = ()
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.fused.kept = None

    def __reduce_ex__(self, protocol: int) -> tuple:
        # The class is made at run time, so that a pickle can not name it.
        _, _, state, *_ = super().__reduce_ex__(max(protocol, 2))
        return _remade, (type(self).__bases__[1],), state


def _sharing(kind: type) -> type:
    """The class of parents of this kind that share products."""
    return type(kind.__name__, (_SharesProduct, kind), {"__module__": kind.__module__})


def _remade(kind: type) -> nn.Module:
    shared = _sharing(kind)
    return shared.__new__(shared)


def _uses(model: nn.Module) -> dict[nn.Module, int]:
    """Module -> under how many names it stands."""
    uses: dict[nn.Module, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        uses[module] = uses.get(module, 0) + 1
    return uses


def _candidates(parent: nn.Module) -> Iterator[tuple[str, ...]]:
    """Names of a parent's SparseLinear that read inputs of one size, two or more together."""
    by_size: dict[int, list[str]] = {}
    for name, child in parent.named_children():
        if isinstance(child, SparseLinear) and not isinstance(child, FusedLinear):
            by_size.setdefault(child.in_features, []).append(name)
    known = GROUPS.get(type(parent).__name__)
    for names in by_size.values():
        # Of a square attention o_proj reads as many numbers, but not the same.
        parts = tuple(n for n in names if known is None or n in known)
        if len(parts) > 1:
            yield parts


def _why_apart(parent: nn.Module, parts: tuple[str, ...], uses: dict[nn.Module, int]) -> str:
    """Why projections stay as they are, or ""."""
    kind = type(parent)
    if kind.__name__ not in GROUPS or not kind.__module__.startswith("transformers.models."):
        return f"{kind.__name__} is not known to give them all the same input"
    if "forward" in parent.__dict__ or hasattr(parent, "_hf_hook"):
        return "something else has taken over its forward"
    layers = [getattr(parent, name) for name in parts]
    if any(uses[layer] > 1 for layer in layers):
        return "a projection is shared with another module"
    if any(type(layer) is not SparseLinear for layer in layers):
        return f"{type(layers[0]).__name__} may compute more than SparseLinear does"
    for what in ("kernel", "layout", "dtype", "group_size"):
        found = sorted({str(getattr(layer, what)) for layer in layers})
        if len(found) > 1:
            return f"they differ in {what}: {', '.join(found)}"
    if len({layer.bias is None for layer in layers}) > 1:
        return "some have a bias and some have none"
    return ""


def _fuse(parent: nn.Module, parts: tuple[str, ...]) -> None:
    layers = [getattr(parent, name) for name in parts]
    group = FusedWeight([layer.canonical() for layer in layers], layers[0].layout)
    begin, mates = 0, []
    for name, layer in zip(parts, layers, strict=True):
        mate = FusedLinear(layer, group, begin).train(layer.training)
        move_hooks(layer, mate)
        setattr(parent, name, mate)
        mates.append(mate)
        begin = mate.end
    for mate in mates:
        mate.__dict__["_mates"] = tuple(mates)
    setattr(parent, _HOLDER, group.train(parent.training))
    parent.__class__ = _sharing(type(parent))
    release_memory()
