"""prunekern generate: text from a model, and how fast."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from prunekern.cli.common import Json, Model, Targets, load, show, targets_of


def generate(
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")],
    model: Model = None,
    tokens: Annotated[int, typer.Option(help="New ones, at most.")] = 64,
    kernel: Annotated[
        str | None, typer.Option(help='How to store targets first: "2:4", "2:4-int4", "csr", ...')
    ] = None,
    targets: Targets = "q_proj,v_proj",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Continue a prompt, greedily, and say how fast.

    Example: prunekern generate "The capital of France is" --model out
    """
    import torch

    from prunekern import replace_linears

    if tokens < 1:
        raise ValueError(f"generate: tokens must be 1 or more, got {tokens}")
    loaded, tokenizer = load(model, dtype, "generate")
    if kernel is not None:
        replace_linears(loaded, kernel=kernel, targets=targets_of(targets))
    inputs = tokenizer(prompt, return_tensors="pt").to(loaded.device)
    size = inputs.input_ids.shape[1]
    if size == 0:
        raise ValueError("generate: prompt must have at least one token, got none")
    with torch.inference_mode():
        loaded.generate(**inputs, max_new_tokens=1, do_sample=False)  # warms up
        start = time.perf_counter()
        out = loaded.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        seconds = time.perf_counter() - start
    new = out.shape[1] - size
    text = tokenizer.decode(out[0], skip_special_tokens=True)
    if as_json:
        show({"text": text, "tokens": new, "seconds": seconds}, as_json)
    else:
        show(f"{text}\n\n{new} tokens, {new / seconds:.1f} tokens/s with the prompt", as_json)
