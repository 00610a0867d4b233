"""An output embedding (lm_head) that shares its weight with the input embedding, told apart.

Pruning the shared weight would prune what tokens are looked up in, too. So a head that is a target
gets a weight of its own first, and memory then holds both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn


def tied_head(model: nn.Module) -> nn.Module | None:
    """The output embedding if its weight is that of the input embedding."""
    ends = []
    for get in ("get_output_embeddings", "get_input_embeddings"):
        find = getattr(model, get, None)
        ends.append(find() if callable(find) else None)
    head, embedding = ends
    if head is None or embedding is None or head is embedding:
        return None
    # In _parameters: of a compressed layer, `weight` would be made dense only to be compared.
    weight = head._parameters.get("weight")
    return head if weight is not None and weight is embedding._parameters.get("weight") else None


@contextlib.contextmanager
def untied(model: nn.Module, targets: Collection[nn.Module]) -> Iterator[None]:
    """Gives a tied head among `targets` a copy of the weight; tied again if what follows fails."""
    head = tied_head(model)
    if head is None or head not in targets:
        yield
        return
    shared = head.weight
    head.weight = nn.Parameter(shared.detach().clone(), shared.requires_grad)
    try:
        yield
    except BaseException:
        head.weight = shared
        raise
    forget_tie(model)


def forget_tie(model: nn.Module) -> None:
    """Makes transformers write the head and read it back, instead of tying it anew."""
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.tie_word_embeddings = False
    tied = getattr(model, "all_tied_weights_keys", None)
    if tied is not None:
        names = {id(module): name for name, module in model.named_modules()}
        tied.pop(f"{names[id(model.get_output_embeddings())]}.weight", None)
