"""Layouts: the order in which each kernel reads a compressed weight. The specification.

A packed weight names its kernel: `Packed.layout` is the variant's name and its tensors are what
`torch.ops.prunekern.<stem>_linear_<layout>` takes. The packers in C++ equal `pack_reference` bit
for bit, and `unpack` is the exact inverse of both.

sparse24.py, quantized24.py, bitmask.py and csr.py draw the layouts of their format and pack and
unpack them; choice.py says which one a weight takes.
"""

from __future__ import annotations

import torch

from prunekern.formats import Canonical
from prunekern.layouts import bitmask, csr, quantized24, sparse24
from prunekern.layouts.choice import (
    CAPABILITIES,
    LAYOUTS,
    ONLY_DTYPES,
    PANEL_LAYOUTS,
    RIVALS,
    ROUND_X,
    Facts,
    check_layout,
    device_of,
    layout_for,
    takes_dtype,
    why_not,
    why_reference,
)
from prunekern.layouts.packed import Packed

__all__ = [
    "CAPABILITIES",
    "FORMATS",
    "LAYOUTS",
    "ONLY_DTYPES",
    "PANEL_LAYOUTS",
    "RIVALS",
    "ROUND_X",
    "Facts",
    "Packed",
    "check_layout",
    "device_of",
    "layout_for",
    "pack",
    "pack_reference",
    "takes_dtype",
    "unpack",
    "why_not",
    "why_reference",
]

# Each with `pack(canonical, layout)`, `unpack(packed)` and, where ops in C++ pack, the shapes of
# what they return: `fake_pack(layout, *arguments of the op)`.
FORMATS = {
    "sparse24": sparse24,
    "sparse24_int8": quantized24,
    "sparse24_int4": quantized24,
    "bitmask": bitmask,
    "csr": csr,
}


def pack(c: Canonical, layout: str) -> Packed:
    """Canonical tensors in the order of one layout, by the op in C++ where there is one.

    Raises:
        ValueError: The format has no such layout, or not for this dtype.
    """
    check_layout(c.stem, layout, c.dtype)
    packer = getattr(torch.ops.prunekern, f"{c.stem}_pack_{layout}", None)
    if packer is None or c.device.type != device_of(layout):
        return pack_reference(c, layout)
    return Packed(c.stem, layout, c.shape, tuple(packer(*c.tensors().values(), *c.shape)))


def pack_reference(c: Canonical, layout: str) -> Packed:
    """What `pack` returns, in plain torch on any device: the specification."""
    check_layout(c.stem, layout, c.dtype)
    return Packed(c.stem, layout, c.shape, FORMATS[c.stem].pack(c, layout))


def unpack(packed: Packed) -> Canonical:
    """The canonical tensors that were packed, to the bit; see rivals.py for its own."""
    return FORMATS[packed.stem].unpack(packed)
