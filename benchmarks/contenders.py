"""Who runs: torch's dense and CSR products, and every op of the table, on rotating copies."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from prunekern import ops
from prunekern.formats import FORMATS, compress
from prunekern.layouts import LAYOUTS, pack, takes_dtype
from prunekern.testing import random_weight

COPIES = 3  # of each weight; with the other contenders in between none stays in cache
STEM_KERNEL = {cls.stem: name for name, cls in FORMATS.items()}


@functools.lru_cache(maxsize=2)
def _weight(shape: tuple[int, int], stem: str, density: float) -> Tensor:
    return random_weight(STEM_KERNEL[stem], *shape, torch.float32, density=density, seed=0)


def best_layout(stem: str, dtype: torch.dtype, isa: str) -> str:
    """The layout taken on a machine of this kind."""
    order = LAYOUTS[stem]
    allowed = order if isa == "avx512bf16" else order[order.index("avx2") :]
    for layout in allowed:
        if takes_dtype(layout, dtype) and (stem, layout) in ops.available():
            return layout
    raise ValueError(f"no layout of {stem} runs here")


def ours(
    stem: str, layout: str, shape: tuple[int, int], dtype: torch.dtype, density: float
) -> tuple[Callable[[Tensor], Tensor], int]:
    """(x -> y on the next copy of the weight, bytes of one packed copy)."""
    packed = pack(compress(_weight(shape, stem, density).to(dtype), STEM_KERNEL[stem]), layout)
    copies = itertools.cycle(
        [tuple(t.clone() for t in packed.tensors) for _ in range(max(COPIES, _fill(packed.nbytes)))]
    )
    op = ops.op_for(stem, layout)
    return lambda x: op(x, *next(copies), None, *shape), packed.nbytes


def _fill(nbytes: int) -> int:
    """Copies that make 128 MB: four times a large L3."""
    return -(-(128 << 20) // nbytes)


def rival(
    name: str, shape: tuple[int, int], stem: str, density: float
) -> tuple[Callable[[Tensor], Tensor], torch.dtype]:
    """(x -> y on the next copy, dtype of x) of "torch <dtype>" or "torch CSR"."""
    weight = _weight(shape, stem, density)
    if name == "torch CSR":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copies = itertools.cycle([weight.to_sparse_csr() for _ in range(COPIES)])
        return lambda x: (next(copies) @ x.t()).t(), torch.float32
    dtype = getattr(torch, name.split()[1])
    dense = torch.randn(shape).to(dtype)
    copies = itertools.cycle([dense.clone() for _ in range(max(COPIES, _fill(dense.nbytes)))])
    return lambda x: torch.nn.functional.linear(x, next(copies)), dtype


def plain_read(nbytes: int) -> Callable[[], None]:
    """A plain read loop on all threads: a sum over the next `nbytes` of 256 MB."""
    buffer = torch.ones(64 << 20, dtype=torch.float32)
    parts = itertools.cycle(buffer.split(nbytes // 4)[:-1])
    return lambda: next(parts).sum()
