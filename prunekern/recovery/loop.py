"""The training loop: forward, backward, clip, step, mask; checkpoints between steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekern.recovery.data import batch_of
from prunekern.recovery.interrupt import deferred_interrupt
from prunekern.recovery.method import Method
from prunekern.recovery.objective import Objective, autocast
from prunekern.recovery.report import Loss, Progress
from prunekern.recovery.schedule import learning_rate
from prunekern.recovery.settings import Training
from prunekern.recovery.state import save_state


class Loop:
    """One training of one model.

    Attributes:
        step: Optimizer steps done.
        losses: One a step.
        seconds: Spent in steps, over all calls of a resumed training.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        objective: Objective,
        optimizer: Optimizer,
        training: Training,
    ) -> None:
        self.model, self.method, self.objective = model, method, objective
        self.optimizer, self.training = optimizer, training
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.optimizer.zero_grad()  # what a caller may have left behind
        self.step, self.losses, self.seconds = 0, [], 0.0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def run(
        self,
        tokens: Tensor,
        folder: str | Path | None,
        settings: dict[str, Any],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        """Trains from `step` to the end.

        Args:
            tokens: int64 [count, size].
            folder: Of checkpoints, or None.
            settings: What a checkpoint must agree with.
            progress: Called after each step.

        Raises:
            KeyboardInterrupt: After Ctrl-C, when the step is done and saved.
            ValueError: The loss is NaN or infinite; that step is not made.
        """
        steps, every = self.training.steps, self.training.save_every
        first, begin, before = self.step, time.monotonic(), self.seconds
        with deferred_interrupt() as interrupt:
            while self.step < steps:
                self.losses.append(self._one_step(tokens))
                self.step += 1
                self.seconds = before + time.monotonic() - begin
                due = every is not None and self.step % every == 0
                if folder is not None and (due or interrupt.asked or self.step == steps):
                    save_state(folder, settings, self.state())
                if progress is not None:
                    pace = (time.monotonic() - begin) / (self.step - first)
                    left = pace * (steps - self.step)
                    progress(Progress(self.step, steps, self.losses[-1].total, left))
                if interrupt.asked:
                    raise KeyboardInterrupt

    def _one_step(self, tokens: Tensor) -> Loss:
        training = self.training
        self.method.before_step(self.step)
        sums: dict[str, float] = {}
        for part in range(training.accumulate):
            number = self.step * training.accumulate + part
            batch = batch_of(tokens, number, training.batch, training.seed).to(self.device)
            with autocast(training.autocast, self.device):
                terms = self.objective(self.model, batch)
            (terms["total"] / training.accumulate).backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item() / training.accumulate
        if not math.isfinite(sums["total"]):
            self.optimizer.zero_grad()
            raise ValueError(
                f"recover: loss must be finite, got {sums['total']} in step {self.step + 1}; "
                "a lower lr or a longer warmup may help"
            )
        if training.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, training.clip)
        self.method.before_optimizer()
        factor = learning_rate(self.step, training.steps, round(training.warmup * training.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_optimizer()
        return Loss(**sums)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "losses": [vars(loss) for loss in self.losses],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses = [Loss(**loss) for loss in state["losses"]]
        if self.step:
            self.method.before_step(self.step - 1)  # where the schedule stood
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


@contextmanager
def training_mode(model: nn.Module, gradient_checkpointing: bool) -> Iterator[None]:
    """Dropout on, and where asked for activations computed again in the backward pass."""
    was_training = model.training
    # transformers renamed it in the midst of release 5.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    model.train()
    if gradient_checkpointing:
        options = {f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(model, f"{kind}_checkpointing_enable")(**options)
    try:
        yield
    finally:
        if gradient_checkpointing:
            getattr(model, f"{kind}_checkpointing_disable")()
        model.train(was_training)
