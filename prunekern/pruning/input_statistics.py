"""What calibration tells about inputs of Linear layers, once for all that read the same input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from prunekern.pruning.sparsegpt import inverse_factor


class InputNorms:
    """Root of the mean square of each input channel, float32."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.tokens = 0
        self._mean_square = torch.zeros(in_features, device=device)

    def add(self, x: Tensor) -> None:
        """Takes in x [tokens, K]."""
        self.tokens += len(x)
        share = len(x) / self.tokens
        self._mean_square.mul_(1 - share).add_(x.float().square().sum(0) / self.tokens)

    def norm(self, name: str) -> Tensor:
        """[K] float32, ||X_j||_2 by the root of the number of tokens.

        Raises:
            ValueError: An input was NaN or infinite; names the layer.
        """
        if not torch.isfinite(self._mean_square).all():
            raise ValueError(
                f"prune: {name} must have finite calibration inputs, got NaN or infinite"
            )
        return self._mean_square.sqrt()


class Hessian:
    """2 X^T X by the number of tokens, float32: K^2 numbers, the largest thing SparseGPT holds."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.tokens = 0
        self._hessian: Tensor | None = torch.zeros(in_features, in_features, device=device)
        self._factor: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor) -> None:
        """Takes in x [tokens, K]."""
        self.tokens += len(x)
        x = x.float()
        self._hessian.addmm_(x.t(), x, beta=1 - len(x) / self.tokens, alpha=2 / self.tokens)

    def factor(self, damping: float, name: str) -> tuple[Tensor, Tensor]:
        """See `inverse_factor`; factorized at the first call, for all layers of this input."""
        if self._factor is None:
            self._factor = inverse_factor(self._hessian, damping, name)
            self._hessian = None
        return self._factor


Statistic = InputNorms | Hessian


class AllHeard(Exception):
    """Raised by a hook when each layer of a window was heard: the rest need not be run."""


class InputStatistics:
    """Hooks on Linear layers that gather one statistic for each different input.

    q, k and v are given the same tensor, gate and up another: the first window shows which layers
    share, by identity of the tensor, and from then on one of them listens for all.

        with InputStatistics(modules, Hessian) as statistics:
            ...  # run windows, after each statistics.next_window()
        for statistic, names in statistics.groups(): ...
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        make: Callable[[int, torch.device], Statistic],
        stop: bool = False,
    ) -> None:
        """Hooks on `modules`; with `stop`, windows but the first may end early by `AllHeard`."""
        self._make = make
        self._stop = stop
        self._calls: Counter[str] = Counter()
        self._waiting: set[str] = set()
        self._modules = dict(modules)
        self._leaders = {name: name for name in modules}
        self._statistics: dict[str, Statistic] = {}
        self._seen: dict[str, Tensor] | None = {}
        self._hooks: dict[str, torch.utils.hooks.RemovableHandle] = {}

    def __enter__(self) -> InputStatistics:
        for name, module in self._modules.items():
            self._hooks[name] = module.register_forward_pre_hook(
                lambda _, args, name=name: self._listen(name, args[0])
            )
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks.values():
            hook.remove()
        self._seen = None

    def next_window(self) -> None:
        """Ends a window; after the first, layers that read another's input stop listening."""
        if self._seen is not None:
            self._seen = None
            for name, leader in self._leaders.items():
                if leader != name:
                    self._hooks[name].remove()
            # A layer that is skipped or run twice may be so otherwise in the next window.
            self._stop &= all(self._calls[name] == 1 for name in self._modules)
        self._waiting = set(self._leaders.values()) if self._stop else set()

    def groups(self) -> list[tuple[Statistic, list[str]]]:
        """Statistics, each with the layers that it stands for.

        Raises:
            ValueError: A layer had no input, as an expert that no token was sent to.
        """
        groups: dict[str, list[str]] = {}
        for name, leader in self._leaders.items():
            if leader not in self._statistics:
                raise ValueError(
                    f"prune: {name} must be run by the calibration text, got no tokens; use more "
                    "text, or leave it out of targets"
                )
            groups.setdefault(leader, []).append(name)
        return [(self._statistics.pop(leader), names) for leader, names in groups.items()]

    def _listen(self, name: str, x: Tensor) -> None:
        if self._seen is not None:
            self._calls[name] += 1
        if self._seen is not None and name not in self._statistics:
            for leader, other in self._seen.items():
                if other is x:
                    self._leaders[name] = leader
                    return
            self._seen[name] = x
        x = x.detach().flatten(0, -2)
        if name not in self._statistics:
            self._statistics[name] = self._make(x.shape[-1], x.device)
        self._statistics[name].add(x)
        if self._waiting:
            self._waiting.discard(name)
            if not self._waiting:
                raise AllHeard
