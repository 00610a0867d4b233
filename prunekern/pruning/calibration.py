"""Calibration text as windows of tokens, whatever form it comes in."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# A context of 131072 tokens, as some configs have, fills memory with one window and waits for
# documents that no corpus has; statistics gain nothing from it.
MAX_WINDOW = 2048
DEFAULT_WINDOWS = 128
_CHARACTERS_A_TOKEN = 32  # more than text has on average: what is read of a long document at first
_KINDS = "the path of a UTF-8 text file, texts, a dataset with the column 'text', or token ids"


def calibration_windows(
    model: nn.Module,
    source: Any,
    tokenizer: Any = None,
    windows: int | None = None,
    window: int | None = None,
) -> Tensor:
    """The first `windows` windows of the source, documents laid end to end.

    Documents are joined by the tokenizer's end-of-text token, unless it opens each with a
    beginning-of-text token; no more of them are read than needed.

    Args:
        model: Its config bounds window and token ids, where it has one.
        source: A path; or an iterable of texts, of rows with "text" (a split of a dataset) or of
            token ids; or token ids as a tensor, [count, size] (windows, kept as they are if no
            `window` is named) or [tokens].
        tokenizer: Needed for text.
        windows: At most so many; 128 where left out, all of a tensor.
        window: Tokens of each; where left out 2048, or the model's longest if that is less. More
            is capped to it with a warning.

    Returns:
        int64 [count, size], count at least 1.

    Raises:
        ValueError: Another kind of source, no tokenizer for text, an unreadable file, less than
            one window, or ids beyond the vocabulary.
    """
    for name, value in (("windows", windows), ("window", window)):
        if value is not None and (type(value) is not int or value < (2 if name == "window" else 1)):
            least = "2 or more tokens" if name == "window" else "1 or more"
            raise ValueError(f"prune: {name} must be {least}, got {value!r}")
    config = getattr(model, "config", None)
    limit = min(MAX_WINDOW, getattr(config, "max_position_embeddings", None) or MAX_WINDOW)
    if window is not None and window > limit:
        warnings.warn(f"prune: window is capped to {limit} tokens, got {window}", stacklevel=3)
    size = min(window or limit, limit)
    if isinstance(source, Tensor):
        result = _cut_tensor(source, windows, window, size, limit)
    else:
        needed = (windows or DEFAULT_WINDOWS) * size
        result = _cut(_joined(_documents(source, tokenizer, needed), tokenizer, needed), size)
    vocabulary = getattr(config, "vocab_size", None)
    if result.min() < 0 or (vocabulary and result.max() >= vocabulary):
        raise ValueError(
            f"prune: calibration must have token ids from 0 to {vocabulary and vocabulary - 1}, "
            f"got {int(result.min())} to {int(result.max())}; is it this model's tokenizer?"
        )
    return result


def _cut_tensor(
    ids: Tensor, windows: int | None, window: int | None, size: int, limit: int
) -> Tensor:
    if ids.is_floating_point() or ids.is_complex() or ids.dim() not in (1, 2):
        raise ValueError(
            "prune: calibration must be integer token ids [count, size] or [tokens], "
            f"got {ids.dtype} {list(ids.shape)}"
        )
    ids = ids.detach().cpu().to(torch.int64)
    fits = ids.dim() == 2 and 2 <= ids.shape[1] <= limit and window in (None, ids.shape[1])
    rows = ids if fits and len(ids) else _cut(ids.flatten(), size)
    return rows[:windows].contiguous()


def _cut(ids: Tensor, size: int) -> Tensor:
    count = len(ids) // size
    if count == 0:
        raise ValueError(
            f"prune: calibration must have at least {size} tokens, got {len(ids)}; "
            "give more text or a smaller window="
        )
    return ids[: count * size].view(count, size)


def _documents(source: Any, tokenizer: Any, needed: int) -> Iterator[list[int]]:
    """The token ids of each document."""
    if isinstance(source, str | Path):
        yield _ids(tokenizer, _read(source), needed)
        return
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        hint = "; name one split of the dataset" if isinstance(source, Mapping) else ""
        raise ValueError(f"prune: calibration must be {_KINDS}, got {type(source).__name__}{hint}")
    for item in source:
        if isinstance(item, Mapping):
            item = item.get("text")
        if isinstance(item, str):
            yield _ids(tokenizer, item, needed)
        elif isinstance(item, Tensor) and not item.is_floating_point():
            yield item.flatten().tolist()
        elif isinstance(item, list | tuple) and all(type(i) is int for i in item):
            yield list(item)
        else:
            raise ValueError(
                f"prune: calibration must be {_KINDS}, got an item of {type(item).__name__}"
            )


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        shown = str(path) if len(str(path)) < 200 else f"{str(path)[:60]}..."
        raise ValueError(
            f"prune: calibration must be {_KINDS}, got {shown!r}, which can not be read "
            f"({type(error).__name__}); a text itself goes into a list"
        ) from None


def _ids(tokenizer: Any, text: str, needed: int) -> list[int]:
    if tokenizer is None:
        raise ValueError("prune: tokenizer must be given with calibration text, got None")
    # The beginning is enough where the text is long: a gigabyte takes minutes to tokenize.
    head = text[: needed * _CHARACTERS_A_TOKEN]
    ids = tokenizer(head, verbose=False)["input_ids"]
    if len(ids) <= needed and len(head) < len(text):
        ids = tokenizer(text, verbose=False)["input_ids"]
    return list(ids)


def _joined(documents: Iterator[list[int]], tokenizer: Any, needed: int) -> Tensor:
    """The first `needed` tokens of all documents."""
    end = getattr(tokenizer, "eos_token_id", None)
    start = getattr(tokenizer, "bos_token_id", None)
    ids: list[int] = []
    for document in documents:
        if ids and document and end is not None and document[0] != start:
            ids.append(end)
        ids += document
        if len(ids) >= needed:
            break
    return torch.tensor(ids[:needed], dtype=torch.int64)
