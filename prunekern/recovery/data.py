"""Windows of tokens to train on, and which of them make up which batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunekern.pruning.calibration import calibration_windows

WINDOW = 512
_ALL = 1 << 40  # windows: more than any text has


def training_windows(
    model: nn.Module, data: Any, tokenizer: Any, windows: int | None, window: int | None
) -> Tensor:
    """int64 [count, size] on the CPU; see `recover` for the arguments.

    Raises:
        ValueError: As `prunekern.pruning.calibration.calibration_windows`.
    """
    if window is None and not isinstance(data, Tensor):
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or WINDOW
        window = min(WINDOW, limit)
    if windows is None and not isinstance(data, Tensor):
        windows = _ALL
    try:
        return calibration_windows(model, data, tokenizer, windows, window)
    except ValueError as error:
        message = str(error).replace("prune: calibration", "recover: data")
        raise ValueError(message.replace("prune: ", "recover: ", 1)) from error


def batch_of(tokens: Tensor, number: int, batch: int, seed: int) -> Tensor:
    """Batch `number` of an endless stream: one shuffled pass over all windows after the other.

    A function of its arguments alone, so that a resumed training goes on where it stopped.

    Args:
        tokens: int64 [count, size].
        number: Counted from 0.
        batch: Windows; may be more than there are.
        seed: Of the shuffles.

    Returns:
        int64 [batch, size].
    """
    count = len(tokens)
    picked: list[int] = []
    for place in range(number * batch, (number + 1) * batch):
        if not picked or place % count == 0:
            order = _order(count, place // count, seed)
        picked.append(order[place % count])
    return tokens[picked]


def _order(count: int, epoch: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(count, generator=generator).tolist()
