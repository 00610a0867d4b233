"""Layouts of 2:4 with whole numbers and scales, "sparse24_int8" and "sparse24_int4".

(values, meta, scales): G = ceil(K / 4) groups of four inputs a row, S scales a row.

    reference, scalar   canonical, see formats/quantized.py
    sm80, sm80a8        panels, see quantized24_panels.py
"""

from __future__ import annotations

from torch import Tensor

from prunekern.formats import FORMATS, QuantizedSparse24
from prunekern.layouts import quantized24_panels
from prunekern.layouts.choice import device_of
from prunekern.layouts.packed import Packed

_KINDS = {cls.stem: cls for cls in FORMATS.values()}


def pack(c: QuantizedSparse24, layout: str) -> tuple[Tensor, ...]:
    """The tensors of one layout; the layout is checked by the caller."""
    if device_of(layout) == "cuda":
        return quantized24_panels.pack(c, layout)
    return c.values, c.meta, c.scales


def unpack(packed: Packed) -> QuantizedSparse24:
    """What `pack` was given."""
    if device_of(packed.layout) == "cuda":
        return quantized24_panels.unpack(packed)
    values, meta, scales = packed.tensors
    return _KINDS[packed.stem](values=values, meta=meta, scales=scales, shape=packed.shape)
