"""What the commands share: options, models, progress, results as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Model = Annotated[
    str | None, typer.Option(help="Folder or hub name; SmolLM2-135M-Instruct if left out.")
]
Targets = Annotated[str, typer.Option(help='Names, suffixes, "re:..." by commas, or "all-linear".')]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]


def split(value: str) -> list[str]:
    """The parts between commas."""
    return [part.strip() for part in value.split(",") if part.strip()]


def targets_of(value: str) -> str | list[str]:
    """What `match_modules` takes."""
    names = split(value)
    return "all-linear" if names == ["all-linear"] else names


def load(model: str | None, dtype: str, who: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder, a hub name, or the default model.

    Raises:
        ValueError: The dtype is not one of ours, or there is no such model.
    """
    import transformers

    from prunekern.compare.default_model import default_model_path
    from prunekern.compare.worker import DTYPES

    if dtype not in DTYPES:
        raise ValueError(f"{who}: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = model or str(default_model_path())
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    except OSError as error:
        raise ValueError(
            f"{who}: model must be a causal language model, got {folder}: {error}"
        ) from None
    return loaded.eval(), tokenizer


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar on stderr that is told the share done; none where the result is JSON."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


@contextmanager
def plan_bar(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr a thing done, told its name and the share done."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        tasks: dict[str, Any] = {}

        def told(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=share)

        yield told


def show(result: Any, as_json: bool) -> None:
    """Prints a result: its own words, or its fields."""
    if as_json:
        typer.echo(json.dumps(_plain(result), indent=2))
    else:
        typer.echo(result)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {_key(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _key(key: Any) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
