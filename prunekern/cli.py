"""The command line, thin over the Python API: python -m prunekern compare | hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    help="Prunes Llama-style models and runs what is left on sparse kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _list(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


@app.command()
def compare(
    model: Annotated[
        str | None, typer.Option(help="Folder or hub name; SmolLM2-135M-Instruct if left out.")
    ] = None,
    targets: Annotated[
        str, typer.Option(help='Names, suffixes, "re:..." by commas, or "all-linear".')
    ] = "q_proj,v_proj",
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
) -> None:
    """Prune a model in several ways; compare speed, memory and perplexity with dense."""
    from prunekern.compare import compare as run

    names = _list(targets)
    result = run(
        model,
        targets="all-linear" if names == ["all-linear"] else names,
        sparsity=sparsity,
        patterns=_list(patterns),
        dtype=_list(dtype),
        threads=threads,
        text=text,
        out=out,
        rounds=rounds,
        structured=structured,
    )
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


@app.command()
def hardware(
    measure: Annotated[
        bool, typer.Option(help="Time a layer of each kind beside a dense one: half a minute.")
    ] = True,
) -> None:
    """What this machine accelerates, what was built, and why not more."""
    from prunekern.acceleration import acceleration
    from prunekern.hardware import hardware as find

    print(find())
    if measure:
        print()
        print(acceleration())


def main() -> None:
    """Runs the command; wrong input ends in one line and exit code 2, not in a traceback."""
    try:
        app()
    except ValueError as error:
        Console(stderr=True).print(f"[red]error:[/] {error}", highlight=False, markup=True)
        raise SystemExit(2) from None
