"""How long one layer takes in each storage: measured here, or modelled for a GPU that is not.

Modelled: `prunekern.compare.expected`, from counted work and data sheets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from prunekern.advice.candidates import Candidate
from prunekern.timing import DENSE_STORED, Stored, layer_seconds

Shape = tuple[int, int]  # (out_features, in_features)


@dataclass(frozen=True)
class Times:
    """Seconds of one layer.

    Attributes:
        seconds: (shape, tokens) -> storage -> seconds of y = x W^T.
        missing: Storages that have no model for the GPU.
    """

    seconds: Mapping[tuple[Shape, int], Mapping[Stored, float]]
    missing: tuple[str, ...] = ()

    def dense(self, shape: Shape, tokens: int) -> float:
        """Seconds of the dense layer."""
        return self.seconds[shape, tokens][DENSE_STORED]

    def best(
        self, shape: Shape, candidate: Candidate, shares: Mapping[int, float]
    ) -> tuple[str, dict[int, float]] | None:
        """The storage that takes the least share of dense's time, weighted over tokens.

        Args:
            shape: Of the layer.
            candidate: What its weight will be.
            shares: Tokens -> how much they count.

        Returns:
            (storage, tokens -> seconds); None where no storage of the candidate was timed.
        """
        found = []
        for kernel in candidate.storages:
            stored = Stored(kernel, candidate.sparsity)
            if all(stored in self.seconds[shape, tokens] for tokens in shares):
                seconds = {tokens: self.seconds[shape, tokens][stored] for tokens in shares}
                relative = sum(
                    share * seconds[tokens] / self.dense(shape, tokens)
                    for tokens, share in shares.items()
                )
                found.append((relative, kernel, seconds))
        return min(found)[1:] if found else None


def stored_of(candidates: Iterable[Candidate]) -> tuple[Stored, ...]:
    """All that must be timed to know the times of the candidates."""
    return tuple(
        dict.fromkeys(Stored(kernel, c.sparsity) for c in candidates for kernel in c.storages)
    )


def measured(
    shapes: Iterable[Shape],
    stored: Sequence[Stored],
    tokens: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    told: Callable[[float], None] = lambda share: None,
) -> Times:
    """Times layers of random weights on this machine; see `prunekern.timing.layer_seconds`."""
    seconds = {}
    shapes = list(dict.fromkeys(shapes))
    for done, shape in enumerate(shapes):
        for M, own in layer_seconds(shape, stored, tokens, dtype, device).items():
            seconds[shape, M] = own
        told((done + 1) / len(shapes))
    return Times(seconds)


def modelled(
    shapes: Iterable[Shape], stored: Sequence[Stored], tokens: Sequence[int], chip: str
) -> Times:
    """The same of a GPU in `prunekern.compare.roofline.CHIPS`, for 16-bit weights; not measured."""
    from prunekern.compare.expected import STORAGES, product
    from prunekern.compare.roofline import CHIPS

    known = [one for one in stored if one.kernel in STORAGES]
    seconds = {
        (shape, M): {
            one: product(CHIPS[chip], one.kernel, one.sparsity, M, *shape).seconds
            for one in (DENSE_STORED, *known)
        }
        for shape in dict.fromkeys(shapes)
        for M in tokens
    }
    return Times(seconds, tuple(sorted({one.kernel for one in stored} - set(STORAGES))))


def chip_of(name: str, who: str = "advise") -> str:
    """The key of `roofline.CHIPS` that begins with `name`.

    Raises:
        ValueError: There is none, or more than one.
    """
    from prunekern.compare.roofline import CHIPS

    found = [chip for chip in CHIPS if chip.lower().startswith(name.lower())]
    if name in CHIPS or len(found) == 1:
        return name if name in CHIPS else found[0]
    raise ValueError(f"{who}: chip must be one of {', '.join(CHIPS)}, got {name!r}")
