"""What is lost with removed inputs of a Linear, made up for by what it keeps.

With x = (x_k, x_r) kept and removed inputs, G the mean of x x^T and m the mean of x:

    least_squares   W' = W_k + W_r G_rk (G_kk + ridge I)^-1
    bias            W' = W_k,   b' = b + W_r m_r

The first minimizes E|W x - W' x_k|^2 + ridge |W' - W_k|^2: the ridge pulls towards the old weights,
not towards zero. Where there is a bias it is refitted as well: the same with G - m m^T for G, and
b' = b + W m - W' m_k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunekern.structured.calibration import Moments

COMPENSATIONS = ("none", "bias", "least_squares")
# Of the mean of G's diagonal, as SparseGPT damps its Hessian.
RIDGE = 0.01


def least_squares(
    weight: Tensor, bias: Tensor | None, moments: Moments, keep: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The refitted weight [N, kept] and bias, in the weight's dtype; computed in float64.

    Args:
        weight: [N, K].
        bias: [N] or None.
        moments: Of the inputs, with the Gram matrix.
        keep: Indices of inputs that stay.
    """
    gram = moments.gram
    if bias is not None:
        gram = gram - torch.outer(moments.mean, moments.mean)
    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    gone[keep] = False
    w = weight.detach().double()
    inner = gram[keep][:, keep]
    # Inputs that are never active leave a zero matrix: any positive ridge then gives W_k back.
    ridge = RIDGE * inner.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    inner.diagonal().add_(ridge)
    lost = w[:, gone] @ gram[gone][:, keep]
    refit = w[:, keep] + torch.cholesky_solve(lost.t(), torch.linalg.cholesky(inner)).t()
    new_bias = shifted_bias(weight, bias, moments, keep, refit)
    return refit.to(weight.dtype).contiguous(), new_bias


def shifted_bias(
    weight: Tensor, bias: Tensor | None, moments: Moments, keep: Tensor, kept_weight: Tensor
) -> Tensor | None:
    """The bias that keeps the mean output, b + W m - W' m_k; None without a bias.

    Args:
        weight: [N, K], the old one.
        bias: [N] or None.
        moments: Of the inputs.
        keep: Indices of inputs that stay.
        kept_weight: [N, kept], the new one.
    """
    if bias is None:
        return None
    before = weight.detach().double() @ moments.mean
    after = kept_weight.double() @ moments.mean[keep]
    return (bias.detach().double() + before - after).to(bias.dtype)
