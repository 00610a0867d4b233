"""prunekern compare: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prunekern.cli.common import Json, Model, Targets, split, targets_of


def compare(
    model: Model = None,
    targets: Targets = "q_proj,v_proj",
    sparsity: Annotated[float, typer.Option(help="Of unstructured patterns, in [0, 1).")] = 0.5,
    patterns: Annotated[
        str, typer.Option(help='"unstructured" and "N:M" (N of M kept), by commas.')
    ] = "unstructured,2:4",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, by commas.")
    ] = "float32,bfloat16",
    threads: Annotated[
        int | None, typer.Option(help="Of torch; its own choice if left out.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="File to measure perplexity on; Python's own documentation.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for compare.json, .md and .html.")] = Path(
        "results"
    ),
    rounds: Annotated[int, typer.Option(help="Of speed measurements.")] = 3,
    structured: Annotated[
        float,
        typer.Option(
            help="Share of heads and of MLP channels removed for good, in rows of theirs."
        ),
    ] = 0.0,
    fuse: Annotated[
        bool, typer.Option(help="One product for q, k, v and one for gate, up, where we store.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Decode by a compiled step, in all rows: minutes.")
    ] = False,
    report: Annotated[
        str,
        typer.Option(help='"rows", "standard", or "full": also what each layer alone costs.'),
    ] = "standard",
    as_json: Json = False,
) -> None:
    """Prune a model in several ways; compare speed, memory and perplexity with dense.

    Example: prunekern compare --targets all-linear --dtype bfloat16
    """
    from prunekern.compare import compare as run

    result = run(
        model,
        targets=targets_of(targets),
        sparsity=sparsity,
        patterns=split(patterns),
        dtype=split(dtype),
        threads=threads,
        text=text,
        out=out,
        rounds=rounds,
        structured=structured,
        fuse=fuse,
        compiled=compiled,
        report=report,
    )
    if as_json:
        typer.echo((out / "compare.json").read_text())
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for table in result.tables():
        console.print(table)
    for sentence in result.verdict:
        console.print(f"* {sentence}", highlight=False)
    console.print(
        f"\nwritten: {', '.join(str(out / f'compare.{e}') for e in ('json', 'md', 'html'))}"
    )
