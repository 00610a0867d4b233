"""The text in three parts: to calibrate on, to compare layers on, to judge by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunekern.compare.text import WINDOW, WINDOWS, read_text, token_windows

CALIBRATION_WINDOWS = 16
_COMPARED_TOKENS = 512  # in two windows: what each layer's candidates are compared on


@dataclass(frozen=True)
class Parts:
    """Windows of tokens, int64 [count, size].

    Attributes:
        calibration: The first ones: what a pruning method looks at.
        compared: In between: what one layer's pruning does is measured on these.
        held_out: The last ones, which decide whether a plan keeps its promise.
        name: Of the text.
        is_default: Whether it is the one that comes with Python.
    """

    calibration: Tensor
    compared: Tensor
    held_out: Tensor
    name: str
    is_default: bool


def parts_of(
    model: nn.Module, tokenizer: Any, text: str | Path | None, windows: int = CALIBRATION_WINDOWS
) -> Parts:
    """Cuts a text; without one, Python's own documentation, held out as `compare` does.

    Args:
        model: Its longest context bounds the windows.
        tokenizer: Of the model.
        text: Path of a UTF-8 file, or None.
        windows: For calibration at most.

    Raises:
        ValueError: The file can not be read, or is too short.
    """
    size = window_of(model)
    rest, held_out, name = _halves(tokenizer, text, size)
    calibration = rest[: min(windows, len(rest) - 1)]
    compared = rest[len(calibration) :].flatten()[-min(_COMPARED_TOKENS, size) :]
    return Parts(calibration, compared.view(2, -1), held_out, name, text is None)


def calibration_of(
    model: nn.Module, tokenizer: Any, text: str | Path | None, windows: int, size: int
) -> Tensor:
    """The calibration part alone, as `parts_of` cuts it.

    Raises:
        ValueError: No tokenizer, or a text that can not be read or is too short.
    """
    if tokenizer is None:
        raise ValueError("apply: tokenizer must be given for calibration text, got None")
    rest = _halves(tokenizer, text, size)[0]
    return rest[: min(windows, len(rest) - 1)]


def window_of(model: nn.Module) -> int:
    """Tokens of a window: 512, or the model's longest context, an even number."""
    longest = getattr(model.config, "max_position_embeddings", None) or WINDOW
    return min(WINDOW, longest) // 2 * 2


def digest_of(windows: Tensor | None) -> str:
    """A name for the tokens; "" for none."""
    return "" if windows is None else hashlib.sha256(windows.numpy().tobytes()).hexdigest()[:16]


def _halves(tokenizer: Any, text: str | Path | None, size: int) -> tuple[Tensor, Tensor, str]:
    """Windows to learn from, windows held out, and the text's name."""
    if text is None:
        from prunekern.pruning.calibration import calibration_windows
        from prunekern.recovery.texts import python_documentation

        documents, held_out = python_documentation(tokenizer, size=size)
        rest = calibration_windows(None, list(documents), tokenizer, 10_000, size)
        name = f"Python's own documentation, its last {len(held_out)} windows of {size} tokens"
        return rest, held_out, name
    found = token_windows(tokenizer, read_text(text), 10**6, size)
    if len(found) < 4:
        raise ValueError(
            f"advise: text must have at least {4 * size} tokens, got {len(found) * size}: a part "
            "each to calibrate on, to compare layers on and to judge by"
        )
    held = min(WINDOWS, len(found) // 2)
    name = f"{text}, its last {held} windows of {size} tokens"
    return found[:-held], found[-held:], name
