"""What the charts share: the figure around panels, the legend, how a row is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunekern.compare.page.palette import MARKERS
from prunekern.compare.page.svg import marker, number, tag, text
from prunekern.compare.variants import DENSE

Kinds = Mapping[str, int]  # storage -> which colour and marker


def figure(caption: str, panels: Sequence[str], before: str = "", after: str = "") -> str:
    """A caption, then panels side by side where there is room."""
    grid = tag("div", *panels, class_="panels")
    return tag("figure", tag("figcaption", text(caption)), before, grid, after)


def swatch(shape: Sequence | None, kind: str, line: str = "") -> str:
    """A small drawing for legends: a marker, a line (its class), or both."""
    parts = []
    if line:
        parts.append(tag("path", d="M1 7H29", class_=f"line {line} {kind}"))
    if shape is not None:
        parts.append(marker(15, 7, shape, kind))
    return tag("svg", *parts, viewBox="0 0 30 14", class_="swatch", aria_hidden="true")


def storage_swatch(storage: str, kinds: Kinds, line: str = "", hollow: bool = False) -> str:
    """That of a storage, as it looks in every chart."""
    kind = kinds[storage]
    return swatch(MARKERS[kind], f"k{kind}" + " hollow" * hollow, line)


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(swatch, words) in a row that wraps."""
    items = (tag("li", drawn, text(words)) for drawn, words in entries)
    return tag("ul", *items, class_="legend")


def stores_zeros(row: Mapping[str, Any]) -> bool:
    """Whether it is pruned and yet stored dense: drawn hollow."""
    return row["storage"] == DENSE != row["pattern"]


def said(row: Mapping[str, Any]) -> str:
    """A row of the comparison in words."""
    return (
        f"{row['variant']}: perplexity {number(row['perplexity'])}, "
        f"{row['decode_tokens_per_s']:.1f} tokens/s"
    )


def in_order(values: Iterable[Any]) -> list[Any]:
    """Each once."""
    return list(dict.fromkeys(values))
