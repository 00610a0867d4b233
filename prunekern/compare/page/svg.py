"""SVG by hand: elements, axes and one panel of a chart.

Panels are drawn for a phone: 328 units wide, which is what a screen of 360 leaves, with text of 12
units. Wider screens put panels side by side and stretch them, so that text is never smaller.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 328
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 28, 42
_CHARACTER = 6.8  # widths of text of 12 units, for placing it


def tag(name: str, *children: str, **attributes: Any) -> str:
    """An element; attributes are escaped, children are markup (see `text`)."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def text(words: Any) -> str:
    """Words as markup."""
    return html.escape(str(words))


def _short(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Three digits, as people write them."""
    if not math.isfinite(value):
        return "\N{INFINITY}"
    if abs(value) >= 1e6:
        return f"{value:.1e}".replace("e+0", "e")
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Axis:
    """From values to units of the drawing.

    Attributes:
        low, high: Values at its ends.
        ticks: Values that get a line and, where it fits, a label.
        label: Value -> words.
        log: Whether equal steps are equal factors.
    """

    low: float
    high: float
    ticks: Sequence[float]
    label: Callable[[float], str] = number
    log: bool = False

    def share(self, value: float) -> float:
        """Where on the axis, 0 to 1; values beyond its ends are put there."""
        low, high, value = (
            (math.log(v) if self.log else v)
            for v in (self.low, self.high, min(max(value, self.low), self.high))
        )
        return (value - low) / (high - low)


def log_axis(values: Iterable[float], pad: float = 1.15, **more: Any) -> Axis:
    """Over all finite positive values, with ticks at round numbers."""
    finite = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    low, high = min(finite) / pad, max(finite) * pad
    digits = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(i / 4 for i in range(4, 40)))
    for series in digits:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [d * 10.0**e for e in decades for d in series if low <= d * 10.0**e <= high]
        if len(ticks) >= 3:
            break
    return Axis(low, high, ticks[:: -(-len(ticks) // 8)], log=True, **more)


def linear_axis(values: Iterable[float], **more: Any) -> Axis:
    """From zero to a little over the largest value."""
    high = max(values, default=1.0) * 1.12 or 1.0
    step = 10.0 ** math.floor(math.log10(high))
    step *= next(f for f in (0.2, 0.25, 0.5, 1, 2) if high / (f * step) <= 6)
    return Axis(0.0, high, [i * step for i in range(int(high / step) + 1)], **more)


@dataclass
class Panel:
    """A frame with two axes, to be drawn into.

    Attributes:
        title: Above it.
        x, y: Axes.
        x_title, y_title: What they are, with the unit.
        height: Units.
    """

    title: str
    x: Axis
    y: Axis
    x_title: str
    y_title: str
    height: int = 250
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Values -> units."""
        across = _LEFT + self.x.share(x) * (WIDTH - _LEFT - _RIGHT)
        down = self.height - _BOTTOM - self.y.share(y) * (self.height - _TOP - _BOTTOM)
        return across, down

    def line(self, points: Sequence[tuple[float, float]], kind: str, title: str = "") -> None:
        """A path through values; `kind` is its class."""
        d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (self.at(*p) for p in points))
        self.parts.append(tag("path", _title(title), d=d, class_=f"line {kind}"))

    def mark(self, x: float, y: float, shape: Sequence, kind: str, title: str) -> None:
        """A marker at a value, with words for who points at it."""
        self.parts.append(marker(*self.at(x, y), shape, kind, title))

    def words(self, x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> None:
        """Text at units."""
        self.parts.append(
            tag("text", text(words), x=x, y=y, text_anchor=anchor, class_=kind or None)
        )

    def draw(self, label: str) -> str:
        """The whole; `label` says in words what is seen."""
        left, right = _LEFT, WIDTH - _RIGHT
        top, bottom = _TOP, self.height - _BOTTOM
        under = [tag("text", text(self.title), x=left, y=16, class_="title")]
        room = -math.inf
        for value in self.x.ticks:
            x, _ = self.at(value, self.y.low)
            under.append(tag("path", d=f"M{x:.1f} {top}V{bottom}", class_="grid"))
            words = self.x.label(value)
            half = len(words) * _CHARACTER / 2
            if x - half > room:
                place = min(x, WIDTH - half)
                room = place + half + 4
                under.append(tag("text", text(words), x=place, y=bottom + 16, text_anchor="middle"))
        for value in self.y.ticks:
            _, y = self.at(self.x.low, value)
            under.append(tag("path", d=f"M{left} {y:.1f}H{right}", class_="grid"))
            words = self.y.label(value)
            under.append(tag("text", text(words), x=left - 5, y=y + 4, text_anchor="end"))
        middle = (left + right) / 2
        under.append(
            tag("text", text(self.x_title), x=middle, y=self.height - 8, text_anchor="middle")
        )
        sideways = f"translate(10 {(top + bottom) / 2:.0f}) rotate(-90)"
        under.append(tag("text", text(self.y_title), transform=sideways, text_anchor="middle"))
        return drawing(self.height, label, *under, *self.parts)


def drawing(height: float, label: str, *parts: str) -> str:
    """An image as wide as a panel."""
    return tag(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label, class_="panel"
    )


def marker(x: float, y: float, shape: Sequence, kind: str, title: str = "") -> str:
    """A circle or polygon of palette.MARKERS around (x, y)."""
    if not shape:
        return tag("circle", _title(title), cx=x, cy=y, r=4.7, class_=f"mark {kind}")
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shape)
    return tag("polygon", _title(title), points=points, class_=f"mark {kind}")


def _title(words: str) -> str:
    return tag("title", text(words)) if words else ""


def label_places(points: Sequence[tuple[float, float]], labels: Sequence[str]) -> list[tuple]:
    """A place beside each point for its label, clear of points and of labels placed before.

    Args:
        points: Units.
        labels: One each.

    Returns:
        (x, y) of each label's middle; the least crowded of the places tried where all are taken.
    """
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    places = []
    for (x, y), label in zip(points, labels, strict=True):
        half = len(label) * _CHARACTER / 2
        best = None
        for reach in (0, 9, 18, 27):
            for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
                middle = x + dx * (half + 9 + reach), y + dy * (14 + reach)
                box = middle[0] - half, middle[1] - 6, middle[0] + half, middle[1] + 6
                cost = sum(_overlap(box, other) for other in taken)
                if not (_LEFT < box[0] and box[2] < WIDTH - 2 and box[1] > _TOP - 6):
                    cost += 1e3
                if best is None or cost < best[0]:
                    best = cost, middle, box
        taken.append(best[2])
        places.append(best[1])
    return places


def _overlap(a: tuple, b: tuple) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
