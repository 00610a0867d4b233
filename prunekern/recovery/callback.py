"""Recovery inside transformers' Trainer: it trains, the method keeps the model sparse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunekern.recovery.method import Method, count_strays
from prunekern.recovery.methods import method_of
from prunekern.recovery.state import load_state, save_state


class RecoverCallback(TrainerCallback):
    """Applies masks after each optimizer step and follows the method's schedule.

        Trainer(model, args, train_dataset=..., callbacks=[RecoverCallback("fixed")]).train()

    The Trainer's checkpoints hold the model as it is meanwhile, dense for "sr-ste" and "movement",
    and beside it what the method must know to go on; `resume_from_checkpoint` works. After
    training the model is pruned. If an error ends it, `callback.method.detach()` does that.

    Args:
        method: As of `prunekern.recover`, "lora" excepted: the Trainer makes its optimizer before
            a callback could add adapters.

    Raises:
        ValueError: No such method, or "lora".
    """

    def __init__(self, method: str | Method = "fixed") -> None:
        self.method = method_of(method)
        if self.method.name == "lora":
            raise ValueError(
                "RecoverCallback: method must be another than lora, whose adapters the Trainer's "
                "optimizer would not know; use prunekern.recover"
            )

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Takes hold of the model; where training is resumed, also of the method's own state."""
        self.method.attach(model, state.max_steps)
        if state.global_step:
            saved = load_state(_folder(args, state), self.method.settings())
            if saved is not None:
                self.method.load_state_dict(saved["method"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Follows the schedule."""
        self.method.before_step(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Adds the method's gradients, after clipping."""
        self.method.before_optimizer()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Applies the masks again."""
        self.method.after_optimizer()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts the method's state into the Trainer's checkpoint."""
        if state.is_world_process_zero:
            save_state(
                _folder(args, state), self.method.settings(), {"method": self.method.state_dict()}
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets go of the model, and makes sure that it is pruned."""
        self.method.detach()
        strays = count_strays(self.method.modules, self.method.masks)
        if strays:
            raise RuntimeError(f"RecoverCallback: pruned weights must be +0.0, got {strays} more")


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
