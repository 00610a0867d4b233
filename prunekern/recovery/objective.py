"""The loss of one batch: next token, and what the dense parent says of it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunekern.recovery.distill import LogitsLoss, hidden_loss


class Objective:
    """(1 - a) cross-entropy + a T^2 KL to the teacher + h times the error of hidden states.

    Args:
        teacher: Run as it is, without gradients; None for cross-entropy alone.
        weight: a.
        temperature: T.
        hidden: h.
    """

    def __init__(
        self, teacher: nn.Module | None, weight: float, temperature: float, hidden: float
    ) -> None:
        self.teacher, self.hidden = teacher, hidden
        self.weight, self.temperature = (0.0 if teacher is None else weight), temperature

    def __call__(self, model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
        """Scalars by the names of `report.Loss`.

        Args:
            model: A causal language model of transformers.
            tokens: int64 [batch, size].
        """
        states = self.teacher is not None and self.hidden > 0
        options: dict[str, Any] = {"use_cache": False, "output_hidden_states": states}
        wanted = None
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(tokens, **options)
        out = model(tokens, **options)
        total, entropy, divergence = LogitsLoss.apply(
            out.logits,
            tokens,
            None if wanted is None else wanted.logits,
            self.weight,
            self.temperature,
        )
        terms = {"total": total, "next_token": entropy}
        if wanted is not None:
            terms["teacher"] = divergence
        if states:
            terms["hidden"] = hidden_loss(out.hidden_states[1:], wanted.hidden_states[1:])
            terms["total"] = total + self.hidden * terms["hidden"]
        return terms


def autocast(dtype: torch.dtype | None, device: torch.device) -> Any:
    """Products in `dtype`, weights as they are; nothing where dtype is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
