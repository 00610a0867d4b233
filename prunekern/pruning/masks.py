"""Choosers: from scores to masks. True means kept. Counts are exact, results deterministic.

Among equal scores unstructured choosers keep the lower index. N:M keeps those that torch.topk picks
on the CPU, wherever the scores are. That is worth a sentence, because models that were once
quantized are full of ties: on q_proj and v_proj of SmolLM2-135M (4 bits) perplexity under 2:4 is
36.0 if the lower index stays, 30.3 if the higher does, and 33.0 with torch.topk.
"""

from __future__ import annotations

import itertools
import re

import torch
from torch import Tensor


def parse_pattern(pattern: str, who: str = "prune") -> tuple[int, int] | None:
    """(N, M) of "N:M", which keeps N of every M inputs; None for "unstructured".

    Raises:
        ValueError: Neither, or not 1 <= N <= M <= 32.
    """
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    n, m = (int(g) for g in match.groups()) if match else (0, 0)
    if not 1 <= n <= m <= 32:
        raise ValueError(
            f'{who}: pattern must be "unstructured" or "N:M" (N of M kept, 1 <= N <= M <= 32), '
            f"got {pattern!r}"
        )
    return n, m


def nm_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """The n largest of every m neighbours along K; a shorter group at the end keeps up to n.

    Args:
        scores: [N, K], no NaN.
        n: Kept of a group.
        m: Size of a group.

    Returns:
        Bool [N, K].
    """
    N, K = scores.shape
    padded = torch.nn.functional.pad(scores.cpu(), (0, -K % m), value=-torch.inf).view(N, -1, m)
    best = padded.topk(n, dim=-1).indices
    mask = torch.zeros_like(padded, dtype=torch.bool).scatter_(-1, best, True)
    return mask.view(N, -1)[:, :K].to(scores.device)


def _masks_of_a_block() -> Tensor:
    """Bool [90, 4, 4]: all with two kept in each row and each column."""
    pairs = [[i in pair for i in range(4)] for pair in itertools.combinations(range(4), 2)]
    blocks = torch.tensor(list(itertools.product(pairs, repeat=4)))
    return blocks[(blocks.sum(1) == 2).all(1)]


_BLOCK_MASKS = _masks_of_a_block()
_BLOCKS_AT_ONCE = 1 << 16  # 90 float64 scores each: 47 MB


def transposable_mask(scores: Tensor) -> Tensor:
    """2:4 along both dimensions: of each 4 x 4 block the best of all 90 masks that are.

    The best by the sum of scores kept, by trying all, so that it is exact; Hubara et al. 2021
    (arXiv 2102.08124) found it as a flow. At a ragged edge up to two of a shorter group stay. Among
    equal sums the first mask wins, in the order of the pairs of the first row, then the next.

    Args:
        scores: [N, K], no NaN, 0 or more.

    Returns:
        Bool [N, K]; W^T masked by its transpose is 2:4, too.
    """
    N, K = scores.shape
    padded = torch.nn.functional.pad(scores, (0, -K % 4, 0, -N % 4))
    rows, columns = padded.shape[0] // 4, padded.shape[1] // 4
    blocks = padded.view(rows, 4, columns, 4).transpose(1, 2).reshape(-1, 16)
    masks = _BLOCK_MASKS.to(scores.device).view(-1, 16)
    best = torch.cat(
        [(part.double() @ masks.double().t()).argmax(1) for part in blocks.split(_BLOCKS_AT_ONCE)]
    )
    chosen = masks[best].view(rows, columns, 4, 4).transpose(1, 2)
    return chosen.reshape(4 * rows, 4 * columns)[:N, :K].contiguous()


def largest_mask(scores: Tensor, keep: int) -> Tensor:
    """The `keep` largest of all scores, exactly that many.

    Args:
        scores: Any shape, no NaN.
        keep: 0 .. scores.numel().

    Returns:
        Bool, of the scores' shape.
    """
    flat = scores.flatten()
    if keep == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if keep == flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    # kthvalue selects in linear time and, unlike torch.quantile, for any number of elements.
    threshold = flat.kthvalue(flat.numel() - keep + 1).values
    mask = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    mask[ties[: keep - int(mask.sum())]] = True
    return mask.view_as(scores)


def kept_count(numel: int, sparsity: float) -> int:
    """How many of `numel` stay at this sparsity: the pruned count is rounded to the nearest."""
    return numel - round(numel * sparsity)


def layer_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Unstructured, the smallest of the whole matrix go. Bool [N, K]."""
    return largest_mask(scores, kept_count(scores.numel(), sparsity))


def row_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Unstructured, the smallest of each row go: every output keeps the same number of inputs."""
    keep = kept_count(scores.shape[1], sparsity)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :keep]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def quantile(values: Tensor, q: float) -> Tensor:
    """The q-quantile, interpolated as torch.quantile does, which refuses above 2^24 elements.

    Args:
        values: Any shape, not empty, no NaN.
        q: In [0, 1].
    """
    flat = values.flatten()
    rank = q * (flat.numel() - 1)
    below = int(rank)
    low = flat.kthvalue(below + 1).values
    if rank == below:
        return low
    return torch.lerp(low, flat.kthvalue(below + 2).values, rank - below)


def quantile_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Unstructured by a threshold: what reaches the layer's quantile stays, all ties with it.

    Unlike `layer_mask` it does not cut ties to an exact count, so that a layer of few different
    scores loses fewer weights than asked. Bool [N, K].
    """
    return scores >= quantile(scores, sparsity)


def choose_mask(
    scores: Tensor,
    nm: tuple[int, int] | None,
    sparsity: float,
    scope: str = "layer",
    transposable: bool = False,
) -> Tensor:
    """The mask of one layer.

    Args:
        scores: [N, K], no NaN.
        nm: (N, M) of the pattern, or None for unstructured.
        sparsity: For unstructured, the share that goes.
        scope: For unstructured, "layer", "row" or "quantile".
        transposable: For 2:4, whether its transpose is to be 2:4, too.

    Returns:
        Bool [N, K], True where kept.
    """
    if nm is not None:
        return transposable_mask(scores) if transposable else nm_mask(scores, *nm)
    return {"layer": layer_mask, "row": row_mask, "quantile": quantile_mask}[scope](
        scores, sparsity
    )


def global_threshold(all_scores: list[Tensor], sparsity: float) -> tuple[float, int]:
    """Score of the last kept weight over all layers, and how many of that very score are kept.

    Args:
        all_scores: Scores of each layer; any shapes.
        sparsity: Share of all weights that go.
    """
    flat = torch.cat([s.flatten() for s in all_scores])
    keep = kept_count(flat.numel(), sparsity)
    if keep == 0:
        return float("inf"), 0
    threshold = flat.kthvalue(flat.numel() - keep + 1).values
    return float(threshold), keep - int((flat > threshold).sum())


def threshold_mask(scores: Tensor, threshold: float, ties: int) -> tuple[Tensor, int]:
    """Scores above the threshold and the first `ties` equal to it; also how many ties are left."""
    flat = scores.flatten()
    mask = flat > threshold
    equal = (flat == threshold).nonzero().flatten()[:ties]
    mask[equal] = True
    return mask.view_as(scores), ties - equal.numel()
