"""Charts of one layer against tokens: speed-up with its limit, roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunekern.compare.page.figure import Kinds, figure, in_order, legend, storage_swatch, swatch
from prunekern.compare.page.palette import MARKERS
from prunekern.compare.page.svg import Axis, Panel, log_axis, number
from prunekern.compare.tables import MB
from prunekern.compare.variants import DENSE

Lines = Sequence[Mapping[str, Any]]


def speedups(sweep: Mapping[str, Any], kinds: Kinds) -> str:
    """Speed-up over dense against tokens, a panel a dtype and sparsity; dashed the limits."""
    tokens = sweep["tokens"]
    sparse = [line for line in sweep["lines"] if line["storage"] != DENSE]
    values = [v for line in sparse for k in ("speedup", "limit_speedup") for v in line[k].values()]
    x = _powers(tokens, 1.0, str)
    y = _powers([*values, 1.0], 1.1, lambda v: f"{v:g}x")
    panels = []
    for dtype, sparsity, lines in _groups(sparse):
        title = f"{dtype}, {sparsity:.0%} zeros"
        panel = Panel(title, x, y, "tokens", "speed-up over dense")
        panel.line([(x.low, 1.0), (x.high, 1.0)], "base", "dense")
        for line in lines:
            kind = f"k{kinds[line['storage']]}"
            panel.line(_points(line, "limit_speedup", tokens), f"limit {kind}", _limit(line))
        for line in lines:
            _measured(panel, line, _points(line, "speedup", tokens), kinds)
        panels.append(
            panel.draw(f"Speed-up over dense against tokens, {title}. {_in_words(lines)}")
        )
    N, K = sweep["shape"]
    limits = sweep["limits"]
    peaks = ", ".join(f"{_flops(v)} in {k}" for k, v in limits["flops_per_s"].items())
    return figure(
        f"One layer of {N} x {K}, the shape that holds most of the pruned weights, with random "
        f"weights, in turn from copies of {sweep['rotated_bytes'] / MB:.0f} MB together; solid "
        "lines are measured. Dashed: what the storage could reach at most over the same dense "
        "time, if it did nothing but read its bytes at "
        f"{limits['bytes_per_s'] / 1e9:.1f} GB/s or multiply its kept weights at the peak of "
        f"torch's dense product ({peaks}), all measured here.",
        panels,
        _legend(sparse, kinds, "limit"),
    )


def roofline(sweep: Mapping[str, Any], kinds: Kinds) -> str:
    """FLOP/s against FLOPs a byte, a panel a dtype: each storage at its least sparsity."""
    tokens, limits = sweep["tokens"], sweep["limits"]
    least: dict[tuple, Mapping[str, Any]] = {}
    for line in sorted(sweep["lines"], key=lambda line: line["sparsity"]):
        least.setdefault((line["dtype"], line["pattern"], line["storage"]), line)
    shown = list(least.values())
    paths = {id(line): _rates(line, tokens) for line in shown}
    peaks = limits["flops_per_s"]
    x = log_axis((p[0] for path in paths.values() for p in path), pad=1.5)
    y = log_axis([*(p[1] for path in paths.values() for p in path), *peaks.values()], pad=1.6,
                 label=lambda v: number(v / 1e9))  # fmt: skip
    panels = []
    for dtype in in_order(line["dtype"] for line in shown):
        panel = Panel(dtype, x, y, "FLOPs a byte of weight, x and y", "GFLOP/s")
        roof, bandwidth = peaks[dtype], limits["bytes_per_s"]
        ridge = min(max(roof / bandwidth, x.low), x.high)
        panel.line(
            [(x.low, bandwidth * x.low), (ridge, bandwidth * ridge), (x.high, roof)],
            "base", f"{bandwidth / 1e9:.1f} GB/s, then {_flops(roof)}",
        )  # fmt: skip
        across, down = panel.at(x.high, roof)
        panel.words(across - 4, down - 5, _flops(roof), "end")
        middle = (x.low * ridge) ** 0.5
        across, down = panel.at(middle, bandwidth * middle)
        panel.words(across - 4, down - 8, f"{bandwidth / 1e9:.1f} GB/s", "end")
        lines = [line for line in shown if line["dtype"] == dtype]
        for line in lines:
            _measured(panel, line, paths[id(line)], kinds)
        panels.append(panel.draw(f"Roofline, {dtype}. {_in_rates(lines, paths, tokens)}"))
    zeros = in_order(f"{line['storage']} {line['sparsity']:.0%}" for line in shown)
    return figure(
        f"The same layer; each line goes from {tokens[0]} token, left, to {tokens[-1]}, right. "
        "FLOPs are those of kept weights alone, bytes all that has to be read and written once. "
        "Grey: what memory and arithmetic allow, measured here. "
        f"Zeros: {', '.join(zeros)}.",
        panels,
        _legend(shown, kinds),
    )


def _powers(values: Sequence[float], pad: float, label: Any) -> Axis:
    """A logarithmic axis with ticks at powers of two."""
    low, high = min(values) / pad, max(values) * pad
    ticks = [2.0**e for e in range(-20, 31) if low <= 2.0**e <= high]
    return Axis(low, high, [int(t) if t >= 1 else t for t in ticks], label, log=True)


def _groups(lines: Lines) -> list[tuple[str, float, Lines]]:
    keys = in_order((line["dtype"], line["sparsity"]) for line in lines)
    dtypes = in_order(line["dtype"] for line in lines)
    return [
        (dtype, sparsity, [n for n in lines if (n["dtype"], n["sparsity"]) == (dtype, sparsity)])
        for dtype, sparsity in sorted(keys, key=lambda key: (dtypes.index(key[0]), key[1]))
    ]


def _points(line: Mapping[str, Any], table: str, tokens: Sequence[int]) -> list[tuple]:
    return [(t, line[table][str(t)]) for t in tokens]


def _rates(line: Mapping[str, Any], tokens: Sequence[int]) -> list[tuple[float, float]]:
    """(FLOPs a byte, FLOP/s) at each number of tokens."""
    return [
        (flops / line["bytes"][str(t)], flops / line["ms"][str(t)] * 1e3)
        for t, flops in _points(line, "flops", tokens)
    ]


def _measured(
    panel: Panel, line: Mapping[str, Any], points: Sequence[tuple[float, float]], kinds: Kinds
) -> None:
    kind = kinds[line["storage"]]
    panel.line(points, f"k{kind}")
    for (x, y), (tokens, ms) in zip(points, line["ms"].items(), strict=True):
        words = (
            f"{line['variant']} {line['layout']}, M={tokens}: {ms:.4g} ms, "
            f"{line['speedup'][tokens]:.2f}x, at most {line['limit_speedup'][tokens]:.1f}x "
            f"by {line['bound'][tokens]}"
        )
        panel.mark(x, y, MARKERS[kind], f"small k{kind}", words)


def _legend(lines: Lines, kinds: Kinds, limit: str = "") -> str:
    entries = [
        (storage_swatch(storage, kinds, "measured"), storage)
        for storage in in_order(line["storage"] for line in lines)
    ]
    if limit:
        entries.append((swatch(None, "k0", "limit"), "limit, in the colour of its storage"))
    return legend(entries)


def _limit(line: Mapping[str, Any]) -> str:
    bounds = " then ".join(in_order(line["bound"].values()))
    return f"limit of {line['storage']}: {bounds}"


def _in_words(lines: Lines) -> str:
    said = []
    for line in lines:
        cells = ", ".join(
            f"{v:.2f} at {t} (limit {line['limit_speedup'][t]:.1f})"
            for t, v in line["speedup"].items()
        )
        said.append(f"{line['storage']}: {cells}")
    return "; ".join(said) + "."


def _in_rates(lines: Lines, paths: Mapping[int, Sequence[tuple]], tokens: Sequence[int]) -> str:
    said = (
        f"{line['storage']}: {_flops(paths[id(line)][0][1])} at {tokens[0]} token, "
        f"{_flops(paths[id(line)][-1][1])} at {tokens[-1]}"
        for line in lines
    )
    return "; ".join(said) + "."


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.2f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"
