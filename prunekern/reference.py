"""y[..., N] = x[..., K] W[N, K]^T + bias[N], slow and obvious: what every kernel is compared with.

Each takes the tensors of its "reference" layout (see layouts), makes the weight dense again and
multiplies in float32. On any device.
"""

import torch
from torch import Tensor

from prunekern.formats import DTYPES, Canonical, QuantizedSparse24, decompress, dequantize
from prunekern.layouts import Packed, unpack


def linear(x: Tensor, canonical: Canonical, bias: Tensor | None = None) -> Tensor:
    """The linear layer of a canonical weight.

    Args:
        x: [..., K], of the weight's dtype.
        canonical: W [N, K].
        bias: [N] or None.

    Returns:
        [..., N] of x's dtype; float32 arithmetic.

    Raises:
        RuntimeError: A wrong dtype, device or shape, in the words of the compiled ops.
    """
    _check(x, canonical, bias)
    quantized = isinstance(canonical, QuantizedSparse24)
    weight = dequantize(canonical) if quantized else decompress(canonical).float()
    y = torch.nn.functional.linear(x.float(), weight, None if bias is None else bias.float())
    return y.to(x.dtype)


def _check(x: Tensor, c: Canonical, bias: Tensor | None) -> None:
    N, K = c.shape
    op = f"prunekern::{c.stem}_linear_reference"

    def must(ok: bool, what: str, rule: str, got: object) -> None:
        if not ok:
            raise RuntimeError(f"{op}: {what} must {rule}, got {got}")

    must(N >= 1, "out_features", "be at least 1", N)
    must(K >= 1, "in_features", "be at least 1", K)
    must(x.dtype in DTYPES, "x", "be float32, bfloat16 or float16", x.dtype)
    must(x.dtype == c.dtype, "x", f"have the weight's dtype {c.dtype}", x.dtype)
    must(x.device == c.device, "x", f"be on {c.device} as the weight is", x.device)
    must(x.dim() >= 1, "x", "have at least 1 dimension", x.dim())
    must(x.shape[-1] == K, "the last dimension of x", f"be in_features = {K}", list(x.shape))
    if bias is not None:
        must(bias.dtype == x.dtype, "bias", f"be {x.dtype}", bias.dtype)
        must(bias.device == x.device, "bias", f"be on {x.device}", bias.device)
        must(list(bias.shape) == [N], "bias", f"have the shape [{N}]", list(bias.shape))


def sparse24_linear(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
) -> Tensor:
    """2:4, see `linear`."""
    shape = (out_features, in_features)
    return linear(x, unpack(Packed("sparse24", "reference", shape, (values, meta))), bias)


def sparse24_int8_linear(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
) -> Tensor:
    """2:4 of int8 and scales, see `linear`."""
    shape = (out_features, in_features)
    packed = Packed("sparse24_int8", "reference", shape, (values, meta, scales))
    return linear(x, unpack(packed), bias)


def sparse24_int4_linear(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
) -> Tensor:
    """2:4 of int4 and scales, see `linear`."""
    shape = (out_features, in_features)
    packed = Packed("sparse24_int4", "reference", shape, (values, meta, scales))
    return linear(x, unpack(packed), bias)


def bitmask_linear(
    x: Tensor,
    values: Tensor,
    bitmask: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
) -> Tensor:
    """Bitmask, see `linear`."""
    shape = (out_features, in_features)
    packed = Packed("bitmask", "reference", shape, (values, bitmask, offsets))
    return linear(x, unpack(packed), bias)


def csr_linear(
    x: Tensor,
    values: Tensor,
    col_indices: Tensor,
    crow_indices: Tensor,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
) -> Tensor:
    """CSR, see `linear`."""
    shape = (out_features, in_features)
    packed = Packed("csr", "reference", shape, (values, col_indices, crow_indices))
    return linear(x, unpack(packed), bias)
