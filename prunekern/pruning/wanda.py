"""Wanda: a weight matters as much as it moves its output (Sun et al. 2023, arXiv 2306.11695)."""

from torch import Tensor


def wanda_scores(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2, to be ranked among the inputs j of one output row i.

    Rows have scales of their own: ranked over the whole matrix, the score is another, worse one.

    Args:
        weight: [N, K].
        input_norm: [K], the root of the sum (or, as the ranking is the same, mean) of squares of
            each input channel over all calibration tokens.

    Returns:
        [N, K] float32.
    """
    return weight.detach().float().abs() * input_norm.float()
