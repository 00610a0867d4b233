"""prunekern convert: checkpoints of others into ours, ours into dense."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekern.cli.common import Json, show


def convert(
    source: Annotated[
        Path, typer.Argument(help="Folder of compressed-tensors (sparse) or of prunekern.")
    ],
    target: Annotated[Path, typer.Argument(help="New folder.")],
    to: Annotated[
        str, typer.Option(help='"prunekern", or "dense": with zeros, loads everywhere.')
    ] = "prunekern",
    max_shard_size: Annotated[
        str, typer.Option(help="Of one file of weights, above which there are several.")
    ] = "5GB",
    as_json: Json = False,
) -> None:
    """Rewrite sparse checkpoints that nothing loads any more, or any of ours as dense.

    Example: prunekern convert Sparse-Llama-3.1-8B-2of4 Sparse-Llama-prunekern
    """
    from prunekern.checkpoint import convert as run

    show(run(source, target, to, max_shard_size), as_json)
