"""How a training runs, checked before anything is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Training:
    """The numbers of `recover`; see there."""

    steps: int
    batch: int
    accumulate: int
    lr: float
    warmup: float
    clip: float | None
    autocast: torch.dtype | None
    gradient_checkpointing: bool
    seed: int
    save_every: int | None
    teacher_weight: float
    temperature: float
    hidden_weight: float

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"recover: {name} must be 1 or more, got {value!r}")
        if self.save_every is not None and (
            type(self.save_every) is not int or self.save_every < 1
        ):
            raise ValueError(f"recover: save_every must be 1 or more, got {self.save_every!r}")
        for name in ("lr", "temperature"):
            value = getattr(self, name)
            if not (0 < value < math.inf):
                raise ValueError(f"recover: {name} must be above 0, got {value}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"recover: clip must be above 0 or None, got {self.clip}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"recover: warmup must be a share in [0, 1), got {self.warmup}")
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(
                f"recover: teacher_weight must be in [0, 1], got {self.teacher_weight}"
            )
        if not 0 <= self.hidden_weight < math.inf:
            raise ValueError(f"recover: hidden_weight must be 0 or more, got {self.hidden_weight}")
        if self.autocast not in (None, torch.bfloat16):
            raise ValueError(
                "recover: autocast must be torch.bfloat16 or None (float16 would need its "
                f"gradients scaled), got {self.autocast}"
            )

    def for_checkpoint(self) -> dict:
        """What a checkpoint must agree with to be continued; JSON-able."""
        same = {k: v for k, v in vars(self).items() if k not in ("save_every", "autocast")}
        return same | {"autocast": str(self.autocast)}
