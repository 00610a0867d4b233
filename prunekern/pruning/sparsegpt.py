"""SparseGPT: what goes is made up for by what stays (Frantar and Alistarh 2023, arXiv 2301.00774).

A row's output error under calibration inputs X is (w - w')^T H (w - w') with H = X X^T. Columns are
gone through from left to right; those already passed are fixed. If column j loses a weight, the
best that the columns right of it can do is a known multiple of row j of U, the upper Cholesky
factor of H^-1:

    U[j, j:] = row j of (H[j:, j:])^-1, divided by the root of its first element
    w[j:]   -= (w_j - w'_j) / U[j, j] * U[j, j:]           cost of it:  w_j^2 / U[j, j]^2

so one factorization serves all columns, all rows, and all layers that read the same input.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from prunekern.pruning.masks import kept_count, largest_mask, nm_mask, transposable_mask

BLOCK = 128  # columns whose unstructured mask is chosen together, before their own errors arrive
_RETRIES = 3


def inverse_factor(hessian: Tensor, damping: float, name: str) -> tuple[Tensor, Tensor]:
    """U, upper, with U^T U = (H + damping * mean(diag H) * I)^-1; and which inputs are dead.

    A dead input (H_jj = 0) was zero for every token: its H_jj counts as 1, its weights go.
    If a factorization fails, damping grows tenfold, up to three times, with a warning.

    Args:
        hessian: [K, K] float32, symmetric; overwritten.
        damping: Share of the mean of the diagonal.
        name: Of the layer, for messages.

    Returns:
        U [K, K] and dead [K] bool.

    Raises:
        ValueError: H is not finite, or stays indefinite.
    """
    diagonal = hessian.diagonal()
    if not torch.isfinite(hessian).all():
        raise ValueError(f"prune: {name} must have finite calibration inputs, got NaN or infinite")
    dead = diagonal == 0
    diagonal[dead] = 1.0
    unit = diagonal.mean()
    added = 0.0
    for attempt in range(_RETRIES + 1):
        share = damping * 10**attempt
        diagonal += (share - added) * unit
        added = share
        factor = _inverse_factor(hessian)
        if factor is not None:
            if attempt:
                warnings.warn(
                    f"prune: {name} needed a damping of {share:g} instead of {damping:g}: "
                    "the Hessian of its inputs is near singular; more calibration tokens help",
                    stacklevel=2,
                )
            return factor, dead
    raise ValueError(
        f"prune: {name} must have a Hessian that is positive definite, got one that is not with "
        f"{added:g} of its mean diagonal added; use more calibration tokens or a larger damping"
    )


def _inverse_factor(hessian: Tensor) -> Tensor | None:
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if failed:
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed or not torch.isfinite(upper).all() else upper


def sparsegpt_prune(
    weight: Tensor,
    factor: Tensor,
    dead: Tensor,
    nm: tuple[int, int] | None,
    sparsity: float,
    frozen: Tensor | None = None,
    transposable: bool = False,
) -> Tensor:
    """The pruned weight, its kept entries rewritten.

    N:M is chosen group by group on weights that already carry the errors from their left;
    unstructured, the smallest of each block of 128 columns over all rows go.

    Args:
        weight: [N, K].
        factor: U of `inverse_factor`.
        dead: [K] bool, inputs whose weights go.
        nm: (N, M) of the pattern, or None for unstructured.
        sparsity: For unstructured, the share that goes.
        frozen: Bool [N, K], zeros that must stay zeros; they are among the first to go.
        transposable: For 2:4, whether each 4 x 4 block is to be 2:4 both ways.

    Returns:
        [N, K] float32.
    """
    N, K = weight.shape
    block = BLOCK if nm is None else BLOCK // nm[1] * nm[1]
    # Transposed, so that a column of W is contiguous.
    w = weight.detach().float().t().contiguous()
    w[dead] = 0
    gone = torch.zeros(K, N, dtype=torch.bool, device=w.device) if frozen is None else frozen.t()
    gone = gone.contiguous()
    for start in range(0, K, block):
        end = min(start + block, K)
        piece, out = w[start:end], gone[start:end]
        u = factor[start:end, start:end]
        errors = torch.empty_like(piece)
        if nm is None:
            scores = _costs(piece, u.diagonal(), out)
            out |= ~largest_mask(scores, kept_count(scores.numel(), sparsity))
        for j in range(end - start):
            if nm is not None and j % nm[1] == 0:
                group = slice(j, j + nm[1])
                scores = _costs(piece[group], u.diagonal()[group], out[group])
                scores = scores.t().contiguous()
                mask = transposable_mask(scores) if transposable else nm_mask(scores, *nm)
                out[group] |= ~mask.t()
            errors[j] = piece[j].masked_fill(~out[j], 0.0) / u[j, j]
            piece[j:].addr_(u[j, j:], errors[j], alpha=-1)
        w[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
    # The subtraction leaves rounding errors and -0.0 where a zero is meant.
    return w.masked_fill_(gone, 0.0).t().contiguous()


def _costs(weight: Tensor, diagonal: Tensor, gone: Tensor) -> Tensor:
    """w^2 / U_jj^2 of [columns, N], and -1 for what goes anyway."""
    return (weight / diagonal[:, None]).square().masked_fill(gone, -1.0)
