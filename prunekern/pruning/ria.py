"""RIA: relative importance and activations (Zhang et al. 2024, ICLR, "Plug-and-Play")."""

from torch import Tensor


def ria_scores(weight: Tensor, input_norm: Tensor) -> Tensor:
    """(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||X_j||_2 ** 0.5.

    A channel all of whose weights are small keeps its largest, where Wanda may empty it.

    Args:
        weight: [N, K].
        input_norm: [K], see `wanda_scores`.

    Returns:
        [N, K] float32.
    """
    size = weight.detach().float().abs()
    # An empty row or column has only zeros to rank: 0 / tiny is 0, where 0 / 0 is NaN.
    tiny = 1e-38
    column = size.sum(0, keepdim=True).clamp_min(tiny)
    row = size.sum(1, keepdim=True).clamp_min(tiny)
    return (size / column + size / row) * input_norm.float().sqrt()
