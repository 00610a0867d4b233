"""prunekern recover: trains a pruned model, which stays pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekern.cli.common import Json, load, progress_bar, show


def recover(
    model: Annotated[str, typer.Argument(help="Folder of a pruned model.")],
    out: Annotated[Path, typer.Argument(help="New folder; from_pretrained reads it.")],
    text: Annotated[
        Path | None, typer.Option(help="Text file to train on; Python's own documentation.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Folder or hub name of the dense parent, to distil from.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of the optimizer.")] = 128,
    batch: Annotated[int, typer.Option(help="Windows of 512 tokens a step.")] = 2,
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 1e-4,
    state: Annotated[
        Path | None, typer.Option(help="Folder from which a stopped run goes on.")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between writes to the state folder.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the result.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Train a pruned model with its zeros held, in float32 with bfloat16 products, and save it.

    Example: prunekern recover out better --teacher HuggingFaceTB/SmolLM2-135M-Instruct
    """
    import torch

    from prunekern import recover as run
    from prunekern import replace_linears, restore_linears, save_pretrained
    from prunekern.compare.text import WINDOW
    from prunekern.compare.worker import DTYPES
    from prunekern.nn import SparseLinear
    from prunekern.recovery.texts import python_documentation

    if dtype not in DTYPES:
        raise ValueError(f"recover: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    loaded, tokenizer = load(model, "float32", "recover")
    kernels: dict[str, list[str]] = {}
    for name, module in loaded.named_modules():
        if isinstance(module, SparseLinear):
            kernels.setdefault(module.kernel, []).append(name)
    restore_linears(loaded)
    parent = load(teacher, "float32", "recover")[0] if teacher is not None else None
    with progress_bar("training", as_json) as told:
        report = run(
            loaded.requires_grad_(),
            text if text is not None else list(python_documentation(tokenizer)[0]),
            tokenizer=tokenizer,
            window=WINDOW,
            steps=steps,
            batch=batch,
            lr=lr,
            teacher=parent,
            autocast=torch.bfloat16,
            checkpoint=state,
            save_every=save_every,
            progress=lambda done: told(done.step / done.steps),
        )
    loaded.to(DTYPES[dtype]).eval()
    for kernel, names in kernels.items():
        replace_linears(loaded, kernel=kernel, targets=names)
    saved = save_pretrained(loaded, out, dense=not kernels)
    tokenizer.save_pretrained(out)
    show({"recovered": report, "saved": saved} if as_json else f"{report}\n{saved}", as_json)
