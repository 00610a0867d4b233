"""Magnitude: a weight matters as much as it is large (Han et al. 2015, arXiv 1506.02626)."""

from torch import Tensor


def magnitude_scores(weight: Tensor) -> Tensor:
    """|w|, in float32: bfloat16 keeps too few bits to tell close scores from equal ones.

    Args:
        weight: [N, K].

    Returns:
        [N, K] float32.
    """
    return weight.detach().float().abs()
