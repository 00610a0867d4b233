"""What torch itself offers for weights in 8 and 4 bits, on a CPU.

int8 dynamic    int8 weights a row, tokens quantised at each call: quantize_dynamic
int8            int8 weights a row, bf16 tokens: torchao's weight-only int8
int4            int4 weights in groups of 64, bf16 tokens: torchao's weight-only int4
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from rivals.rival import Product, Rival, always

_GROUP = 64


def _dynamic(weight: Tensor, tokens: int) -> Product:
    layer = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it moves to torchao
        quantized = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(layer), {nn.Linear}, dtype=torch.qint8
        )
    return Product(quantized, weight.numel() + 4 * len(weight))


def _int8(weight: Tensor, tokens: int) -> Product:
    scales = weight.abs().amax(1) / 127
    w = (weight / scales[:, None]).round().to(torch.int8)
    scales = scales.bfloat16()
    return Product(lambda x: torch._weight_int8pack_mm(x, w, scales), w.nbytes + scales.nbytes)


def _int4(weight: Tensor, tokens: int) -> Product:
    N, K = weight.shape
    groups = weight.view(N, K // _GROUP, _GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scales = (high - low) / 15
    codes = ((groups - low[..., None]) / scales[..., None]).round().clamp(0, 15)
    packed = torch._convert_weight_to_int4pack_for_cpu(codes.view(N, K).int(), 1)
    # The op has w = (code - 8) scale + zero.
    both = torch.stack((scales, low + 8 * scales), -1).transpose(0, 1).contiguous().bfloat16()
    product = torch._weight_int4pack_mm_for_cpu
    return Product(lambda x: product(x, packed, _GROUP, both), packed.nbytes + both.nbytes)


RIVALS = (
    Rival("torch int8 dynamic", torch.float32, _dynamic, always, weights="int8"),
    Rival("torch int8", torch.bfloat16, _int8, always, weights="int8"),
    Rival("torch int4", torch.bfloat16, _int4, always, weights="int4"),
)
