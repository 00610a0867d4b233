"""The dense parent that a pruned model learns from."""

from __future__ import annotations

import copy

from torch import nn

from prunekern.recovery.method import Method
from prunekern.recovery.methods import PRUNES


def find_teacher(
    model: nn.Module, teacher: nn.Module | str | None, method: Method
) -> nn.Module | None:
    """The teacher in evaluation mode; see `recover`.

    Raises:
        ValueError: Neither a model, "dense" nor None; the model itself; one of another vocabulary;
            or "dense" where the parent is not known.
    """
    if teacher is None:
        return None
    if teacher is model:
        raise ValueError(
            "recover: teacher must be another model, got the one to train; copy.deepcopy it first"
        )
    if isinstance(teacher, nn.Module):
        sizes = [getattr(getattr(m, "config", None), "vocab_size", None) for m in (model, teacher)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"recover: teacher must have the model's vocabulary of {sizes[0]}, got {sizes[1]}"
            )
        return teacher.eval()
    if teacher != "dense":
        raise ValueError(f'recover: teacher must be a model, "dense" or None, got {teacher!r}')
    if isinstance(method, PRUNES):
        return copy.deepcopy(model).eval()
    return _load_parent(model)


def _load_parent(model: nn.Module) -> nn.Module:
    from transformers import AutoModelForCausalLM

    origin = getattr(model, "name_or_path", "")
    advice = "pass the dense model itself as teacher"
    if not origin:
        raise ValueError(
            "recover: teacher must be loadable from where the model came from, got a model that "
            f"does not say; {advice}"
        )
    weight = next(model.parameters())
    try:
        parent = AutoModelForCausalLM.from_pretrained(
            origin, local_files_only=True, dtype=weight.dtype
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"recover: teacher must be loadable from {origin}, got {error}; {advice}"
        ) from error
    return parent.to(weight.device).eval()
