"""Distillation: the pruned model learns what the dense one says, not only the next token.

Loss of one window of tokens x_1 .. x_S with logits s_i, the teacher's t_i:

    (1 - a) mean -log softmax(s_i)[x_{i+1}]  +  a T^2 mean KL(softmax(t_i / T) || softmax(s_i / T))

over i < S: the last position has no next token to be right about, so it counts in neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 64  # logits of so many tokens are in memory in float32 at a time: 12 MB of 49152 each


class LogitsLoss(torch.autograd.Function):
    """The loss above, mean over windows, and its parts.

    Written out, because autograd would keep ten float32 tensors as large as the logits, which are
    the largest tensors of a small model: here there is one, their gradient, in their own dtype.
    """

    @staticmethod
    def forward(
        ctx,
        student: Tensor,
        tokens: Tensor,
        teacher: Tensor | None = None,
        weight: float = 0.0,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total, cross-entropy and T^2 KL, float32 scalars; the last two carry no gradient.

        Args:
            ctx: Of autograd.
            student: Logits [batch, size, vocabulary].
            tokens: int64 [batch, size].
            teacher: Logits of the same shape, or None.
            weight: a.
            temperature: T.
        """
        if teacher is not None and student.shape != teacher.shape:
            raise ValueError(
                f"recover: teacher must have logits {list(student.shape)}, "
                f"got {list(teacher.shape)}"
            )
        batch, size, _ = student.shape
        count = batch * (size - 1)
        entropy, divergence = torch.zeros(2, device=student.device)
        grad = torch.zeros_like(student)
        for window in range(batch):
            for start in range(0, size - 1, _ROWS):
                rows = slice(start, min(start + _ROWS, size - 1))
                own = student[window, rows].float()
                target = tokens[window, rows.start + 1 : rows.stop + 1, None]
                log_p = F.log_softmax(own, dim=-1)
                entropy -= log_p.gather(1, target).sum()
                slope = log_p.exp()
                slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
                if teacher is not None:
                    if temperature != 1:
                        log_p = F.log_softmax(own / temperature, dim=-1)
                    log_q = F.log_softmax(teacher[window, rows].float() / temperature, dim=-1)
                    q = log_q.exp()
                    divergence += (q * log_q.sub_(log_p)).sum() * temperature**2
                    slope.mul_(1 - weight).add_(log_p.exp_().sub_(q), alpha=weight * temperature)
                grad[window, rows] = slope.div_(count)
        ctx.save_for_backward(grad)
        entropy, divergence = entropy / count, divergence / count
        total = (1 - weight) * entropy + weight * divergence
        ctx.mark_non_differentiable(entropy, divergence)
        return total, entropy, divergence

    @staticmethod
    def backward(ctx, outer: Tensor, *parts: Tensor) -> tuple:
        """Logits get the gradient that forward worked out."""
        (grad,) = ctx.saved_tensors
        return grad * outer.to(grad.dtype), None, None, None, None


def distillation_loss(
    student: Tensor,
    tokens: Tensor,
    teacher: Tensor | None = None,
    weight: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """The loss above (Hinton et al. 2015, arXiv 1503.02531; T^2 keeps gradients of one size).

    Args:
        student: Logits [batch, size, vocabulary], any float dtype; summed in float32.
        tokens: int64 [batch, size], what the logits were made from.
        teacher: Logits of the same shape, no gradient flows into them; None for cross-entropy.
        weight: a, of the teacher; without one it does not count.
        temperature: T, above 0.

    Returns:
        Nats a predicted token, mean over all windows; float32 scalar.

    Raises:
        ValueError: The teacher's logits have another shape.
    """
    weight = 0.0 if teacher is None else weight
    return LogitsLoss.apply(student, tokens, teacher, weight, temperature)[0]


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over layers of |student - teacher|^2 / |teacher|^2: layers of large states, as the last
    ones are, weigh no more than others.

    Args:
        student: Hidden states [batch, size, width] after each layer.
        teacher: As many of the same shapes.

    Raises:
        ValueError: They have not.
    """
    shapes = [[list(state.shape) for state in states] for states in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"recover: teacher must have hidden states {shapes[0]}, got {shapes[1]}")
    terms = [
        (own.float() - wanted.detach().float()).square().sum()
        / wanted.detach().float().square().sum().clamp_min(torch.finfo(torch.float32).tiny)
        for own, wanted in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()
