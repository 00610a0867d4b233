"""y[..., N] = x[..., K] W[N, K]^T + bias[N], slow and obvious: what every kernel is compared with.

Each takes the tensors of its "reference" layout (see layouts.py), makes the weight dense again and
multiplies in float32. On any device.
"""

import torch
from torch import Tensor

from prunekern.formats import Canonical, decompress
from prunekern.layouts import Packed, unpack


def linear(x: Tensor, canonical: Canonical, bias: Tensor | None = None) -> Tensor:
    """The linear layer of a canonical weight.

    Args:
        x: [..., K], of the weight's dtype.
        canonical: W [N, K].
        bias: [N] or None.

    Returns:
        [..., N] of x's dtype; float32 arithmetic.
    """
    weight = decompress(canonical).float()
    y = torch.nn.functional.linear(x.float(), weight, None if bias is None else bias.float())
    return y.to(x.dtype)


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
