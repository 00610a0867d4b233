"""Movement pruning on the cubic schedule, with plain descent of the scores: S = -sum(dL/dW' * W).

The formula and its autograd are `prunekern.pruning.movement`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from prunekern.pruning import MovementPruner
from prunekern.recovery.method import Method, linear_layers
from prunekern.recovery.schedule import Sparsity
from prunekern.targets import DEFAULT_TARGETS


class Movement(Method):
    """Learns which weights go while it trains, from a dense model.

    Scores are no parameters of the model's optimizer: only their order matters, which no learning
    rate changes. Meanwhile the targets are parametrized.

    Args:
        pattern: "unstructured", or "N:M" (N of M kept), which holds from the first step.
        sparsity: For unstructured, share of zeros in each layer at the end; 0.5 where left out.
        targets: See `prunekern.targets.match_modules`.
        warmup: Share of all steps before the first weight goes, in which scores are learned.
        cooldown: Share of all steps at the end with full sparsity.
    """

    name = "movement"

    def __init__(
        self,
        pattern: str = "unstructured",
        sparsity: float | None = None,
        targets: str | Sequence[str] = DEFAULT_TARGETS,
        warmup: float = 0.1,
        cooldown: float = 0.3,
    ) -> None:
        super().__init__(targets)
        self.sparsity = Sparsity(pattern, sparsity, warmup, cooldown)

    def attach(self, model: nn.Module, steps: int) -> None:
        """Scores of zero beside each target's weight.

        Raises:
            ValueError: A layer can not be trained.
        """
        self.steps = steps
        self.modules = linear_layers(model, self.targets, "recover")
        self._pruner = MovementPruner(model, self.sparsity.pattern, self.targets)
        self._scores = list(self._pruner.scores())
        self._moves = [torch.zeros_like(scores) for scores in self._scores]
        for scores, move in zip(self._scores, self._moves, strict=True):
            scores.register_post_accumulate_grad_hook(_into(move))

    def before_step(self, step: int) -> None:
        """Sparsity by the schedule; N:M has its own."""
        if self.sparsity.nm is None:
            self._pruner.set_sparsity(self.sparsity.at(step, self.steps))

    @torch.no_grad()
    def after_optimizer(self) -> None:
        """S -= dL/dS, for all of a step's batches at once, so that they see one mask."""
        for scores, move in zip(self._scores, self._moves, strict=True):
            scores.sub_(move)
            move.zero_()

    def detach(self) -> None:
        """Writes W * M(S) into the weights and takes the scores away."""
        self._pruner.finish()
        self.masks = {n: m.weight.detach() != 0 for n, m in self.modules.items()}

    def own_parameters(self) -> list[nn.Parameter]:
        """The scores."""
        return self._scores

    def settings(self) -> dict:
        """With the schedule."""
        return super().settings() | self.sparsity.settings()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Scores, and weights: a Trainer's checkpoint has these under names of the time when the
        model is parametrized, and is read when it is not.
        """
        return {
            name: {"scores": self._held(m)[0].scores, "weight": self._held(m).original}
            for name, m in self.modules.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """In place."""
        for name, module in self.modules.items():
            self._held(module)[0].scores.copy_(state[name]["scores"])
            self._held(module).original.copy_(state[name]["weight"])

    @staticmethod
    def _held(module: nn.Module) -> ParametrizationList:
        return module.parametrizations.weight


def _into(move: Tensor) -> Callable[[Tensor], None]:
    # Taken away at once: clipping by the norm of all gradients must not see those of scores.
    def take(scores: Tensor) -> None:
        move.add_(scores.grad)
        scores.grad = None

    return take
