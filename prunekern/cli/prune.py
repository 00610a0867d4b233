"""prunekern prune: a model in, a smaller checkpoint out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunekern.cli.common import Json, Model, Targets, load, progress_bar, show, targets_of

# What a plan says itself.
_OF_A_PLAN = ("pattern", "method", "sparsity", "targets", "windows", "window", "kernel")


def prune(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="New folder; from_pretrained reads it.")],
    model: Model = None,
    pattern: Annotated[str, typer.Option(help='"N:M" (N of M kept) or "unstructured".')] = "2:4",
    method: Annotated[
        str, typer.Option(help="magnitude, random, wanda, ria, sparsegpt, taylor.")
    ] = "magnitude",
    sparsity: Annotated[
        float | None, typer.Option(help="Of unstructured, in [0, 1); 0.5 if left out.")
    ] = None,
    targets: Targets = "q_proj,v_proj",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Text file, for methods that need one; Python's own documentation."),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help="Of calibration text; 128 if left out, 48 of the default.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Tokens of each.")] = None,
    kernel: Annotated[
        str,
        typer.Option(
            help='How to store it: "2:4", "2:4-int8", "2:4-int4", "bitmask", "csr", "dense".'
        ),
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "bfloat16",
    plan: Annotated[
        Path | None,
        typer.Option(help="What prunekern advise --save wrote, which says all of the above."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder from which a stopped run goes on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prune a model and save what is left, compressed.

    Example: prunekern prune out --method sparsegpt --targets all-linear --calibration text.txt

    Example: prunekern prune out --plan plan.json
    """
    if plan is not None:
        for name in _OF_A_PLAN:
            if context.get_parameter_source(name).name != "DEFAULT":
                raise ValueError(f"prune: {name} must be left out with a plan, which says it")
        _prune_by_plan(out, model, plan, calibration, dtype, state, as_json)
        return
    from prunekern import prune as run
    from prunekern import replace_linears, save_pretrained
    from prunekern.pruning import METHODS

    stored = storage_of(kernel, pattern, sparsity)
    loaded, tokenizer = load(model, dtype, "prune")
    options = {}
    if method in METHODS and METHODS[method].needs != "weights":
        text, count, size = calibration_of(calibration, windows, window, tokenizer)
        options = {"calibration": text, "windows": count, "window": size, "tokenizer": tokenizer}
    with progress_bar("pruning", as_json) as told:
        report = run(
            loaded,
            pattern=pattern,
            method=method,
            sparsity=sparsity,
            targets=targets_of(targets),
            state=state,
            progress=lambda share, _: told(share),
            **options,
        )
    if stored != "dense":
        replace_linears(loaded, kernel=stored, targets=[layer.name for layer in report.layers])
    saved = save_pretrained(loaded, out, dense=stored == "dense")
    tokenizer.save_pretrained(out)
    show({"pruned": report, "saved": saved} if as_json else f"{report}\n{saved}", as_json)


def _prune_by_plan(
    out: Path,
    model: str | None,
    plan: Path,
    text: Path | None,
    dtype: str,
    state: Path | None,
    as_json: bool,
) -> None:
    from prunekern import Plan, apply, save_pretrained

    try:
        read = Plan.from_json(plan.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prune: plan must be a readable file, got {plan}: {error}") from None
    loaded, tokenizer = load(model, dtype, "prune")
    options = {} if state is None else {"state": state}
    with progress_bar("pruning", as_json) as told:
        pruned, replaced = apply(
            loaded, read, tokenizer, text, progress=lambda share, _: told(share), **options
        )
    saved = save_pretrained(loaded, out)
    tokenizer.save_pretrained(out)
    found = {"pruned": pruned, "replaced": replaced, "saved": saved}
    show(found if as_json else f"{pruned}\n{replaced}\n{saved}", as_json)


def storage_of(kernel: str, pattern: str, sparsity: float | None) -> str:
    """The format that a pattern is best stored in, unless one is named.

    Raises:
        ValueError: There is no such format.
    """
    from prunekern.formats import FORMATS

    known = ("auto", "dense", *FORMATS)
    if kernel not in known:
        raise ValueError(f"prune: kernel must be one of {', '.join(known)}, got {kernel!r}")
    if kernel != "auto":
        return kernel
    if pattern == "2:4":
        return "2:4"
    # bytes: a bitmask has one bit a weight, csr 16 a kept one
    return "csr" if (0.5 if sparsity is None else sparsity) > 0.9 else "bitmask"


def calibration_of(
    path: Path | None, windows: int | None, window: int | None, tokenizer: Any
) -> tuple[Path | list[str], int | None, int | None]:
    """(text, windows, tokens of each); of the default text what `compare` does not judge by."""
    if path is not None:
        return path, windows, window
    from prunekern.compare.text import WINDOW
    from prunekern.recovery.texts import python_documentation

    return list(python_documentation(tokenizer)[0]), windows or 48, window or WINDOW
