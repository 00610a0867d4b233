"""How long one layer takes in each storage: measured here, or modelled for a GPU that is not.

Measured: all contenders take turns, over as many copies of the weight as fill what a cache would
leave of a model, and a time is that of the best turn: what a machine does besides only adds.
Modelled: `prunekern.compare.expected`, from counted work and data sheets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekern import formats
from prunekern.advice.candidates import DENSE, EXACT, ROUNDED, Candidate
from prunekern.nn import SparseLinear, count_broken_groups
from prunekern.pruning.masks import layer_mask, nm_mask
from prunekern.timing import seconds_of

FEW_TOKENS = 64  # up to which these are sequences that write a token each; above, a prompt is read
NOISE = 0.03  # a storage must be faster than dense by this share to count as faster
_COPIED_BYTES = 32e6  # of dense copies: none stays in a cache that a model would not leave it
_MOST_COPIES = 24
_CALLS = {True: 24, False: 2}  # few tokens or not -> calls of a turn
_ROUNDS = {True: 15, False: 5}  # and turns

Shape = tuple[int, int]  # (out_features, in_features)


@dataclass(frozen=True)
class Stored:
    """A storage and the share of zeros that it is to hold."""

    kernel: str
    sparsity: float


DENSE_STORED = Stored(DENSE, 0.0)


@dataclass(frozen=True)
class Times:
    """Seconds of one layer.

    Attributes:
        seconds: (shape, tokens) -> storage -> seconds of y = x W^T.
        chip: The GPU that it was modelled for, or "" where it was measured here.
        missing: Storages that have no model for that GPU.
    """

    seconds: Mapping[tuple[Shape, int], Mapping[Stored, float]]
    chip: str = ""
    missing: tuple[str, ...] = ()

    def best(
        self, shape: Shape, candidate: Candidate, weights: Mapping[int, float]
    ) -> tuple[str, dict[int, float]] | None:
        """The storage that saves most of a layer's time, tokens weighted; seconds by tokens.

        Args:
            shape: Of the layer.
            candidate: What its weight will be.
            weights: Tokens -> how much they count.

        Returns:
            None where no storage of the candidate was timed.
        """
        found = []
        for kernel in candidate.storages:
            stored = Stored(kernel, candidate.sparsity)
            if all(stored in self.seconds[shape, tokens] for tokens in weights):
                seconds = {tokens: self.seconds[shape, tokens][stored] for tokens in weights}
                relative = sum(
                    weight * seconds[tokens] / self.seconds[shape, tokens][DENSE_STORED]
                    for tokens, weight in weights.items()
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
    """Times layers of random weights on this machine.

    Args:
        shapes: Of the layers.
        stored: Contenders, besides dense.
        tokens: Rows of x.
        dtype: Of weights and x.
        device: Where they are.
        told: Called with the share done.
    """
    seconds = {}
    shapes = list(dict.fromkeys(shapes))
    for done, (N, K) in enumerate(shapes):
        size = N * K * torch.finfo(dtype).bits // 8
        copies = min(max(3, round(_COPIED_BYTES / size)), _MOST_COPIES)
        weight = torch.randn(N, K, generator=torch.Generator().manual_seed(0)) / K**0.5
        layers = {
            one: _copies(one, weight, dtype, device, copies) for one in (DENSE_STORED, *stored)
        }
        for M in tokens:
            x = torch.randn(M, K, generator=torch.Generator().manual_seed(M)).to(device, dtype)
            seconds[(N, K), M] = _take_turns(layers, x)
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
    missing = sorted({one.kernel for one in stored} - set(STORAGES))
    return Times(seconds, chip, tuple(missing))


def chip_of(name: str, who: str = "advise") -> str:
    """The key of `CHIPS` that begins with `name`.

    Raises:
        ValueError: There is none, or more than one.
    """
    from prunekern.compare.roofline import CHIPS

    found = [chip for chip in CHIPS if chip.lower().startswith(name.lower())]
    if name in CHIPS or len(found) == 1:
        return name if name in CHIPS else found[0]
    raise ValueError(f"{who}: chip must be one of {', '.join(CHIPS)}, got {name!r}")


def _take_turns(layers: Mapping[Stored, list[nn.Module]], x: Tensor) -> dict[Stored, float]:
    few = len(x) <= FEW_TOKENS
    calls = _CALLS[few]
    best = dict.fromkeys(layers, math.inf)
    for turn in range(_ROUNDS[few]):
        for one, copies in layers.items():
            first = turn * calls % len(copies)
            used = (copies[first:] + copies[:first])[:calls]
            best[one] = min(best[one], seconds_of(used, x) / len(used))
    return best


def _copies(
    stored: Stored, weight: Tensor, dtype: torch.dtype, device: torch.device, count: int
) -> list[nn.Module]:
    """Layers of one weight, each with memory of its own."""
    if stored.kernel == DENSE:
        return [_linear(weight.to(device, dtype, copy=True)) for _ in range(count)]
    scores = weight.abs()
    is_24 = stored.kernel == "2:4" or stored.kernel in ROUNDED
    mask = nm_mask(scores, 2, 4) if is_24 else layer_mask(scores, stored.sparsity)
    pruned = weight.masked_fill(~mask, 0.0).to(device, dtype)
    canonical = formats.compress(pruned, stored.kernel)
    return [SparseLinear(canonical) for _ in range(count)]


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


# ------------------------------------------------------------------------- kernel="auto"

_FEWEST_ZEROS = 0.1  # below, every storage is larger than dense or as large
_STEP = 0.05  # weights are timed as if their sparsity were a multiple of it
_KNOWN: dict[tuple, dict[str, float]] = {}  # what was timed in this process


def fastest_storage(weight: Tensor, tokens: int = 1) -> tuple[str, str]:
    """Which format runs a weight fastest here, as it is: its zeros are given.

    Args:
        weight: [N, K], on the device that it will run on.
        tokens: Rows of x.

    Returns:
        (format, ""), or ("dense", why).
    """
    zeros = 1 - weight.count_nonzero().item() / weight.numel()
    if zeros < _FEWEST_ZEROS:
        return DENSE, f"fewer than {_FEWEST_ZEROS:.0%} of its weights are zero; prune it first"
    rounded = min(max(round(zeros / _STEP) * _STEP, _STEP), 0.99)
    kernels = [k for k in EXACT if k != "2:4" or not count_broken_groups(weight)]
    key = (tuple(weight.shape), rounded, tuple(kernels), tokens, weight.dtype, weight.device)
    if key not in _KNOWN:
        stored = [Stored(kernel, rounded) for kernel in kernels]
        shape = tuple(weight.shape)
        times = measured([shape], stored, [tokens], weight.dtype, weight.device)
        found = times.seconds[shape, tokens]
        _KNOWN[key] = {one.kernel: found[DENSE_STORED] / found[one] for one in stored}
    kernel, factor = max(_KNOWN[key].items(), key=lambda item: item[1])
    if factor > 1 + NOISE:
        return kernel, ""
    return DENSE, (
        f"nothing is faster here at {tokens} token{'s' * (tokens > 1)} with {rounded:.0%} zeros: "
        f"{kernel} reaches {factor:.2f}x of dense"
    )


def check_tokens(tokens: int, who: str) -> None:
    """Raises ValueError unless `tokens` is a positive whole number."""
    if type(tokens) is not int or tokens < 1:
        raise ValueError(f"{who}: tokens must be a whole number of 1 or more, got {tokens!r}")
