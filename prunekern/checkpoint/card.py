"""The model card, README.md of a folder: what was pruned, how to load it, what it gained."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from prunekern.checkpoint.report import SavedCheckpoint, SavedLayer

CARD = "README.md"

_TAG = "prunekern"
_MB = 1e6


def is_ours(path: Path) -> bool:
    """Whether a card was written here, so that a new one may replace it."""
    try:
        return path.read_text(errors="replace").split("\n---\n")[0].count(f"\n- {_TAG}\n") == 1
    except OSError:
        return False


def write_card(folder: Path, saved: SavedCheckpoint, config: Any, compare: Any) -> None:
    """Writes README.md.

    Args:
        folder: Of the checkpoint.
        saved: What is in it.
        config: Of the model, as it is written.
        compare: A result of `prunekern.compare`, or None.
    """
    needs_prunekern = hasattr(config, "quantization_config")
    formats = sorted({layer.format for layer in saved.layers})
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    base = str(getattr(config, "name_or_path", "") or "")
    # Of a hub's name only: a folder's says nothing to others and may say too much.
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", base) and not Path(base).exists():
        lines += [f"base_model: {base}"]
    lines += ["tags:", f"- {_TAG}", "- sparse", *(f'- "{name}"' for name in formats), "---", ""]
    lines += [f"# Pruned {getattr(config, 'model_type', 'model')}", ""]
    lines += _how_to_load(needs_prunekern)
    if saved.layers:
        lines += ["## What was pruned", "", *_table(saved, needs_prunekern), ""]
    if compare is not None:
        lines += ["## What it gains", "", *compare.to_markdown().splitlines()[2:]]
    (folder / CARD).write_text("\n".join(lines).rstrip("\n") + "\n")


def _how_to_load(needs_prunekern: bool) -> list[str]:
    first = ["import prunekern  # first: transformers alone does not know the format"]
    return [
        "```python",
        *(first if needs_prunekern else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "..."  # of this file',
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "```",
        "",
    ]


def _table(saved: SavedCheckpoint, compressed: bool) -> Iterable[str]:
    yield "| layers | number | pattern | zeros | dense MB | MB here |"
    yield "|---|---:|---|---:|---:|---:|"

    def kind(layer: SavedLayer) -> tuple[str, str]:
        return layer.name.rpartition(".")[2], layer.format

    rows = [list(group) for _, group in groupby(sorted(saved.layers, key=kind), kind)]
    for group in rows:
        yield _row(kind(group[0])[0], group, group[0].format, compressed)
    if len(rows) > 1:
        yield _row("all", list(saved.layers), "", compressed)
    yield ""
    yield f"The whole model takes {saved.nbytes / _MB:.1f} MB."


def _row(name: str, layers: list[SavedLayer], pattern: str, compressed: bool) -> str:
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    zeros = sum(layer.zeros * layer.shape[0] * layer.shape[1] for layer in layers) / weights
    before = sum(layer.dense_nbytes for layer in layers)
    after = sum(layer.nbytes for layer in layers) if compressed else before
    return (
        f"| {name} | {len(layers)} | {pattern} | {zeros:.1%} | {before / _MB:.2f} | "
        f"{after / _MB:.2f} |"
    )
