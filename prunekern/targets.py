"""Which Linear modules of a model are meant: names, suffixes, regular expressions, "all-linear"."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import nn

DEFAULT_TARGETS = ("q_proj", "v_proj")
ALL_LINEAR = "all-linear"


def is_linear(module: nn.Module) -> bool:
    """An nn.Linear; what a layer was before and after it is swapped is up to the caller."""
    return isinstance(module, nn.Linear)


def match_modules(
    model: nn.Module,
    targets: str | Sequence[str],
    who: str = "match_modules",
    accept: Callable[[nn.Module], bool] = is_linear,
) -> dict[str, nn.Module]:
    """Name -> module of what `targets` name, in the model's order; a shared module stands twice.

    Args:
        model: Any module.
        targets: "all-linear" (every accepted module but the output embedding), or one or more of:
            a name or its end at a dot ("q_proj", "layers.0.self_attn.q_proj"), or "re:" and a
            regular expression that matches the whole name.
        who: The caller, for messages.
        accept: Which modules may be meant.

    Raises:
        ValueError: A malformed target, or one that matches nothing: lists what there is.
    """
    patterns = _check_targets(targets, who)
    named = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name and accept(module)
    }
    head = _output_embedding(model)
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        hits = {
            name: module
            for name, module in named.items()
            if _matches(name, pattern) and not (pattern == ALL_LINEAR and module is head)
        }
        if not hits:
            raise ValueError(
                f"{who}: targets must match a Linear layer, got {pattern!r}; "
                f"there are {_summary(named)}"
            )
        found |= hits
    return {name: module for name, module in named.items() if name in found}


def _check_targets(targets: str | Sequence[str], who: str) -> list[str]:
    patterns = [targets] if isinstance(targets, str) else list(targets)
    if not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise ValueError(f"{who}: targets must be one or more names, got {targets!r}")
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise ValueError(
                    f"{who}: targets must hold valid regular expressions, got {pattern!r}: {error}"
                ) from None
    return patterns


def _matches(name: str, pattern: str) -> bool:
    if pattern == ALL_LINEAR:
        return name.rsplit(".", 1)[-1] != "lm_head"
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return name == pattern or name.endswith("." + pattern)


def _output_embedding(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    return get() if callable(get) else None


def _summary(named: dict[str, nn.Module]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in named})
    return ", ".join(ends[:12]) + (", ..." if len(ends) > 12 else "") if ends else "none at all"
