"""compare.html from made-up comparisons: what is in it, and that it needs and lets in nothing."""

import html.parser
import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from compare_documents import STORAGES, result

from prunekern.compare.page import page as page_module
from prunekern.compare.page.palette import COLOURS, MARKERS, numbered
from prunekern.compare.page.svg import label_places, linear_axis, log_axis

HOSTILE = """</title></svg><script>alert(1)</script><img src=x onerror="alert(2)">'&"""
VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Elements with attributes and all text; refuses what is closed in the wrong order."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(content)
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name, **wanted):
        return [a for n, a in self.elements if n == name and wanted.items() <= a.items()]


def section(content, title):
    """The markup of one section, by its heading."""
    return re.search(rf"<section[^>]*><h2>{title}</h2>.*?</section>", content, re.S)[0]


def marks(markup):
    """(class, title) of each marker outside legends."""
    found = []
    for drawing in re.findall(r'<svg[^>]*class="panel".*?</svg>', markup, re.S):
        for shape in ET.fromstring(drawing).iter():
            if (shape.get("class") or "").startswith("mark"):
                found.append((shape.get("class"), shape.findtext("title")))
    return found


def test_page_is_one_file_that_asks_for_nothing():
    content = result(full=True).to_html()
    assert content.startswith("<!doctype html>")
    page = Page(content)
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    style = re.search(r"<style>(.*?)</style>", content, re.S)[1]
    assert "url(" not in style and "@import" not in style and "//" not in style
    for _, attributes in page.elements:
        assert not {"src", "srcset", "data", "xlink:href"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)


def test_headings_labels_and_targets_are_in_order():
    page = Page(result(full=True).to_html())
    assert page.elements[0] == ("html", {"lang": "en"})
    levels = [int(n[1]) for n, _ in page.elements if re.fullmatch("h[1-6]", n)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} == set(ids)
    drawings = page.all("svg")
    labels = [a.get("aria-label") for a in drawings if a.get("class") == "panel"]
    assert len(labels) == 2 + 6 + 2 + 4 and all(len(label) > 30 for label in labels)
    assert all(a.get("aria-hidden") or a.get("role") == "img" for a in drawings)
    assert all(a.get("scope") for a in page.all("th"))
    assert all(
        a["tabindex"] == "0" and a["aria-label"] for a in page.all("div", **{"class": "scroll"})
    )


@pytest.mark.parametrize("more", [[], [("2:4", "2:4-int4", 0.5), ("channels", "removed", 0.5)]])
def test_every_row_stands_in_every_plot(more):
    made = result([*STORAGES, *more])
    content = made.to_html()
    names = [row["variant"] for row in made.rows]
    quality = section(content, "Quality against speed")
    assert len(marks(quality)) == len(names)
    memory = section(content, "Memory")
    for name in names:
        assert any(title.startswith(f"{name}: perplexity") for _, title in marks(quality))
        assert f">{name}<" in memory and f">{name}<" in quality
    lines = [line for line in made.sweep["lines"] if line["storage"] != "dense"]
    assert len(marks(section(content, "Speed-up against tokens"))) == 10 * len(lines)
    storages = {(line["dtype"], line["storage"]) for line in made.sweep["lines"]}
    assert len(marks(section(content, "Roofline"))) == 10 * len(storages)
    maps = section(content, "Which layers bear pruning")
    for layer in made.sensitivity["layers"]:
        assert maps.count(f"<title>{layer['name']}: ") == len(made.sensitivity["prunings"])
    markdown = made.to_markdown()
    for name in names:
        assert f"| {name} |" in markdown


def test_a_storage_has_one_colour_in_all_plots_and_no_two_share_one():
    made = result()
    content = made.to_html()
    kinds: dict[str, set] = {}
    for title in ("Quality against speed", "Speed-up against tokens", "Roofline"):
        for classes, words in marks(section(content, title)):
            storage = words.split(" as ")[1].split(" float32")[0].split(" bfloat16")[0]
            kinds.setdefault(storage, set()).add(re.search(r"k\d", classes)[0])
    assert all(len(found) == 1 for found in kinds.values())
    assert len(set.union(*kinds.values())) == len(kinds) == 5


def test_hollow_is_what_stores_its_zeros():
    for classes, words in marks(section(result().to_html(), "Quality against speed")):
        assert ("hollow" in classes) == words.startswith("unstructured as dense")


def test_hostile_names_stay_text():
    made = result([("dense", "dense", 0.0), (HOSTILE, HOSTILE, 0.5)], model=HOSTILE)
    for layer in made.sensitivity["layers"]:
        layer |= {"name": layer["name"] + HOSTILE, "module": HOSTILE}
    made.environment["cpu"] = HOSTILE
    content = made.to_html()
    page = Page(content)
    assert "<script" not in content and "<img" not in content
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert HOSTILE in "".join(page.text)
    assert any(HOSTILE in a.get("aria-label", "") for a in page.all("svg"))
    for drawing in re.findall(r"<svg.*?</svg>", content, re.S):
        ET.fromstring(drawing)


def test_rows_alone_make_a_page():
    made = result()
    bare = type(made)(made.rows[:1], made.environment)
    content = bare.to_html()
    Page(content)
    assert "Roofline" not in content and "bear pruning" not in content
    assert len(marks(content)) == 1 and "nan" not in content


def test_no_perplexity_is_too_large_to_be_drawn():
    made = result()
    made.rows[3]["perplexity"], made.rows[4]["perplexity"] = math.inf, 8e5
    content = made.to_html()
    assert len(marks(section(content, "Quality against speed"))) == len(made.rows)
    assert "perplexity ∞" in content and not re.search(r'"[^"<>]*\b(nan|inf)\b[^"<>]*"', content)


def test_front_passes_through_what_nothing_beats():
    from prunekern.compare.page.rows import _front

    rows = [
        {"decode_tokens_per_s": s, "perplexity": p}
        for s, p in [(10, 9), (30, 20), (20, 25), (40, 21)]
    ]
    x, y = linear_axis([40]), log_axis([9, 25])
    stairs = [(0, 9), (10, 9), (10, 20), (30, 20), (30, 21), (40, 21), (40, y.high)]
    assert _front(rows, x, y) == stairs


@pytest.mark.parametrize(
    "low,high", [(9.8, 10.1), (9.87, 33), (0.2, 16), (9.9, 8e5), (3, 3), (1e9, 2e12)]
)
def test_log_axes_hold_their_values_and_a_readable_number_of_ticks(low, high):
    axis = log_axis([low, high, math.inf])
    assert 0 < axis.share(low) <= axis.share(high) < 1 and axis.share(math.inf) == 1
    assert 2 <= len(axis.ticks) <= 8 and all(axis.low <= t <= axis.high for t in axis.ticks)


@pytest.mark.parametrize("high", [0.003, 0.9, 1, 18.6, 55.4, 99, 101, 12345])
def test_linear_axes_start_at_zero(high):
    axis = linear_axis([high / 3, high])
    assert axis.share(0) == 0 and axis.share(high) < 1 and 3 <= len(axis.ticks) <= 7


def test_labels_of_close_points_do_not_cover_each_other():
    points = [(150 + 9 * i, 120 + 2 * (i % 3)) for i in range(8)]
    places = label_places(points, [str(i + 1) for i in range(8)])
    for (ax, ay), (bx, by) in itertools.combinations(places, 2):
        assert abs(ax - bx) >= 6.8 or abs(ay - by) >= 12


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(a, b):
    bright, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_contrast_is_enough_in_both_schemes():
    """WCAG 2 AA: 4.5 to 1 for text, 3 to 1 for marks."""
    style = page_module._style()
    schemes = [dict(re.findall(r"--(\w+):\s*(#\w{6})", part)) for part in style.split("@media")]
    for scheme in schemes:
        for text in ("ink", "soft", "link"):
            assert _contrast(scheme[text], scheme["page"]) >= 4.5
        assert _contrast(scheme["ink"], scheme["tint"]) >= 4.5
        for i in range(len(COLOURS)):
            assert _contrast(scheme[f"k{i}"], scheme["page"]) >= 3
    assert len(MARKERS) == len(COLOURS) == len(set(MARKERS))


def test_storages_beyond_the_palette_are_drawn_all_the_same():
    kinds = numbered(["dense", "2:4", *(f"new {i}" for i in range(12))])
    assert kinds["dense"] == 0 and 0 not in [k for s, k in kinds.items() if s != "dense"]
    assert set(kinds.values()) == set(range(len(COLOURS)))
