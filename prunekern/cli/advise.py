"""prunekern advise: what pays for this model on this machine, or on a GPU that is not here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekern.cli.common import Json, Model, load, plan_bar, split, targets_of


def advise(
    model: Model = None,
    batch: Annotated[
        str,
        typer.Option(
            help="Tokens at once, by commas, each perhaps with how much it counts: 1=3,512=1. Up "
            "to 64 are sequences that write a token each, more are a prompt that is read."
        ),
    ] = "1,8,512",
    quality: Annotated[
        str, typer.Option(help="Perplexity may rise by this share of dense, as 5%.")
    ] = "5%",
    chip: Annotated[
        str | None,
        typer.Option(
            help='A GPU that need not be here, as "H100": speed is modelled, and said so.'
        ),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(help='"N:M", shares of zeros as 70%, formats that round; by commas.'),
    ] = None,
    targets: Annotated[str, typer.Option(help="Layers that may be pruned.")] = "all-linear",
    method: Annotated[str, typer.Option(help="magnitude, wanda, ria, sparsegpt.")] = "sparsegpt",
    text: Annotated[
        Path | None,
        typer.Option(help="Its beginning calibrates, its end judges; Python's own documentation."),
    ] = None,
    windows: Annotated[int, typer.Option(help="Of calibration text.")] = 16,
    layers: Annotated[
        int, typer.Option(help="Decoder layers to measure at most; others are interpolated.")
    ] = 16,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "bfloat16",
    state: Annotated[
        Path | None, typer.Option(help="Folder from which a stopped run goes on.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="File for the plan: prunekern prune OUT --plan FILE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Which layers to prune to what, stored how, to be fastest within a budget of quality.

    Example: prunekern advise --batch 1,8,512 --quality 5% --save plan.json

    Example: prunekern advise --chip H100 --quality 10%
    """
    from prunekern import advise as run

    loaded, tokenizer = load(model, dtype, "advise")
    with plan_bar(as_json) as told:
        plan = run(
            loaded,
            tokenizer,
            text,
            batches_of(batch),
            share_of(quality),
            chip,
            split(candidates) if candidates is not None else None,
            targets=targets_of(targets),
            method=method,
            windows=windows,
            layers=layers,
            state=state,
            progress=told,
        )
    if save is not None:
        save.write_text(plan.to_json() + "\n", encoding="utf-8")
    typer.echo(plan.to_json() if as_json else str(plan))


def batches_of(value: str) -> dict[int, float]:
    """What `advise` takes: {1: 1.0, 8: 2.0} of "1,8=2".

    Raises:
        ValueError: Something else.
    """
    found = {}
    for part in split(value):
        tokens, _, weight = part.partition("=")
        try:
            found[int(tokens)] = float(weight or 1)
        except ValueError:
            raise ValueError(
                f"advise: batch must be whole numbers as 1,8,512 or 1=3,512=1, got {value!r}"
            ) from None
    return found


def share_of(value: str) -> float:
    """What `advise` takes: 0.05 of "5%" or "0.05".

    Raises:
        ValueError: Something else.
    """
    try:
        return float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError:
        raise ValueError(f"advise: quality must be a share as 5% or 0.05, got {value!r}") from None
