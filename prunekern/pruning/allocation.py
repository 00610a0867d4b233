"""How sparse each layer becomes: one share for all, a share a layer, or by outliers (OWL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

OUTLIER = 5.0  # times the mean score: the authors' choice for Llama
SPREAD = 0.08  # of sparsity around the mean, likewise


def check_sparsity(
    sparsity: float | Mapping[str, float] | None, nm: tuple[int, int] | None, pattern: str
) -> float | Mapping[str, float]:
    """The sparsity that is meant, where it can be told without the model.

    Raises:
        ValueError: Outside [0, 1), or not that of the pattern.
    """
    if nm is None:
        sparsity = 0.5 if sparsity is None else sparsity
        shares = sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]
        for share in shares:
            if not 0 <= share < 1:
                raise ValueError(f"prune: sparsity must be in [0, 1), got {share}")
        return sparsity
    own = 1 - nm[0] / nm[1]
    if isinstance(sparsity, Mapping) or (sparsity is not None and abs(sparsity - own) > 1e-9):
        raise ValueError(
            f"prune: sparsity of {pattern} must be {own:g} or left out, got {sparsity}"
        )
    return own


def sparsity_of_each(
    sparsity: float | Mapping[str, float], names: Sequence[str]
) -> dict[str, float]:
    """Layer -> sparsity.

    Args:
        sparsity: For all; or by name or its end at a dot, of which the longest that fits counts.
        names: Of the layers.

    Raises:
        ValueError: A layer that no key names, or a key that names no layer.
    """
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(names, float(sparsity))
    advice = "; 0 leaves a layer as it is"
    return {name: float(s) for name, s in _of_each("sparsity", sparsity, names, advice).items()}


def pattern_of_each(pattern: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Layer -> pattern; see `sparsity_of_each`.

    Raises:
        ValueError: A layer that no key names, or a key that names no layer.
    """
    return _of_each("pattern", pattern, names)


def _of_each(what: str, given: Mapping[str, Any], names: Sequence[str], advice: str = "") -> dict:
    """Layer -> what is given for the longest key that is its name or the end of it at a dot."""
    result, used = {}, set()
    for name in names:
        keys = [key for key in given if name == key or name.endswith(f".{key}")]
        if not keys:
            raise ValueError(f"prune: {what} must name every target, got none for {name}{advice}")
        used.update(keys)
        result[name] = given[max(keys, key=len)]
    for key in given:
        if key not in used:
            raise ValueError(
                f"prune: {what} must name targets only, got {key!r}, which is none of them"
            )
    return result


def outlier_share(scores: Sequence[Tensor]) -> float:
    """Share of Wanda's scores of one decoder layer above five times their mean.

    Args:
        scores: Of each of its Linear layers, [N, K].
    """
    count = sum(s.numel() for s in scores)
    mean = sum(s.double().sum().item() for s in scores) / count
    return sum((s > OUTLIER * mean).sum().item() for s in scores) / count


def owl_sparsities(
    shares: Mapping[int, float], sizes: Mapping[int, int], sparsity: float
) -> dict[int, float]:
    """Decoder layer -> sparsity: the more outliers, the less goes (Yin et al. 2023, 2310.05175).

    The outlier shares are stretched to a range of 2 * 0.08 and moved so that the mean over weights
    is `sparsity`; the range is narrower where it would leave [0, 1).

    Args:
        shares: Decoder layer -> `outlier_share`.
        sizes: Decoder layer -> number of weights.
        sparsity: Of all of them together.
    """
    keys = list(shares)
    value = torch.tensor([shares[k] for k in keys], dtype=torch.float64)
    weight = torch.tensor([sizes[k] for k in keys], dtype=torch.float64)
    span = value.max() - value.min()
    if span == 0 or sparsity == 0:
        return dict.fromkeys(keys, sparsity)
    shift = (value - (value * weight).sum() / weight.sum()) * (2 * SPREAD / span)
    # Below 1 by a hair: a layer without weights passes nothing on.
    room = min(1.0, sparsity / shift.max().item(), (0.999 - sparsity) / -shift.min().item())
    return {k: sparsity - max(room, 0.0) * s for k, s in zip(keys, shift.tolist(), strict=True)}
