"""A compressed weight in the reading order of one kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = 64  # elements that a kernel may read past the last value


@dataclass(frozen=True)
class Packed:
    """A compressed weight in the reading order of one kernel.

    Attributes:
        stem: sparse24, sparse24_int8, sparse24_int4, bitmask or csr.
        layout: The variant whose order this is.
        shape: (N, K) of the dense weight.
        tensors: What the op takes after x, in its order.
    """

    stem: str
    layout: str
    shape: tuple[int, int]
    tensors: tuple[Tensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the kept weights, or of their scales."""
        return self.floats.dtype

    @property
    def floats(self) -> Tensor:
        """The tensor that has the dtype of x: values, or scales where those are whole numbers."""
        return next(t for t in self.tensors if t.is_floating_point())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, padding included."""
        return sum(t.numel() * t.element_size() for t in self.tensors)
