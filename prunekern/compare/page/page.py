"""The page around the charts: style, sections, tables."""

from __future__ import annotations

from typing import Any

from prunekern.compare.page.palette import COLOURS, numbered
from prunekern.compare.page.rows import memory, pareto
from prunekern.compare.page.sensitivity import sensitivity
from prunekern.compare.page.svg import tag, text
from prunekern.compare.page.sweep import roofline, speedups


def to_html(
    document: dict[str, Any], tables: dict[str, tuple[list[str], list[list[str]]]], notes: str
) -> str:
    """One self-contained page, of nothing but its arguments.

    Args:
        document: What compare.json holds.
        tables: Title -> heads and cells.
        notes: How all of it was measured.
    """
    rows, sweep = document["rows"], document.get("sweep")
    lines = sweep["lines"] if sweep else []
    kinds = numbered(entry["storage"] for entry in [*rows, *lines])
    sections = {
        "Quality against speed": pareto(rows, kinds),
        "Memory": memory(rows, kinds),
    }
    if sweep:
        sections["Speed-up against tokens"] = speedups(sweep, kinds)
        sections["Roofline"] = roofline(sweep, kinds)
    if document.get("sensitivity"):
        sections["Which layers bear pruning"] = sensitivity(document["sensitivity"])
    sections["Tables"] = "".join(
        tag("h3", text(title)) + _table(title, *table) for title, table in tables.items()
    )
    title = f"prunekern compare: {document['environment']['model']}"
    return _PAGE.format(
        title=text(title),
        style=_style(),
        words="".join(tag("li", text(sentence)) for sentence in document["verdict"]),
        contents="".join(
            tag("li", tag("a", text(name), href=f"#part{i}")) for i, name in enumerate(sections)
        ),
        sections="".join(
            tag("section", tag("h2", text(name)), body, id=f"part{i}")
            for i, (name, body) in enumerate(sections.items())
        ),
        notes=text(notes),
    )


def _table(title: str, head: list[str], body: list[list[str]]) -> str:
    top = tag("tr", *(tag("th", text(name), scope="col") for name in head))
    rows = (
        tag("tr", tag("th", text(row[0]), scope="row"), *(tag("td", text(c)) for c in row[1:]))
        for row in body
    )
    kind = "words" if len(head) == 2 else None
    table = tag("table", tag("thead", top), tag("tbody", *rows), class_=kind)
    # A box that scrolls by itself, by keyboard as well.
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=title)


def _style() -> str:
    light, dark = (
        "".join(f"--k{i}:{pair[scheme]};" for i, pair in enumerate(COLOURS)) for scheme in (0, 1)
    )
    kinds = "".join(f".k{i}{{color:var(--k{i})}}" for i in range(len(COLOURS)))
    return _STYLE.replace("/*light*/", light).replace("/*dark*/", dark) + kinds


_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f23; --soft: #545b63; --rule: #d9dde1;
  --tint: #f3f5f7; --link: #0b57d0; --heat: #0b63c5; /*light*/ }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --ink: #e6e8ea; --soft: #a9b1b8; --rule: #353b41; --tint: #1e2327;
    --link: #8ab4f8; --heat: #62a8ff; /*dark*/ } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; margin: 0 auto; max-width: 1120px;
  padding: 16px; color: var(--ink); background: var(--page); overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
a { color: var(--link); }
p, figcaption, .verdict { max-width: 75ch; }
.verdict { padding-left: 1.2rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem;
  font-size: .9rem; }
figure { margin: 0 0 1rem; }
figcaption, footer { color: var(--soft); font-size: .9rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 328px), 1fr));
  gap: 12px 16px; max-width: 1088px; margin: .6rem 0; }
.panel { width: 100%; max-width: 430px; height: auto; overflow: visible; }
.panel text { fill: var(--soft); font-size: 12px; }
.panel .title { fill: var(--ink); font-weight: 600; font-size: 13px; }
.panel .strong { fill: var(--ink); font-weight: 600; stroke: var(--page); stroke-width: 3;
  paint-order: stroke; }
.grid { stroke: var(--rule); stroke-width: 1; fill: none; }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.limit { stroke-width: 1.3; stroke-dasharray: 5 4; }
.base, .front { color: var(--soft); stroke-width: 1.3; }
.front { stroke-dasharray: 2 3; }
.mark { fill: currentColor; stroke: var(--page); stroke-width: 1; }
.small { stroke-width: .6; }
.hollow { fill: none; stroke: currentColor; stroke-width: 2; }
.heat { fill: var(--heat); }
.frame { fill: none; stroke: var(--soft); }
.key, .legend, .bars { list-style: none; padding: 0; margin: .4rem 0; font-size: .9rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.key { columns: 320px; column-gap: 24px; }
.key li { break-inside: avoid; display: flex; gap: .5rem; align-items: baseline; }
.key b { min-width: 1.5em; text-align: right; font-variant-numeric: tabular-nums; }
.swatch { width: 30px; height: 14px; flex: none; vertical-align: -2px; margin-right: .3rem; }
.bars li { margin: .55rem 0; }
.bar { display: flex; height: 14px; margin: 2px 0; background: var(--tint); }
.bar i { display: block; background: currentColor; }
.bar .rest { opacity: .4; }
.bar .peak { background: var(--soft); opacity: .55; }
.thin { height: 5px; }
.legend .bar { display: inline-flex; vertical-align: -2px; margin: 0 .4rem 0 0; }
.legend .thin { height: 5px; vertical-align: 3px; }
.note { color: var(--soft); }
.scroll { overflow-x: auto; border: 1px solid var(--rule); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; font-weight: 400; }
thead th { font-weight: 600; white-space: normal; vertical-align: bottom; min-width: 5rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--page);
  white-space: normal; min-width: 8.5rem; }
.words th, .words td { text-align: left; white-space: normal; }
tbody tr:hover { background: var(--tint); }
tbody tr:last-child > * { border-bottom: 0; }
footer { margin-top: 2rem; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{style}</style></head><body>
<header><h1>{title}</h1><ul class="verdict">{words}</ul></header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>{sections}</main>
<footer>{notes}</footer>
</body></html>
"""
