"""Charts of the rows: quality against speed, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunekern.compare.page.figure import (
    Kinds,
    figure,
    in_order,
    legend,
    said,
    storage_swatch,
    stores_zeros,
)
from prunekern.compare.page.palette import MARKERS
from prunekern.compare.page.svg import Axis, Panel, label_places, linear_axis, log_axis, tag, text
from prunekern.compare.tables import MB

Rows = Sequence[Mapping[str, Any]]


def pareto(rows: Rows, kinds: Kinds) -> str:
    """Perplexity against decode speed, a panel a dtype, and the rows that none beats in both."""
    x = linear_axis(row["decode_tokens_per_s"] for row in rows)
    y = log_axis((row["perplexity"] for row in rows), pad=1.25)
    front = _front(rows, x, y)
    panels = []
    for dtype in in_order(row["dtype"] for row in rows):
        mine = {i: row for i, row in enumerate(rows, 1) if row["dtype"] == dtype}
        panel = Panel(
            dtype, x, y, "decode, tokens/s (more is better)", "perplexity (less is better)", 280
        )
        panel.line(front, "front", "no row of any dtype is better in both")
        for row in sorted(mine.values(), key=stores_zeros):  # hollow ones above what they may hide
            kind = kinds[row["storage"]]
            classes = f"k{kind}" + " hollow" * stores_zeros(row)
            panel.mark(*_point(row), MARKERS[kind], classes, said(row))
        places = label_places(
            [panel.at(*_point(row)) for row in mine.values()], list(map(str, mine))
        )
        for (across, down), i in zip(places, mine, strict=True):
            panel.words(across, down + 4, str(i), "middle", "strong")
        words = "; ".join(f"{i}, {said(row)}" for i, row in mine.items())
        panels.append(panel.draw(f"Perplexity against decode speed, {dtype}. {words}."))
    return figure(
        "The axes of all panels are the same, so dtypes compare. Dotted: no row of any dtype has "
        "both less perplexity and more speed. Hollow: the zeros are stored and multiplied.",
        panels,
        after=_key(rows, kinds),
    )


def _point(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["decode_tokens_per_s"], row["perplexity"]


def _front(rows: Rows, x: Axis, y: Axis) -> list[tuple[float, float]]:
    """Stairs through the rows that no other beats in both."""
    points, fastest = [], x.low
    for speed, perplexity in sorted(map(_point, rows), key=lambda p: (p[1], -p[0])):
        if speed > fastest and math.isfinite(perplexity):
            points += [(fastest, perplexity), (speed, perplexity)]
            fastest = speed
    return [*points, (fastest, y.high)]


def _key(rows: Rows, kinds: Kinds) -> str:
    items = []
    for i, row in enumerate(rows, 1):
        drawn = storage_swatch(row["storage"], kinds, hollow=stores_zeros(row))
        numbers = f" {row['perplexity']:.4g}, {row['decode_tokens_per_s']:.1f} tok/s"
        name = tag("span", text(row["variant"]), tag("span", text(numbers), class_="note"))
        items.append(tag("li", tag("b", str(i)), drawn, name))
    return tag("ul", *items, class_="key")


def memory(rows: Rows, kinds: Kinds) -> str:
    """Bars: weights of the pruned layers and of the rest, and the peak of the process."""
    largest = max(max(row["model_weight_bytes"], row["peak_rss_bytes"]) for row in rows)
    items = []
    for row in rows:
        pruned, model = row["pruned_weight_bytes"], row["model_weight_bytes"]
        peak = row["peak_rss_bytes"]
        words = (
            f"{model / MB:.1f} MB, pruned layers {pruned / MB:.1f}, "
            f"file {row['file_bytes'] / MB:.1f}, peak {peak / MB:.0f}"
        )
        kind = f"k{kinds[row['storage']]}"
        parts = _part(pruned, largest), _part(model - pruned, largest, "rest")
        items.append(
            tag(
                "li",
                tag("div", text(row["variant"]), tag("span", text(f" {words}"), class_="note")),
                tag("div", *parts, class_=f"bar {kind}", aria_hidden="true"),
                tag("div", _part(peak, largest, "peak"), class_="bar thin", aria_hidden="true"),
            )
        )
    bars = tag("ul", *items, class_="bars")
    shown = legend(
        (tag("span", tag("i", class_=part, style="width:100%"), class_=classes), words)
        for classes, part, words in (
            ("bar swatch k0", "", "weights of the pruned layers"),
            ("bar swatch k0", "rest", "other weights"),
            ("bar swatch thin", "peak", "peak of the process while it prefills and decodes"),
        )
    )
    return figure("All bars have one scale, from zero.", [], shown, bars)


def _part(size: float, largest: float, kind: str = "") -> str:
    return tag("i", class_=kind or None, style=f"width:{size / largest:.2%}")
