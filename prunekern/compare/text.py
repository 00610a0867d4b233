"""The text that perplexity is measured on, as windows of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WINDOW = 512  # tokens
WINDOWS = 16


def default_text() -> str:
    """Python's own documentation, which every Python has: all topics of pydoc, sorted by key."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


def read_text(path: str | Path | None) -> str:
    """A file's text, or the default one.

    Raises:
        ValueError: The file can not be read as UTF-8 text.
    """
    if path is None:
        return default_text()
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"compare: text must be a readable UTF-8 file, got {path}: {error}"
        ) from None


def token_windows(tokenizer: Any, text: str, windows: int = WINDOWS, size: int = WINDOW) -> Tensor:
    """The last `windows` windows of `size` tokens.

    Returns:
        int64 [windows, size]; fewer windows if the text is short.

    Raises:
        ValueError: There is not even one window.
    """
    ids = _ids(tokenizer, text)
    count = min(windows, len(ids) // size)
    if count == 0:
        raise ValueError(f"compare: text must have at least {size} tokens, got {len(ids)}")
    return ids[len(ids) - count * size :].view(count, size).to(torch.int64)


def calibration_windows(
    tokenizer: Any, text: str, windows: int = WINDOWS, size: int = WINDOW
) -> Tensor:
    """The first `windows` windows of `size` tokens, none of which `token_windows` returns.

    Returns:
        int64 [windows, size]; fewer windows if the text is short.

    Raises:
        ValueError: There is not one window besides those of `token_windows`.
    """
    ids = _ids(tokenizer, text)
    count = min(windows, len(ids) // size - windows)
    if count < 1:
        raise ValueError(
            f"compare: text must have at least {(windows + 1) * size} tokens to calibrate on what "
            f"perplexity is not measured on, got {len(ids)}"
        )
    return ids[: count * size].view(count, size).to(torch.int64)


def _ids(tokenizer: Any, text: str) -> Tensor:
    # Without a warning about texts beyond the model's context: it is cut into windows here.
    return tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
