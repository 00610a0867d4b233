"""Taylor: a weight matters as much as the loss moves without it.

Molchanov et al. 2019, arXiv 1906.10771. To first order the loss of a window changes by w * g when
w goes. The sizes of that are averaged over windows: signed gradients of a trained model cancel,
whatever the weight does to each window.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def taylor_scores(weight: Tensor, gradient: Tensor) -> Tensor:
    """|w| * mean over windows of |g|.

    Args:
        weight: [N, K].
        gradient: [N, K], the mean size of the loss's gradient, see `mean_gradients`.

    Returns:
        [N, K] float32.
    """
    return weight.detach().float().abs() * gradient.float()


def mean_gradients(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    windows: Tensor,
    tick: Callable[[], None],
) -> dict[str, Tensor]:
    """Name -> [N, K] float32, mean over windows of |d loss / d w|.

    The loss is the mean negative log likelihood of a window's tokens but the first. One window is
    run at a time, and gradients exist for these weights only.

    Args:
        model: A causal language model: `model(ids, use_cache=False).logits`.
        weights: The parameters themselves.
        windows: int64 [count, size].
        tick: Called after each window.

    Raises:
        ValueError: No logits, a loss that is not finite or does not depend on one of the weights.
    """
    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        for window in windows:
            ids = window[None].to(next(model.parameters()).device)
            with torch.enable_grad():
                out = model(ids, use_cache=False)
                if not hasattr(out, "logits"):
                    raise ValueError(
                        f"prune: model must be a causal language model for taylor, got "
                        f"{type(model).__name__}, which has no logits"
                    )
                logits = out.logits[0, :-1].float()
                loss = nn.functional.cross_entropy(logits, ids[0, 1:].to(logits.device))
            if not torch.isfinite(loss):
                raise ValueError(f"prune: the calibration loss must be finite, got {loss.item()}")
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for (name, sums), gradient in zip(total.items(), gradients, strict=True):
                if gradient is None:
                    raise ValueError(
                        f"prune: {name} must take part in the model's logits to have a gradient, "
                        "got none; leave it out of targets"
                    )
                sums.add_(gradient.float().abs(), alpha=1 / len(windows))
            tick()
    finally:
        for parameter, required in asked.items():
            parameter.requires_grad_(required)
    return total
