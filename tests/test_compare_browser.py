"""compare.html as a browser shows it: no errors, readable on a phone, light and dark."""

import html
import json
import re

import browser
import pytest
from compare_documents import STORAGES, result
from conftest import absent

pytestmark = pytest.mark.slow

# Sizes are those on the screen: drawings are stretched.
MEASURE = """
onload = () => {
  const view = document.getElementById("page").contentWindow, page = view.document;
  const width = page.documentElement.clientWidth;
  const found = {width, beyond: [], small: [], covered: []};
  found.scroll = page.documentElement.scrollWidth;
  found.background = view.getComputedStyle(page.body).backgroundColor;
  const words = [...page.querySelectorAll("svg.panel text")];
  for (const text of words) {
    const svg = text.ownerSVGElement, box = text.getBoundingClientRect();
    const size = parseFloat(view.getComputedStyle(text).fontSize) * svg.clientWidth / 328;
    if (size < 11.99) found.small.push([text.textContent, size]);
    if (box.left < 0 || box.right > width + 0.5) found.beyond.push(text.textContent);
    for (const other of svg.querySelectorAll("text")) {
      if (other === text) break;
      const b = other.getBoundingClientRect();
      const x = Math.min(box.right, b.right) - Math.max(box.left, b.left);
      const y = Math.min(box.bottom, b.bottom) - Math.max(box.top, b.top);
      if (x > 1 && y > 4) found.covered.push([text.textContent, other.textContent]);
    }
  }
  for (const e of page.body.querySelectorAll("*")) {
    if (!e.closest("svg") && parseFloat(view.getComputedStyle(e).fontSize) < 12)
      found.small.push([e.tagName, view.getComputedStyle(e).fontSize]);
    if (!e.closest(".scroll > *") && e.getBoundingClientRect().right > width + 0.5)
      found.beyond.push(e.tagName + "." + e.getAttribute("class"));
  }
  found.texts = words.length;
  document.body.replaceChildren(JSON.stringify(found));
};
"""


@pytest.fixture(scope="module", autouse=True)
def chromium():
    if browser.find() is None:
        reason = "no chromium, to look at the report with: apt-get install chromium"
        (absent if browser.could_be_installed() else pytest.skip)(reason)


@pytest.fixture(scope="module")
def content():
    more = [("2:4", "2:4-int8", 0.5), ("2:4", "2:4-int4", 0.5), ("channels", "removed", 0.5)]
    return result([*STORAGES, *more], full=True).to_html()


def measured(content, tmp_path, width, *flags):
    page = tmp_path / "framed.html"
    page.write_text(browser.framed(content, width, 4000, MEASURE))
    dom, console = browser.run(page, "--dump-dom", *flags)
    assert not console
    return json.loads(html.unescape(re.search(r"<body[^>]*>(.*?)</body>", dom, re.S)[1]))


@pytest.mark.parametrize("width", [browser.PHONE, 768, 1200])
def test_nothing_is_cut_covered_or_small(content, tmp_path, width):
    found = measured(content, tmp_path, width)
    assert found["texts"] > 200 and found["scroll"] <= found["width"] == width
    assert found["beyond"] == found["small"] == found["covered"] == []


def test_measuring_finds_what_is_wrong(content, tmp_path):
    wrong = content.replace(".panel text { ", ".panel text { font-size: 5px !important; ")
    wrong = wrong.replace("<header>", '<header><div style="width:500px">wide</div>')
    found = measured(wrong, tmp_path, browser.PHONE)
    assert found["scroll"] > found["width"] and found["small"] and "DIV.null" in found["beyond"]
    page = tmp_path / "loud.html"
    page.write_text("<script>console.error('loud')</script>")
    assert len(browser.run(page, "--dump-dom")[1]) == 1


def test_dark_is_dark(content, tmp_path):
    backgrounds = [
        measured(content, tmp_path, 800, *flags)["background"] for flags in ((), (browser.DARK,))
    ]
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]


def test_screenshots(content, tmp_path):
    page = tmp_path / "compare.html"
    page.write_text(content)
    for image in browser.screenshots(page, tmp_path):
        data = image.read_bytes()
        width = int.from_bytes(data[16:20], "big")
        assert data.startswith(b"\x89PNG") and width == (360 if image.stem == "phone" else 1200)
        assert len(data) > 100_000  # a blank one has a tenth
