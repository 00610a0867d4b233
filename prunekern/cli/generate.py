"""prunekern generate: text from a model, and how fast."""

from __future__ import annotations

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
    fuse: Annotated[
        bool, typer.Option(help="One product for q, k, v and one for gate, up.")
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile a token's step first: a minute, then faster."),
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Continue a prompt, greedily, and say how fast.

    Example: prunekern generate "The capital of France is" --model out --fuse --compile
    """
    from prunekern import Decoder, fuse_linears, replace_linears

    if tokens < 1:
        raise ValueError(f"generate: tokens must be 1 or more, got {tokens}")
    loaded, tokenizer = load(model, dtype, "generate")
    if kernel is not None:
        replace_linears(loaded, kernel=kernel, targets=targets_of(targets))
    inputs = tokenizer(prompt, return_tensors="pt").to(loaded.device)
    size = inputs.input_ids.shape[1]
    if size == 0:
        raise ValueError("generate: prompt must have at least one token, got none")
    if fuse:
        fuse_linears(loaded)
    decoder = Decoder(loaded, compiled)
    decoder.generate(inputs.input_ids, 1)  # warms up
    made = decoder.generate(inputs.input_ids, tokens)
    new = made.tokens.shape[1]
    text = tokenizer.decode([*inputs.input_ids[0], *made.tokens[0]], skip_special_tokens=True)
    if as_json:
        show(
            {
                "text": text,
                "tokens": new,
                "prefill_seconds": made.prefill_seconds,
                "compile_seconds": made.compile_seconds,
                "decode_tokens_per_s": made.tokens_per_s,
            },
            as_json,
        )
        return
    told = f"{new} tokens, prompt in {made.prefill_seconds:.2f} s"
    if made.step_seconds:
        told += f", then {made.tokens_per_s:.1f} tokens/s"
    if made.compile_seconds:
        told += f"; compiled in {made.compile_seconds:.0f} s"
    show(f"{text}\n\n{told}", as_json)
