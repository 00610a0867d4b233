"""OpenVINO on a CPU: a model of one MatMul whose weight is a constant.

    float32, bfloat16, float16    dense, computed in that precision (INFERENCE_PRECISION_HINT)
    int8, int4                    compressed weights, a scale a row or a group of 64, bf16 products
    int8 sparse                   int8 weights and tokens, zeros of the weight decompressed on the
                                  fly (CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE): needs AMX

Tokens go in and out in float32, as its users have them.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from prunekern import ops
from rivals.rival import Product, Rival, no_package

_GROUP = 64
_RANGE = 5.0  # tokens are standard normal: quantised to int8 they are cut beyond this
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def _compile(weight_node, K: int, hint: str, quantize=None, **options):
    """The function x -> y = MatMul(x, weight_node^T)."""
    from openvino import Core, Model
    from openvino import opset13 as ov

    x = ov.parameter([-1, K], np.float32, name="x")
    tokens = quantize(x) if quantize else x
    model = Model([ov.matmul(tokens, weight_node, False, True)], [x], "linear")
    options = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": hint,
        **options,
    }  # fmt: skip
    request = Core().compile_model(model, "CPU", options).create_infer_request()

    def call(x: Tensor) -> Tensor:
        y = request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0]
        return torch.from_numpy(y)

    return call


def _dense(dtype: torch.dtype, weight: Tensor, tokens: int) -> Product:
    from openvino import Core
    from openvino import opset13 as ov

    _wants(Core(), {torch.bfloat16: "BF16", torch.float16: "FP16"}.get(dtype))
    call = _compile(ov.constant(weight.numpy()), weight.shape[1], _HINTS[dtype])
    return Product(call, weight.numel() * dtype.itemsize)


def _wants(core, capability: str | None) -> None:
    has = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if capability and capability not in has:
        raise RuntimeError(f"this CPU lacks {capability} for OpenVINO: it has {' '.join(has)}")


def _compressed(bits: int, weight: Tensor, tokens: int) -> Product:
    import openvino
    from openvino import opset13 as ov

    N, K = weight.shape
    group = K if bits == 8 else _GROUP
    groups = weight.view(N, K // group, group)
    top = 2 ** (bits - 1) - 1
    scales = groups.abs().amax(-1, keepdim=True) / top
    codes = (groups / scales).round().to(torch.int8).numpy()
    packed = None
    if bits == 4:
        pairs = (codes.reshape(-1, 2) & 15).astype(np.uint8)
        packed = pairs[:, 0] | pairs[:, 1] << 4
        codes = openvino.Tensor(packed, openvino.Shape(codes.shape), openvino.Type.i4)
    node = ov.multiply(
        ov.convert(ov.constant(codes), np.float16), ov.constant(scales.half().numpy())
    )
    node = ov.convert(ov.reshape(node, ov.constant(np.array([N, K])), False), np.float32)
    product = _compile(node, K, "bf16")

    def call(x: Tensor, packed=packed) -> Tensor:  # which the model refers to and does not own
        return product(x)

    return Product(call, weight.numel() * bits // 8 + 2 * scales.numel())


def _sparse(weight: Tensor, tokens: int) -> Product:
    from openvino import opset13 as ov

    if "amx" not in ops.cpu_isa():
        raise RuntimeError("OpenVINO decompresses sparse weights with AMX only: this CPU has none")
    scales = weight.abs().amax(1, keepdim=True).numpy() / 127
    codes = np.round(weight.numpy() / scales).astype(np.int8)
    node = ov.multiply(ov.convert(ov.constant(codes), np.float32), ov.constant(scales))

    def quantize(x):
        low, high = (ov.constant(np.float32(v)) for v in (-_RANGE, _RANGE * 127 / 128))
        return ov.fake_quantize(x, low, high, low, high, 256)

    call = _compile(
        node, weight.shape[1], "f32", quantize, CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE=0.3
    )
    kept = int(np.count_nonzero(codes))
    return Product(call, kept + weight.numel() // 8 + scales.nbytes)


_ABSENT = no_package("openvino")

RIVALS = (
    *(
        Rival(
            f"OpenVINO {str(t)[6:]}", torch.float32, functools.partial(_dense, t), _ABSENT,
            weights=str(t)[6:], pool="openvino",
        )
        for t in _HINTS
    ),
    *(
        Rival(
            f"OpenVINO int{bits}", torch.float32, functools.partial(_compressed, bits), _ABSENT,
            weights=f"int{bits}", pool="openvino",
        )
        for bits in (8, 4)
    ),
    Rival(
        "OpenVINO int8 sparse", torch.float32, _sparse, _ABSENT, weights="int8", pool="openvino",
        error=0.05,  # tokens are quantised, too
    ),
)  # fmt: skip
