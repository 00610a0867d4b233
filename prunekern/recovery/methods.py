"""The methods by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from prunekern.recovery.gradual import Gradual
from prunekern.recovery.masks import FixedMask
from prunekern.recovery.method import Method
from prunekern.recovery.movement import Movement
from prunekern.recovery.srste import SrSte

NAMES = ("fixed", "sr-ste", "movement", "gradual", "lora")
# Those that choose masks while they train start from a dense model.
PRUNES = (SrSte, Movement, Gradual)


class NoMask(Method):
    """Trains everything and prunes nothing: a dense model to compare with."""

    name = "none"

    def attach(self, model: nn.Module, steps: int) -> None:
        """Nothing to hold."""

    def detach(self) -> None:
        """Nothing to let go."""


def lora(targets: str | Sequence[str] | None = None, rank: int = 16, alpha: float | None = None):
    """A `prunekern.recovery.lora.Lora`.

    Raises:
        ValueError: peft is not installed.
    """
    try:
        from prunekern.recovery.lora import Lora
    except ImportError as error:
        raise ValueError(
            f"recover: peft must be installed for lora, got {error}; pip install peft"
        ) from error
    return Lora(targets, rank, alpha)


def method_of(method: str | Method | None) -> Method:
    """A method by its name, with its defaults; one that was made already as it is.

    Raises:
        ValueError: No such name, or peft is missing for "lora".
    """
    if method is None:
        return NoMask()
    if isinstance(method, Method):
        return method
    makers = {"fixed": FixedMask, "sr-ste": SrSte, "movement": Movement, "gradual": Gradual}
    makers["lora"] = lora
    if method not in NAMES:
        raise ValueError(f"recover: method must be one of {', '.join(NAMES)}, got {method!r}")
    return makers[method]()
