"""Recovery: training that gives a pruned model back what pruning took, and keeps it pruned.

A method (`FixedMask`, `SrSte`, `Movement`, `Gradual`, `lora`) holds the masks and is told of each
step; the loop trains. With transformers' own Trainer, `RecoverCallback` tells the method.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from prunekern.recovery.data import training_windows
from prunekern.recovery.distill import distillation_loss, hidden_loss
from prunekern.recovery.gradual import Gradual
from prunekern.recovery.loop import Loop, training_mode
from prunekern.recovery.masks import FixedMask
from prunekern.recovery.method import Method, count_strays
from prunekern.recovery.methods import lora, method_of
from prunekern.recovery.movement import Movement
from prunekern.recovery.objective import Objective
from prunekern.recovery.plot import plot_losses
from prunekern.recovery.report import Loss, Progress, RecoveredLayer, RecoverReport
from prunekern.recovery.settings import Training
from prunekern.recovery.srste import SrSte
from prunekern.recovery.state import load_state
from prunekern.recovery.teacher import find_teacher

if TYPE_CHECKING:
    from prunekern.recovery.callback import RecoverCallback

__all__ = [
    "FixedMask",
    "Gradual",
    "Loss",
    "Method",
    "Movement",
    "Progress",
    "RecoverCallback",
    "RecoverReport",
    "RecoveredLayer",
    "SrSte",
    "distillation_loss",
    "hidden_loss",
    "lora",
    "plot_losses",
    "recover",
]


def __getattr__(name: str) -> Any:
    # It derives from a class of transformers, which takes seconds to import.
    if name == "RecoverCallback":
        return importlib.import_module("prunekern.recovery.callback").RecoverCallback
    raise AttributeError(f"module 'prunekern.recovery' has no attribute {name!r}")


def recover(
    model: nn.Module,
    data: Any,
    method: str | Method | None = "fixed",
    *,
    tokenizer: Any = None,
    windows: int | None = None,
    window: int | None = None,
    steps: int = 128,
    batch: int = 2,
    accumulate: int = 1,
    optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    lr: float = 1e-4,
    warmup: float = 0.05,
    clip: float | None = 1.0,
    teacher: nn.Module | str | None = None,
    teacher_weight: float = 0.5,
    temperature: float = 1.0,
    hidden_weight: float = 0.0,
    autocast: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    save_every: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> RecoverReport:
    """Fine-tunes a pruned model, in place, and keeps it pruned.

        prunekern.prune(model, pattern="2:4", targets="all-linear")
        prunekern.recover(model, texts, tokenizer=tokenizer, teacher=dense)

    Every parameter that requires a gradient is trained. Afterwards pruned weights are +0.0 to the
    bit, which is checked, and `replace_linears` takes the model as it is. Ctrl-C waits for the end
    of a step, writes the checkpoint if there is one, and leaves the model pruned.

    Args:
        model: A causal language model of transformers, in float32 for updates as small as these.
        data: What `prunekern.prune` takes for calibration: a text file, texts, a dataset with
            "text", or token ids, int64 [count, size].
        method: "fixed" (zeros stay where they are), "lora" (the same, adapters only), and for a
            dense model "sr-ste", "movement" or "gradual", which choose while they train; or one of
            these made with options, such as `SrSte("2:4", targets="all-linear")`. None trains
            without masks: a dense model to compare with, or one whose layers were swapped with
            `trainable=True` and keep their own zeros.
        tokenizer: Needed for text.
        windows: At most so many windows of the data; all of it where left out.
        window: Tokens of each; 512 where left out.
        steps: Of the optimizer.
        batch: Windows of a forward pass.
        accumulate: Forward passes of a step.
        optimizer: An optimizer, or what makes one from parameters; AdamW where left out. "lora"
            takes no instance, as its parameters are made here.
        lr: Of that AdamW; what you pass has its own. It rises, then follows half a cosine to 0.
        warmup: Share of the steps in which the learning rate rises.
        clip: Largest norm of all gradients together, or None.
        teacher: The dense parent; or "dense": a copy of the model as it is where the method prunes
            while it trains, else loaded anew from where the model came from (a folder or the
            cache, never the network). Put into evaluation mode.
        teacher_weight: Of the divergence from the teacher, in [0, 1]; cross-entropy has the rest.
        temperature: Of that divergence.
        hidden_weight: Of the relative squared error of hidden states, beside the teacher's.
        autocast: torch.bfloat16 computes products in it; None in the model's own dtype.
        gradient_checkpointing: Keeps the input of each decoder layer only and computes the rest
            again: less memory, a third more time.
        seed: Of the order of windows, of dropout and of adapters.
        checkpoint: Folder. If it has a checkpoint of the same training on the same data, that is
            continued, to the bit as if it had never stopped; the model must be pruned as it was.
        save_every: Steps between checkpoints; where left out there is one at the end and at Ctrl-C.
        progress: Called after each step.

    Returns:
        Losses, time, and what is sparse.

    Raises:
        ValueError: An argument is not one of the above, a layer is not pruned yet, or the
            checkpoint is of another training: the model is then as it was. Or a loss that is NaN
            or infinite, which leaves the model pruned and trained up to there.
        KeyboardInterrupt: After Ctrl-C.
    """
    training = Training(
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        lr=lr,
        warmup=warmup,
        clip=clip,
        autocast=autocast,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
        save_every=save_every,
        teacher_weight=teacher_weight,
        temperature=temperature,
        hidden_weight=hidden_weight,
    )
    if save_every is not None and checkpoint is None:
        raise ValueError("recover: checkpoint must be a folder where save_every is given, got None")
    rule = method_of(method)
    if rule.name == "lora" and isinstance(optimizer, Optimizer):
        raise ValueError(
            "recover: optimizer must be a function of parameters for lora, got an instance of "
            f"{type(optimizer).__name__}, which can not know the adapters"
        )
    if hidden_weight > 0 and teacher is None:
        raise ValueError(f"recover: hidden_weight must be 0 without a teacher, got {hidden_weight}")
    if rule.name != "lora" and not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "recover: model must have parameters that require gradients, got none; "
            "call model.requires_grad_()"
        )
    tokens = training_windows(model, data, tokenizer, windows, window)
    settings = training.for_checkpoint() | {
        "rule": rule.settings(),
        "optimizer": _name(optimizer),
        "teacher": teacher is not None,
        "window": tokens.shape[1],
        "data": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
    }
    saved = load_state(checkpoint, settings) if checkpoint is not None else None
    parent = find_teacher(model, teacher, rule)
    if next(model.parameters()).dtype in (torch.bfloat16, torch.float16):
        warnings.warn(
            f"recover: weights are {next(model.parameters()).dtype}, whose steps are coarser than "
            "most updates; model.float() and autocast=torch.bfloat16 train better",
            stacklevel=2,
        )
    objective = Objective(parent, teacher_weight, temperature, hidden_weight)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rule.attach(model, steps)
        try:
            with training_mode(model, gradient_checkpointing):
                chosen = _optimizer(model, rule, optimizer, lr)
                loop = Loop(model, rule, objective, chosen, training)
                if saved is not None:
                    loop.restore(saved)
                loop.run(tokens, checkpoint, settings, progress)
        finally:
            rule.detach()
    strays = count_strays(rule.modules, rule.masks)
    if strays:
        raise RuntimeError(f"recover: pruned weights must be +0.0, got {strays} that are not")
    return RecoverReport(
        method=rule.name,
        steps=loop.step,
        tokens=steps * batch * accumulate * tokens.shape[1],
        seconds=loop.seconds,
        losses=tuple(loop.losses),
        layers=tuple(
            RecoveredLayer(
                name, tuple(m.weight.shape), 1 - m.weight.count_nonzero().item() / m.weight.numel()
            )
            for name, m in rule.modules.items()
        ),
    )


def _name(optimizer: Any) -> str:
    """Of its class, whichever way it was given."""
    if optimizer is None or isinstance(optimizer, Optimizer):
        return AdamW.__name__ if optimizer is None else type(optimizer).__name__
    return getattr(getattr(optimizer, "func", optimizer), "__name__", "")


def _optimizer(
    model: nn.Module,
    rule: Method,
    optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | None,
    lr: float,
) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        return optimizer
    own = {id(p) for p in rule.own_parameters()}
    parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    # Fused: one pass over weights and moments instead of ten.
    return AdamW(parameters, lr=lr, fused=True) if optimizer is None else optimizer(parameters)
