"""Is a sparse layer faster than the best dense one? Each cell of the table of bars.

All contenders of a cell take turns within a round, on rotating copies of their weights, so that
none is in cache and whatever else the machine does falls on all alike. The ratio is the median of
the rounds' ratios: the fastest rival's time over ours.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from contenders import best_layout, ours, plain_read, rival
from shapes import BANDWIDTH_BAR, BARS, SHAPES

ROUNDS = {1: 60, 2: 40, 4: 40, 8: 40, 16: 30, 32: 20, 64: 16, 128: 12, 512: 7}


def _cells(isa: str):
    for bar in BARS[isa]:
        for shape in SHAPES:
            for M, ratio in zip(bar.tokens, bar.ratios, strict=True):
                yield bar, shape, M, ratio


def pytest_generate_tests(metafunc):
    if "cell" in metafunc.fixturenames:
        from prunekern import ops

        kind = metafunc.config.getoption("--isa") or (
            "avx512bf16" if "avx512bf16" in ops.cpu_isa() else "avx2"
        )
        cells = list(_cells(kind))
        ids = [
            f"{bar.what.replace(' ', '')}-{shape[0]}x{shape[1]}-M{M}-{bar.rivals[0].split()[1]}"
            f"{len(bar.rivals)}"
            for bar, shape, M, _ in cells
        ]
        metafunc.parametrize("cell", cells, ids=ids)


def test_bar(benchmark, cell, isa, cells):
    bar, shape, M, wanted = cell
    dtype = getattr(torch, bar.dtype)
    x32 = torch.randn(M, shape[1])
    runs = {}
    for stem in bar.stems:
        layout = best_layout(stem, dtype, isa)
        call, nbytes = ours(stem, layout, shape, dtype, bar.density)
        runs[f"{stem}/{layout}"] = (call, x32.to(dtype), nbytes)
    for name in bar.rivals:
        call, rival_dtype = rival(name, shape, bar.stems[0], bar.density)
        runs[name] = (call, x32.to(rival_dtype), None)
    times = {name: [] for name in runs}

    def take_turns():
        for name, (call, x, _) in runs.items():
            start = time.perf_counter()
            call(x)
            times[name].append(time.perf_counter() - start)

    for _ in range(3):
        take_turns()
    times = {name: [] for name in runs}
    first, (call, x, nbytes) = next(iter(runs.items()))
    benchmark.pedantic(call, args=(x,), setup=take_turns, rounds=ROUNDS[M])

    medians = {name: statistics.median(t) * 1e3 for name, t in times.items()}
    mine = min((name for name in runs if name not in bar.rivals), key=medians.get)
    best = min(bar.rivals, key=medians.get)
    ratio = statistics.median(b / m for b, m in zip(times[best], times[mine], strict=True))
    cell_result = {
        "what": bar.what, "shape": f"{shape[0]}x{shape[1]}", "M": M, "ratio": ratio, "bar": wanted,
        "layout": mine, "rival": best, "times_ms": medians,
    }  # fmt: skip
    benchmark.extra_info.update(cell_result, packed_bytes=nbytes, first=first)
    cells.append(cell_result)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("stem", ["sparse24", "bitmask"])
def test_bandwidth(benchmark, stem, shape, isa, cells):
    layout = best_layout(stem, torch.bfloat16, isa)
    call, nbytes = ours(stem, layout, shape, torch.bfloat16, 0.5)
    x = torch.randn(1, shape[1]).bfloat16()
    read = plain_read(nbytes)
    reading, running = [], []

    def take_turns():
        for run, times in ((read, reading), (lambda: call(x), running)):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)

    for _ in range(5):
        take_turns()
    reading.clear()
    running.clear()
    benchmark.pedantic(call, args=(x,), setup=take_turns, rounds=80)
    bandwidth = nbytes / statistics.median(reading)
    reached = nbytes / statistics.median(running)
    cell = {
        "what": f"{stem} bf16, share of read bandwidth", "shape": f"{shape[0]}x{shape[1]}", "M": 1,
        "ratio": reached / bandwidth, "bar": BANDWIDTH_BAR, "layout": f"{stem}/{layout}",
        "times_ms": {"ours GB/s": reached / 1e9, "read loop GB/s": bandwidth / 1e9},
    }  # fmt: skip
    benchmark.extra_info.update(cell)
    cells.append(cell)
