"""A plan in words and tables: what is done to which kind of layer, why, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from prunekern.advice.plan import LayerPlan, Plan
from prunekern.timing import DENSE


def text_of(plan: Plan) -> str:
    """What `print(plan)` shows."""
    parts = [_head(plan), _table(_layer_rows(plan)), _table(_speed_rows(plan)), _totals(plan)]
    return "\n\n".join(parts)


def kind_of(name: str) -> str:
    """What layers of the same place in different decoder layers share: the name after the index."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else name


def _head(plan: Plan) -> str:
    how = "modelled, not measured" if plan.modelled else "measured"
    lines = [
        f"{plan.model}: {len(plan.pruned)} of {len(plan.layers)} layers to be pruned by "
        f"{plan.method}, for a perplexity of at most {1 + plan.quality:.4g}x dense",
        f"speed    {how}: {plan.speed_of}",
        f"text     {plan.text}",
    ]
    if not plan.pruned:
        reasons = sorted({layer.reason for layer in plan.layers})
        lines.append(f"Nothing pays here, leave it dense: {'; '.join(reasons)}.")
    return "\n".join(lines)


def _layer_rows(plan: Plan) -> list[list[str]]:
    """One row a kind of layer and what is done to it."""
    tokens = list(plan.batches)
    unit = "modelled us" if plan.modelled else "us"
    rows = [
        [
            "layer", "shape", "layers", "pattern", "stored as",
            *(f"{unit}, {_tokens(t)}" for t in tokens), "nats alone", "why",
        ]
    ]  # fmt: skip
    groups: dict[tuple, list[LayerPlan]] = {}
    for layer in plan.layers:
        key = (kind_of(layer.name), layer.shape, _pattern(layer), layer.kernel, layer.reason)
        groups.setdefault(key, []).append(layer)
    order = list(dict.fromkeys(key[:2] for key in groups))
    for key in sorted(groups, key=lambda key: (order.index(key[:2]), key[3] == DENSE, key[2])):
        kind, (N, K), pattern, kernel, reason = key
        members = groups[key]
        first = members[0]
        costs = [layer.cost for layer in members]
        rows.append(
            [
                kind, f"{N} x {K}", _ranges(members), pattern, kernel,
                *(_time(first, t) for t in tokens),
                "" if kernel == DENSE else _span(costs), reason or _why(first, plan),
            ]
        )  # fmt: skip
    return rows


def _why(layer: LayerPlan, plan: Plan) -> str:
    saved = {
        t: 1 - layer.seconds[t] / layer.seconds_dense[t]
        for t in plan.batches
        if layer.seconds_dense[t] > 0
    }
    best = max(saved, key=saved.get)
    lost = [_tokens(t) for t, share in saved.items() if share < 0]
    but = f", slower at {', '.join(lost)}" if lost else ""
    return f"{saved[best]:.0%} less time at {_tokens(best)}{but}"


def _speed_rows(plan: Plan) -> list[list[str]]:
    rows = [["whole model", "counts", "predicted" + " by the model of the chip" * plan.modelled]]
    if plan.speedup_measured:
        rows[0].append("measured")
    for tokens, share in plan.batches.items():
        row = [f"{_tokens(tokens)} at once", f"{share:.0%}"]
        row.append(f"{plan.speedup_predicted[tokens]:.2f}x")
        if plan.speedup_measured:
            row.append(f"{plan.speedup_measured[tokens]:.2f}x")
        rows.append(row)
    return rows


def _totals(plan: Plan) -> str:
    dense, measured = plan.perplexity_dense, plan.perplexity_measured
    lines = [
        f"perplexity {dense:.4g} dense, {measured:.4g} planned ({measured / dense - 1:+.1%}, "
        f"allowed {plan.quality:+.1%}), measured; from layers alone {plan.perplexity_predicted:.4g}"
    ]
    if plan.bytes_planned != plan.bytes_dense:
        lines.append(
            f"weights    {plan.bytes_dense / 1e6:.1f} MB dense, {plan.bytes_planned / 1e6:.1f} MB "
            f"planned ({plan.bytes_planned / plan.bytes_dense:.2f}x)"
        )
    if plan.modelled:
        lines.append(
            f"No {plan.speed_of} was measured: times are bounds from data sheets and counted work, "
            "of Linear layers alone. Attention, norms and launches are not in them."
        )
    return "\n".join([*lines, *plan.notes])


def _pattern(layer: LayerPlan) -> str:
    return layer.candidate.name if layer.candidate else DENSE


def _time(layer: LayerPlan, tokens: int) -> str:
    own, dense = layer.seconds[tokens], layer.seconds_dense[tokens]
    if layer.kernel == DENSE:
        return f"{own * 1e6:.0f}"
    return f"{own * 1e6:.0f} ({dense / own:.2f}x)"


def _tokens(tokens: int) -> str:
    return f"{tokens} token{'s' * (tokens > 1)}"


def _span(costs: Sequence[float]) -> str:
    low, high = min(costs), max(costs)
    return f"{low:.2g}" if math.isclose(low, high) else f"{low:.2g} to {high:.2g}"


def _ranges(layers: Iterable[LayerPlan]) -> str:
    """Indices of decoder layers, "0-3, 7"; how many, where there is no index."""
    numbers = [[int(p) for p in layer.name.split(".") if p.isdigit()] for layer in layers]
    if not all(numbers):
        return str(len(numbers))
    runs: list[list[int]] = []
    for index in sorted(n[-1] for n in numbers):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
