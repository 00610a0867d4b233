"""y = x W^T + b with the kept values of W to be trained: the product and its three gradients.

    forward     y = x W^T + b     by the layout's kernel, W packed anew from the values
    dL/dx       dL/dy W           by the same kernel from W^T packed, where W^T is 2:4; else W is
                                  made dense, one layer at a time
    dL/dvalues  dL/dy^T x         a dense product of which the kept positions are taken
    dL/db       sum of dL/dy

Packing anew at each call means that no optimizer, in-place write, gathering or loading can ever
leave an old weight behind: version counters do not see a write through `.data`, and FSDP keeps
them as they were. It costs one pass over the kept values, and nothing is kept between forward and
backward but x. Limit: of three products the one for dL/dvalues stays dense, so where a sparse one
takes 1 / s of the time, a step gains at most 3 / (1 + 2 / s): 1.5x at s = 2.

Each is one opaque op, so that torch.compile sees shapes and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from prunekern import formats
from prunekern.formats import Canonical
from prunekern.layouts import FORMATS as LAYOUTS_OF
from prunekern.layouts import pack
from prunekern.layouts.packed import Packed
from prunekern.ops import OPS, default_layout

_WEIGHT = "Tensor values, Tensor[] positions, str kernel, str layout, int[] shape"


def trainable_linear(
    x: Tensor,
    values: Tensor,
    positions: Sequence[Tensor],
    bias: Tensor | None,
    kernel: str,
    shape: tuple[int, int],
    layout: str = "",
    transposable: bool = False,
) -> Tensor:
    """y[..., N] = x[..., K] W[N, K]^T + bias[N], differentiable in x, values and bias.

    Args:
        x: [..., K] of the dtype that is computed in.
        values: Canonical values of W, of that dtype or another; kept in theirs.
        positions: The other canonical tensors, in the order of `formats.tensor_names`.
        bias: [N] of x's dtype, or None.
        kernel: "2:4", "csr" or "bitmask".
        shape: (N, K).
        layout: A variant of the format; "" for the best that runs here with x's dtype.
        transposable: Whether W^T is 2:4, too.

    Returns:
        [..., N] of x's dtype.

    Raises:
        RuntimeError: A wrong dtype, device or shape; the message says what was expected.
    """
    positions = list(positions)
    wanted = (t for t in (x, values, bias) if t is not None)
    if torch.is_grad_enabled() and any(t.requires_grad for t in wanted):
        return _TrainableLinear.apply(
            x, values, bias, kernel, layout, list(shape), transposable, *positions
        )
    return torch.ops.prunekern.trainable_linear(
        x, values, positions, kernel, layout, list(shape), bias
    )


class _TrainableLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, kernel, layout, shape, transposable, *positions):
        ctx.save_for_backward(x, values, *positions)
        ctx.weight = (kernel, layout, shape)
        ctx.transposable = transposable
        return torch.ops.prunekern.trainable_linear(
            x, values, positions, kernel, layout, shape, bias
        )

    @staticmethod
    def backward(ctx, grad):
        x, values, *positions = ctx.saved_tensors
        grad_x = grad_values = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.prunekern.trainable_linear_grad_x(
                grad, values, positions, *ctx.weight, ctx.transposable
            )
        if ctx.needs_input_grad[1]:
            grad_values = torch.ops.prunekern.trainable_linear_grad_values(
                grad, x, values, positions, *ctx.weight
            )
        if ctx.needs_input_grad[2]:
            grad_bias = grad.flatten(0, -2).sum(0) if grad.dim() > 1 else grad
        return (grad_x, grad_values, grad_bias, *(None,) * (4 + len(positions)))


def _canonical(
    values: Tensor, positions: Sequence[Tensor], kernel: str, shape: Sequence[int]
) -> Canonical:
    names = formats.tensor_names(kernel)[1:]
    tensors = {"values": values.contiguous(), **dict(zip(names, positions, strict=True))}
    return formats.from_tensors(kernel, tensors, tuple(shape))


# One question to the machine a dtype, not one a call.
_default_layout = functools.lru_cache(maxsize=None)(default_layout)


def _pack(c: Canonical, layout: str) -> Packed:
    return pack(c, layout or _default_layout(c.stem, c.device, c.dtype))


def _linear(x, values, positions, kernel, layout, shape, bias):
    packed = _pack(_canonical(values.to(x.dtype), positions, kernel, shape), layout)
    return OPS[packed.stem, packed.layout](x, *packed.tensors, bias, *packed.shape)


def _grad_x(grad, values, positions, kernel, layout, shape, transposable):
    c = _canonical(values.to(grad.dtype), positions, kernel, shape)
    if transposable:
        packed = _pack(transpose24(c), layout)
        return OPS[packed.stem, packed.layout](grad, *packed.tensors, None, *packed.shape)
    return grad @ decompress(c)


def _grad_values(grad, x, values, positions, kernel, layout, shape):
    dense = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    return take_kept(dense, _canonical(values, positions, kernel, shape)).to(values.dtype)


def _cpu_op(c: Canonical, name: str):
    """An op in C++ that does a conversion on this device, or None."""
    there = c.kernel == "2:4" and c.device.type == "cpu"
    return getattr(torch.ops.prunekern, name, None) if there else None


def transpose24(c: formats.Sparse24) -> formats.Sparse24:
    """Canonical W^T of a W that is 2:4 both ways; see `layouts.sparse24.transpose`."""
    op = _cpu_op(c, "sparse24_transpose")
    if op is None:
        return LAYOUTS_OF["sparse24"].transpose(c)
    values, meta = op(c.values, c.meta, *c.shape)
    return formats.Sparse24(values=values, meta=meta, shape=(c.shape[1], c.shape[0]))


def decompress(c: Canonical) -> Tensor:
    """As `formats.decompress`, by an op where there is one."""
    op = _cpu_op(c, "sparse24_decompress")
    return formats.decompress(c) if op is None else op(c.values, c.meta, *c.shape)


def take_kept(dense: Tensor, c: Canonical) -> Tensor:
    """As `formats.take_kept`, by an op where there is one."""
    op = _cpu_op(c, "sparse24_take")
    return formats.take_kept(dense, c) if op is None else op(dense.contiguous(), c.meta)


def _fake_linear(x, values, positions, kernel, layout, shape, bias):
    return x.new_empty((*x.shape[:-1], shape[0]))


def _fake_grad_x(grad, values, positions, kernel, layout, shape, transposable):
    return grad.new_empty((*grad.shape[:-1], shape[1]))


def _fake_grad_values(grad, x, values, positions, kernel, layout, shape):
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _register() -> torch.library.Library:
    fragment = torch.library.Library("prunekern", "FRAGMENT")
    for name, arguments, function, fake in (
        ("trainable_linear", f"Tensor x, {_WEIGHT}, Tensor? bias", _linear, _fake_linear),
        (
            "trainable_linear_grad_x",
            f"Tensor grad, {_WEIGHT}, bool transposable",
            _grad_x,
            _fake_grad_x,
        ),
        (
            "trainable_linear_grad_values",
            f"Tensor grad, Tensor x, {_WEIGHT}",
            _grad_values,
            _fake_grad_values,
        ),
    ):
        fragment.define(f"{name}({arguments}) -> Tensor")
        fragment.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"prunekern::{name}", fake, lib=fragment)
    return fragment


_FRAGMENT = _register()  # lives as long as its ops
