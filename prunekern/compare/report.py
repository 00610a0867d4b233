"""The result of a comparison, and how it is shown: table, JSON, Markdown, HTML with plots."""

from __future__ import annotations

import base64
import html
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from prunekern.compare.measure import LAYER_TOKENS
from prunekern.compare.verdict import verdict

_MB = 1e6


@dataclass(frozen=True)
class CompareResult:
    """What `compare` measured.

    Attributes:
        rows: One a variant, in the order of the table; the keys are those of compare.json.
        environment: Model, text, machine, versions.
    """

    rows: list[dict[str, Any]]
    environment: dict[str, Any]

    @property
    def verdict(self) -> list[str]:
        """Plain words, computed from the rows."""
        return verdict(self.rows)

    def tables(self) -> list[Table]:
        """Two tables for a terminal: quality and memory, speed."""
        return [_rich_table(title, *part) for title, part in self._parts().items()]

    def write(self, folder: str | Path) -> None:
        """Writes compare.json, compare.md and compare.html."""
        folder = Path(folder)
        document = {"rows": self.rows, "environment": self.environment, "verdict": self.verdict}
        (folder / "compare.json").write_text(json.dumps(document, indent=2) + "\n")
        (folder / "compare.md").write_text(self.to_markdown())
        (folder / "compare.html").write_text(self.to_html())

    def to_markdown(self) -> str:
        """Tables, verdict and environment."""
        lines = [f"# prunekern compare: {self.environment['model']}", ""]
        for title, (head, body) in self._parts().items():
            lines += [f"**{title}**", "", "| " + " | ".join(head) + " |"]
            lines += ["|" + "---|" + "---:|" * (len(head) - 1)]
            lines += ["| " + " | ".join(row) + " |" for row in body] + [""]
        lines += [self._notes(), ""] + [f"* {sentence}" for sentence in self.verdict] + [""]
        return "\n".join(lines)

    def to_html(self) -> str:
        """One self-contained page."""
        tables = "".join(
            f"<h2>{html.escape(title)}</h2>{_html_table(head, body)}"
            for title, (head, body) in self._parts().items()
        )
        words = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.verdict)
        plots = "".join(
            f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
            for alt, data in _plots(self.rows)
        )
        return _PAGE.format(
            title=html.escape(f"prunekern: {self.environment['model']}"),
            words=words,
            plots=plots,
            tables=tables,
            notes=html.escape(self._notes()),
        )

    def _notes(self) -> str:
        env = self.environment
        layer = self.rows[0]
        return (
            f"{env['model']}, targets {_targets(layer['targets'])} ({layer['layers']} layers). "
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

    def _parts(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        quality = (
            ["variant", "zeros", "perplexity", "pruned layers MB", "model MB", "file MB",
             "peak memory MB"],
            [
                [
                    row["variant"],
                    f"{row['sparsity']:.0%}" + " removed" * (row["storage"] == "removed"),
                    f"{row['perplexity']:.4g}",
                    f"{row['pruned_weight_bytes'] / _MB:.1f} "
                    f"({row['ratio_to_dense']['pruned_weight_bytes']:.2f}x)",
                    f"{row['model_weight_bytes'] / _MB:.1f} "
                    f"({row['ratio_to_dense']['model_weight_bytes']:.2f}x)",
                    f"{row['file_bytes'] / _MB:.1f}",
                    f"{row['peak_rss_bytes'] / _MB:.0f}",
                ]
                for row in self.rows
            ],
        )  # fmt: skip
        speed = (
            ["variant", "prefill tok/s", "decode tok/s", "decode tok/s, batch 4",
             "layer ms M=1", "M=16", "M=128"],
            [
                [
                    row["variant"],
                    *(
                        f"{row[key]:.1f} ({row['ratio_to_dense'][key]:.2f}x)"
                        for key in (
                            "prefill_tokens_per_s",
                            "decode_tokens_per_s",
                            "decode_tokens_per_s_batch4",
                        )
                    ),
                    *(_layer_cell(row, str(m)) for m in LAYER_TOKENS),
                ]
                for row in self.rows
            ],
        )  # fmt: skip
        return {"Quality and memory": quality, "Speed": speed}


def _layer_cell(row: dict[str, Any], tokens: str) -> str:
    if tokens not in row["layer_ms"]:
        return "-"
    return f"{row['layer_ms'][tokens]:.3f} ({row['ratio_to_dense'][f'layer_m{tokens}']:.2f}x)"


def _targets(targets: str | list[str]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _rich_table(title: str, head: list[str], body: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in body:
        table.add_row(*row)
    return table


def _html_table(head: list[str], body: list[list[str]]) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"


def _plots(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(alternative text, base64 PNG) of each plot; none where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter
    except ImportError:
        return []
    colors = {
        "dense": "#555555",
        "csr": "#d08c1d",
        "bitmask": "#2a78c2",
        "2:4": "#2f9e5b",
        "removed": "#7a5195",
    }
    markers = {"float32": "o", "bfloat16": "s", "float16": "^"}

    def color(row: dict[str, Any]) -> str:
        return colors.get(row["storage"], "#b23a6f")

    speed = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = speed.add_subplot()
    for row in rows:
        axes.scatter(
            row["decode_tokens_per_s"],
            row["perplexity"],
            # Hollow: zeros that are stored and multiplied.
            facecolor="white" if row["storage"] == "dense" != row["pattern"] else color(row),
            edgecolor=color(row),
            marker=markers[row["dtype"]],
            s=70,
            zorder=3,
            label=row["variant"],
        )
    axes.set(
        xlabel="decode, tokens/s (right is better)",
        ylabel="perplexity (down is better)",
        yscale="log",
        title="Speed against quality",
    )
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(3, 0.5)))
    axes.margins(0.1)
    axes.grid(alpha=0.3, which="both")
    speed.legend(loc="outside lower center", ncols=2, fontsize=7, frameon=False)

    memory = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = memory.add_subplot()
    names = [row["variant"] for row in rows][::-1]
    for part, shade in (("model_weight_bytes", 0.35), ("pruned_weight_bytes", 1.0)):
        sizes = [row[part] / _MB for row in rows][::-1]
        axes.barh(names, sizes, color=[color(row) for row in rows][::-1], alpha=shade)
    axes.set(xlabel="MB of weights: whole model (light), pruned layers (dark)", title="Memory")
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="x", alpha=0.3)

    images = []
    for alt, figure in (("speed against quality", speed), ("memory", memory)):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        images.append((alt, base64.b64encode(buffer.getvalue()).decode()))
    return images


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem;
  color: #222; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 4px 10px; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }}
th {{ white-space: normal; vertical-align: bottom; }}
th:first-child, td:first-child {{ text-align: left; }}
tbody tr:hover {{ background: #f4f6f8; }}
img {{ width: 49%; min-width: 330px; }}
.wide {{ overflow-x: auto; }}
footer {{ color: #666; font-size: 13px; margin-top: 1.5rem; }}
</style></head><body>
<h1>{title}</h1>
<ul>{words}</ul>
<div>{plots}</div>
<div class="wide">{tables}</div>
<footer>{notes}</footer>
</body></html>
"""
