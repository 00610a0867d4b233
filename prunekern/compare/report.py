"""The result of a comparison, and how it is shown: table, JSON, Markdown, one page of HTML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from prunekern.compare.page import to_html
from prunekern.compare.tables import row_tables, tables, targets_in_words
from prunekern.compare.verdict import verdict


@dataclass(frozen=True)
class CompareResult:
    """What `compare` measured.

    Attributes:
        rows: One a variant, in the order of the table; the keys are those of compare.json.
        environment: Model, text, machine, versions.
        sweep: One layer against the number of tokens, see `sweep.measure_sweep`, or None.
        sensitivity: How each layer bears pruning, see `sensitivity.layer_errors`, or None.
    """

    rows: list[dict[str, Any]]
    environment: dict[str, Any]
    sweep: dict[str, Any] | None = None
    sensitivity: dict[str, Any] | None = None

    @property
    def verdict(self) -> list[str]:
        """Plain words, computed from the rows."""
        return verdict(self.rows)

    @property
    def document(self) -> dict[str, Any]:
        """What compare.json holds: all that the other two show."""
        return {
            "rows": self.rows,
            "sweep": self.sweep,
            "sensitivity": self.sensitivity,
            "environment": self.environment,
            "verdict": self.verdict,
        }

    def tables(self) -> list[Table]:
        """Two tables for a terminal: quality and memory, speed."""
        return [_rich_table(title, *part) for title, part in row_tables(self.rows).items()]

    def write(self, folder: str | Path) -> None:
        """Writes compare.json, compare.md and compare.html."""
        folder = Path(folder)
        (folder / "compare.json").write_text(json.dumps(self.document, indent=2) + "\n")
        (folder / "compare.md").write_text(self.to_markdown())
        (folder / "compare.html").write_text(self.to_html())

    def to_markdown(self) -> str:
        """Tables, notes and verdict."""
        lines = [f"# prunekern compare: {self.environment['model']}", ""]
        for title, (head, body) in tables(self.document).items():
            lines += [f"**{title}**", "", "| " + " | ".join(head) + " |"]
            lines += ["|" + "---|" + "---:|" * (len(head) - 1)]
            lines += ["| " + " | ".join(row) + " |" for row in body] + [""]
        lines += [self._notes(), ""] + [f"* {sentence}" for sentence in self.verdict] + [""]
        return "\n".join(lines)

    def to_html(self) -> str:
        """One self-contained page: charts, tables, notes."""
        return to_html(self.document, tables(self.document), self._notes())

    def _notes(self) -> str:
        env = self.environment
        layer = self.rows[0]
        return (
            f"{env['model']}, targets {targets_in_words(layer['targets'])} "
            f"({layer['layers']} layers). "
            f"{env['cpu']} ({', '.join(env['isa'])}), {env['threads']} threads, torch "
            f"{env['torch']}, transformers {env['transformers']}. Perplexity: last "
            f"{env['windows']} windows of {env['window_tokens']} tokens of {env['text']}. Speeds: "
            f"medians of {env['rounds']} rounds in which all variants took turns; (x): ratio to "
            f"dense of the same dtype. Layer: {layer['layer_name']} {list(layer['layer_shape'])}, "
            "weight in cache. Peak memory: of the process while it prefills and decodes."
            + (
                f" Removed: whole heads or MLP channels, by activation and refitted on the first "
                f"{env['calibration_windows']} windows of that text; the others by magnitude, "
                "without calibration."
                if "calibration_windows" in env
                else ""
            )
        )


def _rich_table(title: str, head: list[str], body: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in body:
        table.add_row(*row)
    return table
