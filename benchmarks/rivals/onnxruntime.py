"""ONNX Runtime: a model of one MatMul whose weight is an initializer, packed by the session.

Its threads do not spin between runs, or they would take the cores from whoever is timed next.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from rivals.rival import Product, Rival, no_package

_GROUP = 32
_TYPES = {torch.float32: "FLOAT", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}


def matmul_model(weight: Tensor, dtype: torch.dtype, tokens: int | str = "tokens") -> bytes:
    """An ONNX file of y = x W^T with W[N, K] constant; `tokens` may be a name: any number."""
    from onnx import helper

    onnx_type = _onnx_type(dtype)
    w = weight.t().contiguous().to(dtype)  # MatMul wants [K, N]
    raw = w.view(torch.int16).numpy() if dtype == torch.bfloat16 else w.numpy()
    initializer = helper.make_tensor("w", onnx_type, w.shape, raw.tobytes(), raw=True)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return _model(node, [initializer], weight.shape, onnx_type, tokens)


def _onnx_type(dtype: torch.dtype) -> int:
    from onnx import TensorProto

    return getattr(TensorProto, _TYPES[dtype])


def _model(node, initializers, shape, onnx_type: int, tokens, domain: str = "") -> bytes:
    from onnx import helper

    N, K = shape
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", onnx_type, [tokens, K])],
        [helper.make_tensor_value_info("y", onnx_type, [tokens, N])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 13)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _session(model: bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # its refusals are raised and need not be printed besides
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _dense(dtype: torch.dtype, weight: Tensor, tokens: int) -> Product:
    session = _session(matmul_model(weight, dtype))
    return Product(
        lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]),
        weight.numel() * dtype.itemsize,
    )


def _bits(bits: int, weight: Tensor, tokens: int) -> Product:
    """MatMulNBits: int4 or int8 weights in groups of 32, tokens quantised to int8 at each call."""
    from onnx import helper, numpy_helper

    N, K = weight.shape
    groups = weight.view(N, K // _GROUP, _GROUP)
    middle = 2 ** (bits - 1)
    scales = groups.abs().amax(-1) / (middle - 1)
    codes = (groups / scales[..., None]).round().add(middle).clamp(0, 2 * middle - 1).byte().numpy()
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", K=K, N=N, bits=bits,
        block_size=_GROUP, accuracy_level=4,
    )  # fmt: skip
    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(codes), "codes"),
        numpy_helper.from_array(scales.numpy(), "scales"),
    ]
    onnx_type = _onnx_type(torch.float32)
    model = _model(node, initializers, (N, K), onnx_type, "tokens", domain="com.microsoft")
    session = _session(model)
    return Product(
        lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]),
        codes.nbytes + 4 * scales.numel(),
    )


_ABSENT = no_package("onnxruntime", "onnx")

RIVALS = (
    *(
        Rival(
            f"ONNX Runtime {str(t)[6:]}", t, functools.partial(_dense, t), _ABSENT,
            pool="onnxruntime",
        )
        for t in _TYPES
    ),
    *(
        Rival(
            f"ONNX Runtime int{bits}", torch.float32, functools.partial(_bits, bits), _ABSENT,
            weights=f"int{bits}", pool="onnxruntime",
        )
        for bits in (8, 4)
    ),
)  # fmt: skip
