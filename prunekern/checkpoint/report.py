"""What was written: a row for each sparse layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunekern import formats
from prunekern.formats import Canonical


@dataclass(frozen=True)
class SavedLayer:
    """A sparse layer in a file.

    Attributes:
        name: In the model.
        format: One of `prunekern.formats.FORMATS`.
        shape: (N, K) of the dense weight.
        zeros: Share of weights that are zero.
        nbytes: Of its canonical tensors.
        dense_nbytes: Of the weight with zeros.
    """

    name: str
    format: str
    shape: tuple[int, int]
    zeros: float
    nbytes: int
    dense_nbytes: int

    @classmethod
    def of(cls, name: str, c: Canonical) -> SavedLayer:
        """The row of canonical tensors."""
        weights = c.shape[0] * c.shape[1]
        values = formats.whole_numbers_of(c) if c.bits else c.values
        zeros = 1 - int(values.count_nonzero()) / weights
        size = weights * c.dtype.itemsize
        return cls(name, c.kernel, tuple(c.shape), zeros, formats.nbytes(c), size)


@dataclass(frozen=True)
class SavedCheckpoint:
    """What was written.

    Attributes:
        folder: Where.
        layers: The sparse ones.
        nbytes: Of all tensors of the model, as written.
    """

    folder: Path
    layers: tuple[SavedLayer, ...]
    nbytes: int

    def __str__(self) -> str:
        before = sum(layer.dense_nbytes for layer in self.layers)
        after = sum(layer.nbytes for layer in self.layers)
        return (
            f"{self.folder}: {self.nbytes / 1e6:.1f} MB, {len(self.layers)} sparse layers "
            f"({before / 1e6:.1f} MB dense, {after / 1e6:.1f} MB compressed)"
        )
