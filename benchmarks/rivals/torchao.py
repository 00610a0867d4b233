"""torchao: int8 with tokens quantised at each call on a CPU; 2:4 on a GPU only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rivals.rival import Product, Rival, no_gpu, no_package


def _layer(weight: Tensor, dtype: torch.dtype) -> nn.Sequential:
    layer = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    layer.weight = nn.Parameter(weight.to(dtype, copy=True), requires_grad=False)
    return nn.Sequential(layer)


def _int8(weight: Tensor, tokens: int) -> Product:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = _layer(weight, torch.float32)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return Product(model, weight.numel() + 4 * len(weight))


def _semi_sparse(weight: Tensor, tokens: int) -> Product:
    from torchao.sparsity import semi_sparse_weight, sparsify_

    model = _layer(weight, torch.float16)
    sparsify_(model, semi_sparse_weight())
    return Product(model, weight.numel() * 9 // 8)


RIVALS = (
    Rival(
        "torchao int8 dynamic", torch.float32, _int8, no_package("torchao"), weights="int8",
    ),
    Rival(
        "torchao 2:4 float16", torch.float16, _semi_sparse, no_gpu("torchao"), storage="2:4",
        device="cuda",
    ),
)  # fmt: skip
