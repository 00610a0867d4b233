"""One colour and one marker for each storage, the same in all charts of a page.

A colour is a pair, for light and for dark pages. All have a contrast of 3 to 1 or more against the
page, as marks need, and stay apart from each other for the three kinds of colour blindness, next to
which shapes tell them apart as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from prunekern.compare.variants import DENSE
from prunekern.formats import FORMATS

# (light, dark) pages; the first is that of dense.
COLOURS = (
    ("#6b727a", "#a7aeb5"),
    ("#0b63c5", "#4f9dff"),
    ("#c96a00", "#ffa04a"),
    ("#00755a", "#2fd6a3"),
    ("#d0359a", "#ff7fd1"),
    ("#3d1f8f", "#8a5cf6"),
    ("#6b3d00", "#f2ec9c"),
    ("#e0443e", "#ff6b5e"),
    ("#2b93b5", "#9be4ff"),
)
# Corners around (0, 0), or none for a circle; all cover about the same area.
MARKERS = (
    ((-4, -4), (4, -4), (4, 4), (-4, 4)),
    (),
    ((0, -5.5), (5, 3.8), (-5, 3.8)),
    ((0, -5.7), (5.7, 0), (0, 5.7), (-5.7, 0)),
    ((0, 5.5), (5, -3.8), (-5, -3.8)),
    ((-5, -2), (-2, -2), (-2, -5), (2, -5), (2, -2), (5, -2),
     (5, 2), (2, 2), (2, 5), (-2, 5), (-2, 2), (-5, 2)),
    ((0, -5.5), (5.2, -1.7), (3.2, 4.5), (-3.2, 4.5), (-5.2, -1.7)),
    ((-5.5, 0), (-2.8, -4.8), (2.8, -4.8), (5.5, 0), (2.8, 4.8), (-2.8, 4.8)),
    ((0, -6), (1.8, -1.8), (6, 0), (1.8, 1.8), (0, 6), (-1.8, 1.8), (-6, 0), (-1.8, -1.8)),
)  # fmt: skip


def numbered(storages: Iterable[str]) -> dict[str, int]:
    """Storage -> which colour and marker: dense, then our formats in their order, then others."""
    found = list(dict.fromkeys(storages))
    known = [DENSE, *FORMATS, *(s for s in found if s != DENSE and s not in FORMATS)]
    shown = [s for s in known if s == DENSE or s in found]
    return {s: 0 if i == 0 else 1 + (i - 1) % (len(COLOURS) - 1) for i, s in enumerate(shown)}
