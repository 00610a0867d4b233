"""torch's dense product: as every model calls it, and on weights packed once for oneDNN or MKL.

`torch.nn.functional.linear` packs its weight again at each call where oneDNN wants that. Packed
weights are what torch.compile with freezing makes: the fastest that torch offers.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rivals.rival import Product, Rival, always, no_gpu

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _linear(dtype: torch.dtype, weight: Tensor, tokens: int) -> Product:
    w = weight.to(dtype, copy=True)
    return Product(lambda x: torch.nn.functional.linear(x, w), w.nbytes)


def _onednn(dtype: torch.dtype, weight: Tensor, tokens: int) -> Product:
    w = weight.to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(w, None)
    product = torch.ops.mkldnn._linear_pointwise
    return Product(lambda x: product(x, packed, None, "none", [], ""), w.nbytes)


def _mkl(weight: Tensor, tokens: int) -> Product:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, tokens)
    product = torch.ops.mkl._mkl_linear
    return Product(lambda x: product(x, packed, weight, None, tokens), weight.nbytes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


RIVALS = (
    *(Rival(f"torch {_name(t)}", t, functools.partial(_linear, t), always) for t in _DTYPES),
    *(
        Rival(f"torch {_name(t)}, packed by oneDNN", t, functools.partial(_onednn, t), always)
        for t in _DTYPES
    ),
    Rival("torch float32, packed by MKL", torch.float32, _mkl, always, fixed_tokens=True),
    *(
        Rival(f"cuBLAS {_name(t)}", t, functools.partial(_linear, t), no_gpu(), device="cuda")
        for t in _DTYPES
    ),
)
