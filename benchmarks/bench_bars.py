"""Is a sparse layer faster than the best dense one? Each cell of the table of bars.

Rivals are torch's own products as every model calls them; the others are in the other files. How
contenders take turns: `harness.py`. The ratio is the median of the rounds' ratios: the fastest
rival's time over ours.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from contenders import best_layout, kind_here, line_up, plain_read
from harness import Race
from shapes import BANDWIDTH_BAR, BARS, SHAPES


def _cells(isa: str):
    for bar in BARS[isa]:
        for shape in SHAPES:
            for M, ratio in zip(bar.tokens, bar.ratios, strict=True):
                yield bar, shape, M, ratio


def _id(bar, shape, M) -> str:
    rival = f"{bar.rivals[0].split()[1]}{len(bar.rivals)}"
    return f"{bar.what.replace(' ', '')}-{shape[0]}x{shape[1]}-M{M}-{rival}"


def pytest_generate_tests(metafunc):
    if "cell" in metafunc.fixturenames:
        cells = list(_cells(metafunc.config.getoption("--isa") or kind_here()))
        metafunc.parametrize("cell", cells, ids=[_id(*cell[:3]) for cell in cells])


def test_bar(benchmark, cell, isa, keep, request):
    bar, shape, M, wanted = cell
    name = _id(bar, shape, M)
    keep.once(name)
    dtype = getattr(torch, bar.dtype)
    own = tuple((stem, best_layout(stem, dtype, isa), dtype) for stem in bar.stems)
    contenders = line_up(shape, 1 - bar.density, own, bar.rivals, "cpu").at(M)
    race = Race(contenders)
    results = race.run(benchmark, request.config.getoption("--seconds"))
    mine = min((r for r in results if r.is_ours), key=lambda r: r.ms)
    best = min((r for r in results if not r.is_ours), key=lambda r: r.ms)
    ratio = race.ratio(best.name, mine.name)
    found = _found(name, bar.what, shape, M, ratio, wanted, mine, results)
    benchmark.extra_info.update(found)
    keep(found)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("stem", ["sparse24", "bitmask"])
def test_bandwidth(benchmark, stem, shape, isa, keep, request):
    name = f"{stem}-{shape[0]}x{shape[1]}-bandwidth"
    keep.once(name)
    own = ((stem, best_layout(stem, torch.bfloat16, isa), torch.bfloat16),)
    contenders = line_up(shape, 0.5, own, (), "cpu").at(1)
    contenders.append(plain_read(contenders[0].weight_bytes, contenders[0].x))
    race = Race(contenders)
    results = race.run(benchmark, request.config.getoption("--seconds"))
    mine, read = results
    share = race.ratio(read.name, mine.name) * mine.weight_bytes / read.weight_bytes
    what = f"{stem} bf16, share of read bandwidth"
    found = _found(name, what, shape, 1, share, BANDWIDTH_BAR, mine, results)
    benchmark.extra_info.update(found)
    keep(found)


def _found(name, what, shape, M, ratio, wanted, mine, results) -> dict:
    return {
        "cell": name, "what": what, "shape": f"{shape[0]}x{shape[1]}", "M": M, "ratio": ratio,
        "bar": wanted, "layout": mine.name, "times_ms": {r.name: r.ms for r in results},
        "results": [asdict(r) for r in results],
    }  # fmt: skip
