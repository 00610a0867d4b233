"""The rivals: other libraries' products of the same weight and tokens, in the same process.

One module a library; `RIVALS` is the table of them. A rival that cannot run here is named with its
reason by `why_absent`, never left out in silence.
"""

from __future__ import annotations

import functools

import torch

from rivals import (
    deepsparse,
    onnxruntime,
    openvino,
    scipy,
    torch_dense,
    torch_quantized,
    torch_sparse,
    torchao,
)
from rivals.rival import Product, Rival

__all__ = ["RIVALS", "Product", "Rival", "why_absent"]

_MODULES = (
    torch_dense, torch_sparse, torch_quantized, torchao, scipy, onnxruntime, openvino, deepsparse,
)  # fmt: skip
RIVALS: dict[str, Rival] = {rival.name: rival for m in _MODULES for rival in m.RIVALS}


@functools.cache
def why_absent(name: str) -> str:
    """Why this rival does not run here, or "": its package, its device, or what it refused.

    What is there is asked for a small product, as libraries say what they lack only when used.
    """
    rival = RIVALS[name]
    reason = rival.absent()
    if reason:
        return reason
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator).to(rival.device)
    try:
        if rival.storage == "2:4":
            weight.view(-1, 4)[:, 2:] = 0
        x = torch.randn(8, 128, generator=generator).to(rival.device, rival.dtype)
        rival.build(weight, 8).call(x)
    except Exception as error:  # whatever a library raises is its answer
        lines = str(error).strip().splitlines() or [""]
        return f"refused: {type(error).__name__}: {lines[0][:160]}"
    return ""
