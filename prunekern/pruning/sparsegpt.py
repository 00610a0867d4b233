"""SparseGPT: what goes is made up for by what stays (Frantar and Alistarh 2023, arXiv 2301.00774).

A row's output error under calibration inputs X is (w - w')^T H (w - w') with H = X X^T. Columns are
gone through from left to right; those already passed are fixed. If column j loses a weight, the
best that the columns right of it can do is a known multiple of row j of U, the upper Cholesky
factor of H^-1:

    U[j, j:] = row j of (H[j:, j:])^-1, divided by the root of its first element
    w[j:]   -= (w_j - w'_j) / U[j, j] * U[j, j:]           cost of it:  w_j^2 / U[j, j]^2

so one factorization serves all columns, all rows, and all layers that read the same input.

Where kept weights are to be rounded (section 3.5 of the paper), w' is the rounded weight and the
same update makes up for rounding, too. The scale of a group is found when its first column's turn
comes, from the weights as they are then and the mask that they would have.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekern.formats.quantized import PER_ROW, find_scales, round_to
from prunekern.pruning.masks import kept_count, largest_mask, nm_mask, transposable_mask

BLOCK = 128  # columns whose unstructured mask is chosen together, before their own errors arrive
_RETRIES = 3


@dataclass(frozen=True)
class Rounding:
    """What kept weights are rounded to: see formats/quantized.py.

    Attributes:
        bits: Of a weight.
        group_size: Inputs that share a scale, or -1 for all of a row.
        dtype: Of the scales.
    """

    bits: int
    group_size: int
    dtype: torch.dtype


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
    rounding: Rounding | None = None,
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
        rounding: What kept weights are rounded to, for N:M; None leaves them as they are.

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

    def choose(scores: Tensor) -> Tensor:
        """Which of [columns, N] stay, for N:M."""
        scores = scores.t().contiguous()
        return (transposable_mask(scores) if transposable else nm_mask(scores, *nm)).t()

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
                out[group] |= ~choose(scores)
            target = piece[j].masked_fill(out[j], 0.0)
            if rounding is not None:
                size = K if rounding.group_size == PER_ROW else rounding.group_size
                if (start + j) % size == 0:
                    columns = slice(start + j, start + j + size)
                    scores = _costs(w[columns], factor.diagonal()[columns], gone[columns])
                    kept = w[columns].masked_fill(~choose(scores), 0.0)
                    scales = find_scales(kept.t(), rounding.bits, rounding.dtype).float()
                target = round_to(target[:, None], scales, rounding.bits)[:, 0] * scales
            errors[j] = (piece[j] - target) / u[j, j]
            piece[j:].addr_(u[j, j:], errors[j], alpha=-1)
            piece[j] = target
        w[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
    # The subtraction leaves rounding errors and -0.0 where a zero is meant.
    return w.masked_fill_(gone, 0.0).t().contiguous()


def _costs(weight: Tensor, diagonal: Tensor, gone: Tensor) -> Tensor:
    """w^2 / U_jj^2 of [columns, N], and -1 for what goes anyway."""
    return (weight / diagonal[:, None]).square().masked_fill(gone, -1.0)
