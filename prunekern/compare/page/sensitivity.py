"""The map of layers: how much pruning one alone costs, a cell a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunekern.compare.page.figure import figure, in_order
from prunekern.compare.page.svg import WIDTH, drawing, number, tag, text

_LEFT, _TOP, _ROW = 88, 28, 20
_MEASURES = {
    "error": ("error of the output", lambda v: f"{v:.0%}" if v >= 0.1 else f"{v:.1%}"),
    "divergence": ("divergence, nats/token", number),
}


def sensitivity(found: Mapping[str, Any]) -> str:
    """A map for each pruning and measure: modules down, decoder layers across."""
    layers = found["layers"]
    panels, words = [], []
    for measure, (name, label) in _MEASURES.items():
        if measure not in layers[0]:
            continue
        # One scale for all prunings, so that they compare.
        most = max(max(layer[measure].values()) for layer in layers)
        for pruning in found["prunings"]:
            title = f"{pruning}: {name}"
            panels.append(_map(layers, measure, pruning, title, label, most))
            worst = max(layers, key=lambda layer: layer[measure][pruning])
            words.append(f"{title}, worst {worst['name']}, {label(worst[measure][pruning])}")
    moved = ""
    if "divergence" in layers[0]:
        moved = ", and how far the model's predictions move (KL to dense)"
    return figure(
        f"Each layer pruned alone by magnitude, on {found['text_tokens']} tokens of the text, in "
        f"{found['dtype']}: the share of its output's energy that becomes noise{moved}. Bold: "
        f"pruned in this comparison. {'; '.join(words)}.",
        panels,
    )


def _map(
    layers: Sequence[Mapping[str, Any]],
    measure: str,
    pruning: str,
    title: str,
    label: Any,
    most: float,
) -> str:
    modules = in_order(layer["module"] for layer in layers)
    pruned = {layer["module"] for layer in layers if layer["pruned"]}
    blocks = sorted({layer["block"] for layer in layers})
    size = (WIDTH - _LEFT - 8) / len(blocks)
    bottom = _TOP + _ROW * len(modules)
    parts = [tag("text", text(title), x=0, y=16, class_="title")]
    for i, module in enumerate(modules):
        strong = "strong" if module in pruned else None
        short = module if len(module) <= 13 else module[:12] + "\N{HORIZONTAL ELLIPSIS}"
        down = _TOP + _ROW * i + 14
        parts.append(
            tag("text", text(short), x=_LEFT - 5, y=down, text_anchor="end", class_=strong)
        )
    for layer in layers:
        value = layer[measure][pruning]
        parts.append(
            tag(
                "rect",
                tag("title", text(f"{layer['name']}: {label(value)}")),
                x=_LEFT + size * blocks.index(layer["block"]),
                y=_TOP + _ROW * modules.index(layer["module"]),
                width=size - min(1.0, size / 6),
                height=_ROW - 1,
                class_="heat",
                fill_opacity=f"{0.04 + 0.96 * value / most if most > 0 else 0.04:.3f}",
            )
        )
    for i in range(0, len(blocks), -(-len(blocks) // 8)):
        middle = _LEFT + size * (i + 0.5)
        parts.append(tag("text", text(blocks[i]), x=middle, y=bottom + 14, text_anchor="middle"))
    parts.append(tag("text", "decoder layer", x=_LEFT - 5, y=bottom + 14, text_anchor="end"))
    parts += _scale(bottom + 24, label, most)
    worst = sorted(layers, key=lambda layer: -layer[measure][pruning])[:5]
    said = ", ".join(f"{layer['name']} {label(layer[measure][pruning])}" for layer in worst)
    return drawing(bottom + 60, f"{title}. Highest: {said}.", *parts)


def _scale(top: float, label: Any, most: float) -> list[str]:
    """A strip from nothing to the highest value."""
    steps, wide = 24, (WIDTH - _LEFT - 8) / 24
    parts = [
        tag("rect", x=_LEFT + wide * i, y=top, width=wide + 0.3, height=9, class_="heat",
            fill_opacity=f"{0.04 + 0.96 * i / (steps - 1):.3f}")
        for i in range(steps)
    ]  # fmt: skip
    ends = ((_LEFT, "0", "start"), (WIDTH - 8, label(most), "end"))
    parts += [
        tag("text", text(words), x=x, y=top + 23, text_anchor=anchor) for x, words, anchor in ends
    ]
    return parts
