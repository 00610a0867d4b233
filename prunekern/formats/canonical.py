"""What all canonical formats share: fields, checks of a dense weight, whose fault it is."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Specs = dict[str, tuple[torch.dtype, list[int]]]  # tensor -> dtype, shape


def int_view(t: Tensor) -> Tensor:
    """The bits of a float tensor, as integers of its size."""
    return t.view(torch.int32 if t.element_size() == 4 else torch.int16)


@dataclass(frozen=True)
class CanonicalBase:
    """A compressed weight: its tensors, and the shape [N, K] of the dense one."""

    values: Tensor
    shape: tuple[int, int]

    kernel: ClassVar[str]  # the name users give: "2:4", "csr", "bitmask"
    stem: ClassVar[str]  # the name ops, files and kernels have: sparse24, csr, bitmask
    pattern: ClassVar[str] = "unstructured"  # what a weight must be pruned to: or "2:4"
    bits: ClassVar[int | None] = None  # of a kept weight; None: it is a float

    @property
    def dtype(self) -> torch.dtype:
        """Of the kept weights."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.values.device

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, as a state dict holds them."""
        return {name: getattr(self, name) for name in self.tensor_names()}

    @classmethod
    def tensor_names(cls) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(f.name for f in fields(cls) if f.name != "shape")

    @property
    def group_size(self) -> int | None:
        """Inputs of a row that share a scale; None where weights are floats."""
        return None

    def map(self, f) -> CanonicalBase:
        """The same weight with f applied to each tensor."""
        return type(self)(**{k: f(t) for k, t in self.tensors().items()}, shape=self.shape)

    def with_values(self, values: Tensor) -> CanonicalBase:
        """Other numbers at the same positions: `values` in the order and shape of this one's."""
        return replace(self, values=values)

    def to(self, device=None, dtype: torch.dtype | None = None) -> CanonicalBase:
        """On another device, or with the kept weights in another dtype."""
        moved = self.map(lambda t: t.to(device)) if device is not None else self
        if dtype is None or dtype == self.dtype:
            return moved
        return moved.with_values(moved.values.to(dtype))


def check_weight(weight: Tensor, who: str = "compress") -> None:
    """Raises ValueError unless `weight` is a dense, non-empty matrix of a dtype in DTYPES."""
    if not isinstance(weight, Tensor):
        raise ValueError(f"{who}: weight must be a tensor, got {type(weight).__name__}")
    if weight.layout != torch.strided:
        raise ValueError(f"{who}: weight must be dense, got {weight.layout}; call .to_dense()")
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(
            f"{who}: weight must be a non-empty matrix [out_features, in_features], "
            f"got shape {list(weight.shape)}"
        )
    if weight.dtype not in DTYPES:
        raise ValueError(
            f"{who}: weight must be float32, bfloat16 or float16, got {weight.dtype}; "
            "convert it first"
        )
    if weight.device.type == "meta":
        raise ValueError(f"{who}: weight must hold data, got a meta tensor; load the model first")


class Who:
    """Says whose tensor is wrong: `<name>: <what> must <rule>, got <value>`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fail(self, what: str, rule: str, got) -> None:
        """Raises the ValueError."""
        raise ValueError(f"{self.name}: {what} must {rule}, got {got}")

    def check(self, ok: bool, what: str, rule: str, got) -> None:
        """Raises it unless `ok`."""
        if not ok:
            self.fail(what, rule, got)

    def check_tensor(self, what: str, t: Tensor, dtype: torch.dtype, shape: list[int]) -> None:
        """Raises it unless the tensor has this dtype and shape."""
        self.check(t.dtype == dtype, what, f"be {dtype}", t.dtype)
        self.check(list(t.shape) == shape, what, f"have the shape {shape}", list(t.shape))
